"""One run's way to a place that is not here: opened, sent to, committed; kept for the next run, or given up.

What was sent is in the ledger, beside the journal. A place that somebody else changed meanwhile is not touched.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from fp8cli.core.delivering.delivery_events import DeliveryEvent
from fp8cli.core.delivering.ledger import LEDGER, Ledger
from fp8cli.core.delivering.ordering import DeliveryOrder, Range
from fp8cli.core.delivering.shards import ShardSender
from fp8cli.errors import BadInput, CannotRun, Fp8Error, Interrupted
from fp8cli.formats.addresses import parse_address
from fp8cli.formats.destinations import Destination, SendOptions, Sends, Sent, Standing, open_destination
from fp8cli.formats.interruption import first_on_stop
from fp8cli.formats.staging import Staging, discard

Notify = Callable[[DeliveryEvent], None]

_NOTHING_DONE: Final = frozenset({"lock", "journal", "checkpoint"})
"""What a staging folder holds when nothing is in it."""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """What came of it."""

    address: str
    commit: str | None
    """On the Hub."""
    files: int
    bytes_sent: int
    bytes_resumed: int
    """Of them, what earlier runs had sent."""
    waited_seconds: float
    """In which nothing was made because something was still being sent."""
    bound: Literal["sending", "making"]
    """What took the time: sending, if the rest waited for it for more than a tenth of it."""
    window_bytes: int | None
    """What shards could take on this machine's disk at a time; None: all of them lay there."""
    sha256: Mapping[str, str]
    """Of every shard, in hex."""


@dataclass
class Sending:
    """What `sending` opens; valid only inside it."""

    destination: Destination
    ledger: Ledger
    standing: Standing
    notify: Notify
    _begun: float = field(default_factory=time.monotonic)
    _sender: ShardSender | None = None
    _sent: Sequence[Sent] = ()
    _tail_seconds: float = 0.0

    def lost(self, folder: Path) -> frozenset[str]:
        """Compare the ledger with what the place holds; return the files that have to be made again.

        folder: where they lie, or what is left of them.
        """
        for name, entry in list(self.ledger.entries.items()):
            if entry.upload is not None and entry.sha256 is not None:
                size = (folder / name).stat().st_size if (folder / name).is_file() else 0
                if not self.destination.holds(name, size, entry.upload):
                    self.ledger.forgotten(name)
        return frozenset(name for name, entry in self.ledger.entries.items() if entry.lost)

    def begin(
        self,
        folder: Path,
        sizes: Mapping[str, int],
        *,
        weights: Mapping[str, tuple[Range, ...]] | None = None,
        window_bytes: int | None = None,
        carrier: Sends | None = None,
    ) -> ShardSender:
        """Begin to send large files, each when the sender is told that it is finished; see `ShardSender`."""
        self._sender = ShardSender(
            destination=self.destination,
            ledger=self.ledger,
            folder=folder,
            sizes=sizes,
            weights=weights or {},
            window_bytes=window_bytes,
            notify=self.notify,
            carrier=carrier,
        )
        self._sender.start()
        return self._sender

    def wait(self) -> Mapping[str, str]:
        """Return when all large files are there: the SHA-256 of each."""
        assert self._sender is not None  # noqa: S101 - `begin` comes first
        begun = time.monotonic()
        self._sent = self._sender.wait()
        self._tail_seconds = time.monotonic() - begun
        return {sent.name: sent.sha256 for sent in self._sent}

    def commit(self, small: Mapping[str, Path], *, workers: int) -> Delivered:
        """Make everything visible, with the small files beside the large ones. workers: that made the large ones."""
        assert self._sender is not None  # noqa: S101 - as above
        sizes = [file.stat().st_size for file in small.values()]
        self.ledger.commit_begins()
        commit = self.destination.commit(self._sent, small, self.standing)
        waited = self._tail_seconds + self._sender.waited_seconds / workers
        return Delivered(
            address=self.destination.label,
            commit=commit,
            files=len(self._sent) + len(small),
            bytes_sent=sum(self._sender.sizes.values()) + sum(sizes),
            bytes_resumed=self._sender.resumed_bytes,
            waited_seconds=waited,
            bound="sending" if waited > (time.monotonic() - self._begun) / 10 else "making",
            window_bytes=self._sender.window_bytes,
            sha256={sent.name: sent.sha256 for sent in self._sent},
        )

    def abort(self) -> None:
        """Give up what was sent."""
        if self._sender is not None:
            self._sender.settle()
        self.destination.abort(self.ledger.uploads())

    def stop(self) -> None:
        """Send nothing any more."""
        if self._sender is not None:
            self._sender.stop()


@contextmanager
def sending(
    order: DeliveryOrder,
    staging: Staging,
    run: Mapping[str, object],
    *,
    overwrite: bool,
    restart: bool,
    notify: Notify,
) -> Iterator[Sending]:
    """Open the place of an order. run: what is sent, as the journal has it; its ledger is beside that.

    What was sent stays for the next run, unless the source is at fault (BadInput): then it is given up.
    """
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    ledger = Ledger.read(staging.folder / LEDGER)
    if restart or (ledger.address, ledger.run) != (order.address.text, digest):
        give_up(ledger)
    destination = open_destination(order.address, order.options)
    try:
        standing = destination.prepare(destination.look())
    except Fp8Error:
        if {each.name for each in staging.folder.iterdir()} <= _NOTHING_DONE and not staging.done:
            discard(staging.out)
        raise
    if ledger.address is None:
        ledger.open(order.address.text, digest)
    opened = Sending(destination, ledger, _same_version(ledger, standing, destination, overwrite=overwrite), notify)
    try:
        # Workers that wait for room would not end before the sending does.
        with first_on_stop(opened.stop):
            yield opened
    except BadInput:
        with suppress(Fp8Error):
            opened.abort()
        discard(staging.out)  # Once more: what was under way may have written to the ledger meanwhile.
        raise
    except (KeyboardInterrupt, Interrupted):
        message = f"interrupted; what is done is kept in `{staging.folder}`, what was sent in `{destination.label}`"
        hint = "--restart gives it up; go on with"
        raise Interrupted(message, hint=hint) from None
    finally:
        opened.stop()


def give_up(ledger: Ledger) -> None:
    """Give up what a run that nobody goes on with has sent."""
    place = parse_address(ledger.address or "")
    if place is not None and ledger.entries:
        open_destination(place, SendOptions()).abort(ledger.uploads())
    ledger.forget_all()


def _same_version(ledger: Ledger, standing: Standing, destination: Destination, *, overwrite: bool) -> Standing:
    """Return how the place stood when the first run began. Raises CannotRun if somebody changed it since."""
    if standing.version is None:
        return standing
    if ledger.version is None or overwrite:
        ledger.found(standing.version)
    elif ledger.version != standing.version and not ledger.committing:
        message = f"`{destination.label}` was changed since this run was begun"
        raise CannotRun(message, hint="look at it; run the same command with --overwrite to go on and replace it")
    return Standing(files=standing.files, version=ledger.version)
