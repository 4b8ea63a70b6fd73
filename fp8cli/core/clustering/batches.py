"""The pieces of a plan put together into batches: what one task of a cluster does without being asked again.

A batch costs a message to a node and one back, so there are few of them for every task that runs at once; and they
are of one size, so that nobody waits long for the last. A large tensor is many pieces, and so may lie in many batches.
The order in which they are handed out spreads the first of them over the files of the output: two writers in one file
wait for each other.

A batch travels with an excerpt of the plan: its own tensors and nothing of the other hundred thousand.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from fp8cli.core.quantizing.pieces import source_bytes
from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.formats.staging import Piece

PER_SLOT: Final = 4
"""Batches for every task that runs at once: with fewer, a slow node keeps the others waiting for its last."""

SHARDS_PER_SLOT: Final = 2
"""Shards for every task that runs at once, from which on a task can do whole ones and nobody waits long."""

MOST_BATCHES: Final = 1024
"""One driver hands out some thousands a second: on a large cluster a slot gets fewer, down to a single one."""

LEAST_BYTES: Final = 96 * 2**20
"""Read plus written; a smaller batch takes no longer than the messages about it. A piece of BF16 moves as much."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pieces that one task does."""

    pieces: tuple[Piece, ...]
    moved_bytes: int
    """Read plus written."""


def cut_batches(
    plan: Plan, pieces: Sequence[Piece], *, slots: int, share_bytes: int | None = None
) -> tuple[Batch, ...]:
    """Put pieces together, for `slots` tasks at once, in the order in which they are to be handed out.

    Every piece is in one batch. None moves more than the wanted share plus its last piece: the wanted share is that
    of `wanted_batches`, and at least `LEAST_BYTES`, or else `share_bytes`.
    """
    by_shard: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        by_shard[plan.tensors[piece[0]].shard].append(piece)
    sizes = {piece: moved_bytes(plan.tensors[piece[0]], piece) for piece in pieces}
    share = share_bytes or max(LEAST_BYTES, -(-sum(sizes.values()) // wanted_batches(slots)))
    batches: list[tuple[int, Batch]] = []
    collected: list[Piece] = []
    moved = place = 0
    for shard in by_shard.values():
        place = 0
        for piece in shard:
            collected.append(piece)
            moved += sizes[piece]
            if moved >= share:
                batches.append((place, Batch(pieces=tuple(collected), moved_bytes=moved)))
                collected, moved, place = [], 0, place + 1
    if collected:
        batches.append((place, Batch(pieces=tuple(collected), moved_bytes=moved)))
    # What is far larger than its share, a giant under a single scale, comes first: begun last, it would be waited for.
    giants = sorted((each for _, each in batches if each.moved_bytes > 2 * share), key=lambda each: -each.moved_bytes)
    others = sorted((pair for pair in batches if pair[1].moved_bytes <= 2 * share), key=lambda pair: pair[0])
    return (*giants, *(each for _, each in others))


def whole_shards(plan: Plan, pieces: Sequence[Piece]) -> tuple[Batch, ...]:
    """Put together what goes into one file of the output: for tasks that read a shard from its beginning to its end."""
    by_shard: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        by_shard[plan.tensors[piece[0]].shard].append(piece)
    return tuple(
        Batch(pieces=tuple(each), moved_bytes=sum(moved_bytes(plan.tensors[piece[0]], piece) for piece in each))
        for each in by_shard.values()
    )


def wanted_batches(slots: int) -> int:
    """How many batches are best for so many tasks at once."""
    # As many for every slot: three more than there are slots would take as long as twice as many.
    return slots * max(1, min(PER_SLOT, MOST_BATCHES // slots))


def moved_bytes(tensor: PlannedTensor, piece: Piece) -> int:
    """Bytes that a piece reads plus those that it writes."""
    _, begin, end = piece
    match tensor.action:
        case "copy":
            whole = tensor.source.bytes
        case "cast":
            whole = tensor.source.elements
        case _:
            whole = tensor.source.shape[0]
    return source_bytes(tensor, piece) + tensor.bytes_out * (end - begin) // max(whole, 1)


def excerpt(plan: Plan, pieces: Sequence[Piece]) -> tuple[Plan, tuple[Piece, ...]]:
    """Return a plan of the tensors of these pieces alone, and the pieces as it numbers them, in the same order.

    It has no shards: their files are there before anyone writes to them.
    """
    numbers = sorted({number for number, _, _ in pieces})
    places = {number: place for place, number in enumerate(numbers)}
    tensors = tuple(plan.tensors[number] for number in numbers)
    part = replace(plan, tensors=tensors, calibrated=(), shards=(), ignored_modules=(), duplicates=(), index=None)
    return part, tuple((places[number], begin, end) for number, begin, end in pieces)


def source_shards(tensors: Sequence[PlannedTensor]) -> tuple[str, ...]:
    """Name the files that these tensors are read from, scales included."""
    of_scales = (each.decoding.shard for each in tensors if each.decoding is not None)
    return tuple(dict.fromkeys((*(each.source_shard for each in tensors), *of_scales)))
