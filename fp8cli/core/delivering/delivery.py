"""A checkpoint in the making goes to its place: shards while others are made, everything else at the end, at once.

    delivering(…) ─┬─ watch(plan)   whoever makes shards tells it of them; each is sent, and given up here
                   ├─ wait()        all shards are there, and nobody sees them
                   └─ publish()     commit: visible, config.json last

What was sent is in the ledger, beside the journal. A place that has forgotten it gets it anew: what is gone here by
then is taken out of what counts as done, and made again.
"""

import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol

from fp8cli.core.delivering.delivery_events import DeliveryEvent
from fp8cli.core.delivering.ledger import LEDGER, Ledger
from fp8cli.core.delivering.ordering import DeliveryOrder, disk_window, weight_ranges
from fp8cli.core.delivering.shards import ShardSender
from fp8cli.core.quantizing.crew import ShardWatch, Unwatched
from fp8cli.core.quantizing.plan import Plan
from fp8cli.errors import BadInput, CannotRun, Fp8Error, Interrupted
from fp8cli.formats.addresses import parse_address
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.destinations import Destination, SendOptions, Sent, Standing, open_destination
from fp8cli.formats.staging import Staging, discard, disk_errors

Notify = Callable[[DeliveryEvent], None]


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


class Delivery(Protocol):
    """Where a run's output goes."""

    def watch(self, plan: Plan) -> ShardWatch:
        """Return who must be told of the shards of this plan."""

    def wait(self) -> None:
        """Return when every shard is where it belongs."""

    def publish(self) -> Delivered | None:
        """Give the output its name; None where that is a folder here."""


@dataclass(frozen=True)
class _Here:
    """To a folder on this machine, where it grows."""

    staging: Staging
    overwrite: bool

    def watch(self, plan: Plan) -> ShardWatch:
        del plan
        return Unwatched()

    def wait(self) -> None:
        pass

    def publish(self) -> None:
        with disk_errors(self.staging.out):
            self.staging.publish(overwrite=self.overwrite)


@contextmanager
def delivering(
    order: DeliveryOrder | None,
    staging: Staging,
    run: Mapping[str, object],
    *,
    workers: int,
    overwrite: bool,
    restart: bool,
    notify: Notify,
) -> Iterator[Delivery]:
    """Deliver what grows in `staging`. run: what is being made, as the journal has it.

    What was sent stays for the next run, unless the source is at fault (BadInput): then it is given up.
    """
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    ledger = Ledger.read(staging.folder / LEDGER)
    address = None if order is None else order.address.text
    if ledger.address is not None and (restart or (ledger.address, ledger.run) != (address, digest)):
        _give_up(ledger)
    if order is None:
        yield _Here(staging, overwrite)
        return
    destination = open_destination(order.address, order.options)
    standing = destination.prepare(destination.look())
    if ledger.address is None:
        ledger.open(order.address.text, digest)
    standing = _same_version(ledger, standing, destination, overwrite=overwrite)
    delivery = _Elsewhere(order, staging, destination, ledger, standing, workers, overwrite, notify)
    try:
        with _stopped_at_once(delivery.stop):
            yield delivery
    except BadInput:
        with suppress(Fp8Error):
            destination.abort(ledger.uploads())
        raise
    except (KeyboardInterrupt, Interrupted):
        message = f"interrupted; what is done is kept beside `{staging.out}`, what was sent in `{destination.label}`"
        hint = "run the same command again to go on, or with --restart to give it up"
        raise Interrupted(message, hint=hint) from None
    finally:
        delivery.stop()


def _give_up(ledger: Ledger) -> None:
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


@dataclass
class _Elsewhere:
    """To another place, and with `order.keep` to a folder here too."""

    order: DeliveryOrder
    staging: Staging
    destination: Destination
    ledger: Ledger
    standing: Standing
    workers: int
    overwrite: bool
    notify: Notify
    _begun: float = field(default_factory=time.monotonic)
    _sender: ShardSender | None = None
    _sent: Sequence[Sent] = ()
    _tail_seconds: float = 0.0

    def watch(self, plan: Plan) -> ShardWatch:
        """Begin to send."""
        self._forget_what_is_lost(plan)
        sizes = {shard.name: shard.header.file_bytes for shard in plan.shards}
        window = None if self.order.keep else disk_window(plan, self.staging.folder, workers=self.workers)
        self._sender = ShardSender(
            destination=self.destination,
            ledger=self.ledger,
            folder=self.staging.checkpoint,
            sizes=sizes,
            weights={} if window is None else weight_ranges(plan),
            window_bytes=window,
            notify=self.notify,
        )
        self._sender.start()
        return self._sender

    def wait(self) -> None:
        """Return when all shards are there."""
        assert self._sender is not None  # noqa: S101 - `watch` comes first
        begun = time.monotonic()
        self._sent = self._sender.wait()
        self._tail_seconds = time.monotonic() - begun

    def publish(self) -> Delivered:
        """Commit; with `keep`, then give the folder its name."""
        assert self._sender is not None  # noqa: S101 - as above
        names = LocalFolder(self.staging.checkpoint).files()
        small = {name: self.staging.checkpoint / name for name in names if name not in self._sender.sizes}
        self.ledger.commit_begins()
        commit = self.destination.commit(self._sent, small, self.standing)
        if self.order.keep:
            with disk_errors(self.staging.out):
                self.staging.publish(overwrite=self.overwrite)
        else:
            discard(self.staging.out)
        waited = self._tail_seconds + self._sender.waited_seconds / self.workers
        return Delivered(
            address=self.destination.label,
            commit=commit,
            files=len(self._sent) + len(small),
            bytes_sent=sum(self._sender.sizes.values()) + sum(names[name] for name in small),
            bytes_resumed=self._sender.resumed_bytes,
            waited_seconds=waited,
            bound="sending" if waited > (time.monotonic() - self._begun) / 10 else "making",
            window_bytes=self._sender.window_bytes,
            sha256={sent.name: sent.sha256 for sent in self._sent},
        )

    def stop(self) -> None:
        """Send nothing any more."""
        if self._sender is not None:
            self._sender.stop()

    def _forget_what_is_lost(self, plan: Plan) -> None:
        """Compare the ledger with what the place holds, and the journal with what is still here."""
        for name, entry in list(self.ledger.entries.items()):
            if entry.upload is not None and entry.sha256 is not None:
                size = (self.staging.checkpoint / name).stat().st_size if self._is_here(name) else 0
                if not self.destination.holds(name, size, entry.upload):
                    self.ledger.forgotten(name)
        lost = {name for name, entry in self.ledger.entries.items() if entry.lost}
        self.staging.done = {
            piece: harm for piece, harm in self.staging.done.items() if plan.tensors[piece[0]].shard not in lost
        }

    def _is_here(self, name: str) -> bool:
        return Path(self.staging.checkpoint / name).is_file()


@contextmanager
def _stopped_at_once(stop: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C end the sending first: workers that wait for it would otherwise not end before it does."""

    def first_stop(number: int, frame: FrameType | None) -> None:
        stop()
        before[number](number, frame)

    before: dict[int, Callable[[int, FrameType | None], object]] = {}
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(each)):
                before[each] = handler
                signal.signal(each, first_stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
