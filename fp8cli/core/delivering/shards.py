"""Shards sent one by one while others are made, and given up here as soon as they are there: how far each is.

Disk is bounded: a shard may begin only when those that are begun and not sent leave room for it in the window, or when
there is no other. Who makes shards and who sends them share nothing but this.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fp8cli.core.delivering.delivery_events import BytesSent, DeliveryEvent, SendingBegins
from fp8cli.core.delivering.ledger import Ledger
from fp8cli.core.delivering.ordering import Range
from fp8cli.errors import Interrupted
from fp8cli.formats.destinations import Destination, Sends, Sent, Upload
from fp8cli.formats.holes import punch

SENDERS: Final = 2
"""Files under way at a time, each over several connections."""

CARRIED: Final = 32
"""The same where others send them, each a file or two."""

_LOOK_AGAIN: Final = 0.5
"""Seconds after which a worker that waits for room looks whether the run was stopped."""

_SETTLING: Final = 30.0
"""Seconds at most that requests under way are waited for."""


@dataclass
class ShardSender:
    """Watches the shards of one run (`quantizing.crew.ShardWatch`) and sends them. Valid inside `running`."""

    destination: Destination
    ledger: Ledger
    folder: Path
    sizes: Mapping[str, int]
    """Of every shard, in bytes."""
    weights: Mapping[str, tuple[Range, ...]]
    """What may be given up of a shard once it is there; empty: nothing."""
    window_bytes: int | None
    """What shards that are begun and not sent may take here; None: no matter."""
    notify: Callable[[DeliveryEvent], None]
    """Told only while somebody waits for the end."""
    carrier: Sends | None = None
    """Who sends the files; None: this machine."""
    sent_bytes: int = 0
    """Including what earlier runs sent."""
    resumed_bytes: int = 0
    waited_seconds: float = 0.0
    """What workers spent waiting for room, all of them together."""
    _begun: set[str] = field(default_factory=set)
    _waiting: deque[str] = field(default_factory=deque)
    _done: dict[str, Sent] = field(default_factory=dict)
    _problem: BaseException | None = None
    _stopped: bool = False
    _abandoned: bool = False
    _waited_for: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _told: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin to send what is told of from now on."""
        senders = SENDERS if self.carrier is None else CARRIED
        self._threads = [threading.Thread(target=self._work, name="fp8-deliver", daemon=True) for _ in range(senders)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing any more, and let nobody wait. Requests under way are left alone: nobody waits for them."""
        # No lock: a signal handler may call this while its own thread holds it.
        self._stopped = True

    def settle(self) -> None:
        """Stop, and wait for requests under way, for a while: what they begin must be known to be given up."""
        self.stop()
        until = time.monotonic() + _SETTLING
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def begins(self, shard: str) -> None:
        """Wait until there is room for a shard. Raises what went wrong with another one."""
        begun = time.monotonic()
        with self._changed:
            while not self._has_room(shard):
                self._refuse_if_over()
                if self._abandoned:
                    raise Interrupted(f"`{shard}` was not begun: another one failed")
                self._changed.wait(_LOOK_AGAIN)
            self._begun.add(shard)
            self.waited_seconds += time.monotonic() - begun
        self._refuse_if_over()

    def finished(self, shard: str) -> None:
        """Take a shard that is whole here; return at once."""
        if self.ledger.entries.get(shard) is not None and self.ledger.entries[shard].lost:
            self.ledger.made_again(shard)
        with self._changed:
            self._begun.add(shard)
            self._waiting.append(shard)
            self._changed.notify_all()

    def abandon(self) -> None:
        """Let no worker wait for room any more; what is whole is sent all the same."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def wait(self) -> tuple[Sent, ...]:
        """Return all shards when they are there. Raises what went wrong with one."""
        with self._told:
            self.notify(SendingBegins(bytes_left=sum(self.sizes.values()) - self.sent_bytes))
            self._waited_for = True
        with self._changed:
            while len(self._done) < len(self.sizes):
                self._refuse_if_over()
                self._changed.wait(_LOOK_AGAIN)
        return tuple(self._done[name] for name in sorted(self._done))

    def _has_room(self, shard: str) -> bool:
        if self.window_bytes is None or not self._begun or shard in self._begun:
            return True
        taken = sum(self.sizes[each] for each in self._begun)
        return taken + self.sizes[shard] <= self.window_bytes

    def _refuse_if_over(self) -> None:
        if self._problem is not None:
            raise self._problem
        if self._stopped:
            raise Interrupted(f"interrupted; what was sent to `{self.destination.label}` is kept")

    def _work(self) -> None:
        while (shard := self._take()) is not None:
            try:
                sent = self._send(shard)
            except BaseException as problem:  # noqa: BLE001 - raised again where it is waited for
                with self._changed:
                    self._problem = self._problem or problem
                    self._changed.notify_all()
                return
            with self._changed:
                self._done[shard] = sent
                self._begun.discard(shard)
                self._changed.notify_all()

    def _take(self) -> str | None:
        with self._changed:
            while not self._waiting:
                if self._stopped or self._problem is not None or len(self._done) == len(self.sizes):
                    return None
                self._changed.wait(_LOOK_AGAIN)
            return None if self._stopped else self._waiting.popleft()

    def _send(self, shard: str) -> Sent:
        file, entry = self.folder / shard, self.ledger.entries.get(shard)
        if entry is not None and entry.upload is not None and entry.sha256 is not None:
            sent = Sent(name=shard, file=file, upload=entry.upload, sha256=entry.sha256)
            self._count(self.sizes[shard], resumed=True)
        else:
            before = None if entry is None else entry.upload
            carrier = self.carrier or self.destination
            upload, sha256 = carrier.send(shard, file, before, _Notes(self, shard))
            sent = Sent(name=shard, file=file, upload=upload, sha256=sha256)
            self.ledger.whole(sent, punched=bool(self.weights.get(shard)))
        self._give_up(shard)
        return sent

    def _give_up(self, shard: str) -> None:
        ranges = self.weights.get(shard, ())
        if not ranges:
            return
        descriptor = os.open(self.folder / shard, os.O_RDWR)
        try:
            for begin, end in ranges:
                punch(descriptor, begin, end)
        finally:
            os.close(descriptor)

    def _count(self, count: int, *, resumed: bool) -> None:
        with self._told:
            self.sent_bytes += count
            self.resumed_bytes += count if resumed else 0
            if self._waited_for:
                self.notify(BytesSent(count=count))


@dataclass(frozen=True)
class _Notes:
    """Keeps the books of one shard under way."""

    sender: ShardSender
    shard: str

    def begun(self, upload: Upload) -> None:
        self.sender.ledger.begun(self.shard, upload)

    def about_to_send(self) -> None:
        """Nobody else sends from here."""

    def part(self, number: int, tag: str) -> None:
        self.sender.ledger.part(self.shard, number, tag)

    def sent(self, count: int, *, before: bool = False) -> None:
        self.sender._count(count, resumed=before)  # noqa: SLF001 - a part of it
