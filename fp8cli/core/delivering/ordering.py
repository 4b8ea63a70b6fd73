"""From what the user said of a destination to the order for a delivery, looked at before anything is made."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fp8cli.core.delivering.ledger import LEDGER, Ledger
from fp8cli.core.inspection.scale_names import scale_label
from fp8cli.core.quantizing.plan import Plan
from fp8cli.errors import UsageError
from fp8cli.formats.addresses import HUB, Address
from fp8cli.formats.checkpoint import CONFIG
from fp8cli.formats.destinations import (
    SendOptions,
    Standing,
    name_destination,
    name_repository,
    open_destination,
)
from fp8cli.formats.holes import takes_holes
from fp8cli.formats.staging import partial_folder

_SHARDS_MADE_AT_ONCE: Final = 6
_SHARDS_SENT_AT_ONCE: Final = 2
_SHARE_OF_FREE_DISK: Final = 0.9
_PAGE: Final = 4096
_SMALLEST_HOLE: Final = 4 * _PAGE

Range = tuple[int, int]
"""Bytes [begin, end) of a file."""


@dataclass(frozen=True, kw_only=True)
class DeliveryOrder:
    """Where a checkpoint that is being made is to be sent."""

    address: Address
    options: SendOptions = field(default_factory=SendOptions)
    keep: bool
    """Whether the folder here is wanted too; else each shard is given up as soon as it is there."""

    @property
    def identity(self) -> str:
        """What two runs must have in common for the second to go on with the first."""
        return f"{self.address.text}{' and a folder' if self.keep else ''}"


@dataclass(frozen=True, kw_only=True)
class DeliveryOptions:
    """What the user said of it."""

    out: str | None = None
    """As -o has it: a folder or an address. None: a default."""
    push: str | None = None
    """A repository on the Hub, `org/name` or `org/name@branch`."""
    work_dir: Path | None = None
    """Where an output that is sent elsewhere grows; None: in the current directory."""
    options: SendOptions = field(default_factory=SendOptions)


def order_delivery(wish: DeliveryOptions, default: str) -> tuple[Path, DeliveryOrder | None]:
    """Return the folder beside which the output grows, or is, and where it is sent. default: the name of the output.

    Raises UsageError for two places at once, and for words that mean nothing without one.
    """
    address = None if wish.out is None else name_destination(wish.out)
    keep = wish.out is not None and address is None
    if wish.push is not None:
        if address is not None:
            message = f"the output goes to `{address.text}`, so --push has nothing left to send"
            raise UsageError(message, hint="leave one of them out; afterwards: fp8 push FOLDER ORG/NAME")
        address = name_repository(wish.push)
    if address is None:
        words = [word for word, said in (("--public", wish.options.public), ("--work-dir", wish.work_dir)) if said]
        if words:
            message = f"{' and '.join(words)} would have no effect: the output goes to a folder"
            raise UsageError(message, hint="leave it out, or send the output elsewhere with -o ADDRESS or --push")
        return Path(wish.out or default), None
    if wish.options.public and address.scheme != HUB:
        message = f"--public would have no effect: who may read `{address.text}` is decided there"
        raise UsageError(message, hint="leave it out; it is for repositories on the Hub")
    if keep and wish.work_dir is not None:
        message = "--work-dir would have no effect: the output grows beside its folder"
        raise UsageError(message, hint="leave it out, or leave -o out if no folder is wanted here")
    order = DeliveryOrder(address=address, options=wish.options, keep=keep)
    if keep and wish.out is not None:
        return Path(wish.out), order
    return (wish.work_dir or Path()) / address.name, order


def bytes_that_stay(order: DeliveryOrder | None, plan: Plan, folder: Path, *, workers: int) -> int | None:
    """Return how much of the disk a plan takes at most if its shards are sent one by one; None: all of its output."""
    window = None if order is None or order.keep else disk_window(plan, folder, workers=workers)
    if window is None:
        return None
    return min(plan.bytes_written, window + _bytes_not_punched(plan))


def check_destination(order: DeliveryOrder, *, out: Path, overwrite: bool) -> Standing | None:
    """Look at the place, and refuse one that holds something, unless `overwrite` and it is a checkpoint.

    out: the folder beside which the run keeps its books. Returns None where there is no such place yet.
    """
    standing = open_destination(order.address, order.options).look()
    if standing is None or not standing.files:
        return standing
    ledger = Ledger.read(partial_folder(out) / LEDGER)
    if ledger.committing and ledger.address == order.address.text:
        return standing  # What is there is ours, and half of it.
    place = order.address.text
    if not overwrite:
        message = f"`{place}` holds {len(standing.files):,} files already"
        raise UsageError(message, hint="choose another place, or replace what is there with --overwrite")
    if CONFIG not in standing.files:
        message = f"`{place}` holds {len(standing.files):,} files and no checkpoint, so --overwrite does not touch it"
        raise UsageError(message, hint="choose another place")
    return standing


def disk_window(plan: Plan, folder: Path, *, workers: int | None) -> int | None:
    """Return how many bytes shards that are not sent yet may take in a folder; None: it takes no holes, so all do.

    Room for every worker's shard and for those under way, up to what is free beside all that stays, and for one shard
    in any case. workers: None where nobody knows how many there will be, on a cluster: as much as is free.
    """
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not takes_holes(existing):
        return None
    largest = max((shard.header.file_bytes for shard in plan.shards), default=0)
    room = int(_SHARE_OF_FREE_DISK * (shutil.disk_usage(existing).free - _bytes_not_punched(plan)))
    wanted = room if workers is None else (min(workers, _SHARDS_MADE_AT_ONCE) + _SHARDS_SENT_AT_ONCE) * largest
    return max(largest, min(wanted, room))


def weight_ranges(plan: Plan) -> dict[str, tuple[Range, ...]]:
    """Return where the weights of each shard lie, scales not among them: what may go once it is sent.

    What is too small to give up a page stays: headers, scales and norms are read again before the end.
    """
    found: dict[str, list[Range]] = {}
    # A conversion has scales among its tensors, and a KV cache's are there beside any scheme.
    dtypes = {info.name: info.dtype for shard in plan.shards for info in shard.header.tensors}
    for tensor in plan.tensors:
        if tensor.weight is not None and scale_label(tensor.weight.name, dtypes) is None:
            found.setdefault(tensor.shard, []).append((tensor.weight.begin, tensor.weight.end))
    return {shard: tuple(_joined(sorted(ranges))) for shard, ranges in found.items()}


def _joined(ranges: Sequence[Range]) -> Iterator[Range]:
    """Join ranges that touch: a page that two of them share goes only if they go together."""
    begin = end = 0
    for first, last in ranges:
        if first != end:
            if end - begin >= _SMALLEST_HOLE:
                yield begin, end
            begin = first
        end = last
    if end - begin >= _SMALLEST_HOLE:
        yield begin, end


def _bytes_not_punched(plan: Plan) -> int:
    """Return what stays of all shards when they are sent, with the broken pages at both ends of a hole."""
    ranges = [each for shard in weight_ranges(plan).values() for each in shard]
    gone = sum(end - begin - 2 * _PAGE for begin, end in ranges)
    return plan.bytes_written - gone + _PAGE * len(plan.shards)
