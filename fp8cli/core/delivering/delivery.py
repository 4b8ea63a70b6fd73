"""A checkpoint in the making goes where it belongs: to its folder, or shard by shard to another place.

    delivering(…) ─┬─ watch(plan)   whoever makes shards tells it of them; each is sent, and given up here
                   ├─ wait()        all shards are there, and nobody sees them
                   └─ publish()     commit: visible, config.json last

A place that has forgotten a shard gets it anew: what is gone here by then is taken out of what counts as done, and
made again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from fp8cli.core.delivering.ledger import LEDGER, Ledger
from fp8cli.core.delivering.ordering import DeliveryOrder, disk_window, weight_ranges
from fp8cli.core.delivering.sending import Delivered, Notify, Sending, give_up, sending
from fp8cli.core.quantizing.crew import ShardWatch, Unwatched
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.addresses import Address
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.destinations import Destination, SendOptions, Sends
from fp8cli.formats.staging import Staging, discard, disk_errors


class Carriers(Protocol):
    """Who can send files of a folder that they see too."""

    def carry(self, address: Address, options: SendOptions, destination: Destination) -> Sends:
        """Return who sends to this place, which `destination` is as this machine sees it."""


class Delivery(Protocol):
    """Where a run's output goes."""

    def watch(self, plan: Plan, carriers: Carriers | None = None) -> ShardWatch:
        """Return who must be told of the shards of this plan. carriers: who sends them, if not this machine."""

    def wait(self) -> Mapping[str, str]:
        """Return when every shard is where it belongs: the SHA-256 of each that was sent."""

    def publish(self) -> Delivered | None:
        """Give the output its name; None where that is a folder here."""


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
    """Deliver what grows in `staging`; order None: to its folder. run: what is being made, as the journal has it."""
    if order is None:
        # A run that was begun with --restart may find what another one has sent.
        give_up(Ledger.read(staging.folder / LEDGER))
        yield _Here(staging, overwrite)
        return
    with sending(order, staging, run, overwrite=overwrite, restart=restart, notify=notify) as opened:
        yield _Elsewhere(order, staging, opened, workers, overwrite)


@dataclass(frozen=True)
class _Here:
    """To a folder on this machine, where it grows."""

    staging: Staging
    overwrite: bool

    def watch(self, plan: Plan, carriers: Carriers | None = None) -> ShardWatch:
        del plan, carriers
        return Unwatched()

    def wait(self) -> Mapping[str, str]:
        return {}

    def publish(self) -> None:
        with disk_errors(self.staging.out):
            self.staging.publish(overwrite=self.overwrite)


@dataclass
class _Elsewhere:
    """To another place, and with `order.keep` to a folder here too."""

    order: DeliveryOrder
    staging: Staging
    opened: Sending
    workers: int
    overwrite: bool
    _shards: frozenset[str] = frozenset()

    def watch(self, plan: Plan, carriers: Carriers | None = None) -> ShardWatch:
        lost = self.opened.lost(self.staging.checkpoint)
        self.staging.done = {
            piece: harm for piece, harm in self.staging.done.items() if plan.tensors[piece[0]].shard not in lost
        }
        sizes = {shard.name: shard.header.file_bytes for shard in plan.shards}
        self._shards = frozenset(sizes)
        workers = None if carriers is not None else self.workers
        window = None if self.order.keep else disk_window(plan, self.staging.folder, workers=workers)
        weights = {} if window is None else weight_ranges(plan)
        carrier = None
        if carriers is not None:
            carrier = carriers.carry(self.order.address, self.order.options, self.opened.destination)
        return self.opened.begin(self.staging.checkpoint, sizes, weights=weights, window_bytes=window, carrier=carrier)

    def wait(self) -> Mapping[str, str]:
        return self.opened.wait()

    def publish(self) -> Delivered:
        names = LocalFolder(self.staging.checkpoint).files()
        small = {name: self.staging.checkpoint / name for name in names if name not in self._shards}
        delivered = self.opened.commit(small, workers=self.workers)
        if self.order.keep:
            with disk_errors(self.staging.out):
                self.staging.publish(overwrite=self.overwrite)
        else:
            discard(self.staging.out)
        return delivered
