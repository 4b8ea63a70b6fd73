"""The source in blocks: which of them a piece of work needs, and what of each is worth fetching.

A shard is cut at every multiple of REQUEST_BYTES. A block is fetched in one request, from the first byte of it that
any piece needs to the last, and stays until the last of these pieces is done: so small tensors share a request, and
no byte travels twice. Blocks end where the pages of a file system do, so that they take what is counted for them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from fp8cli.core.quantizing.pieces import source_ranges
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.ranges import Range
from fp8cli.formats.staging import Piece

REQUEST_BYTES: Final = 8 * 2**20
"""Large enough for the time that a request takes to be answered not to count, small enough for many at a time."""

PAGE_BYTES: Final = 4096
"""What a file system gives out at least, and what the window is counted in."""

Block = tuple[str, int]
"""(source shard, number of the block in it)."""


class Blocks:
    """The blocks that some pieces need."""

    def __init__(self, plan: Plan, pieces: Iterable[Piece], *, block_bytes: int = REQUEST_BYTES) -> None:
        """Look through the pieces. block_bytes: a multiple of PAGE_BYTES."""
        self._bytes = block_bytes
        self._spans: dict[Block, tuple[int, int]] = {}
        self.users: Counter[Block] = Counter()
        """How many of the pieces need each block."""
        for piece in pieces:
            ranges = source_ranges(plan.tensors[piece[0]], piece)
            for shard, begin, end in ranges:
                for block in self._cover(shard, begin, end):
                    first, last = block[1] * block_bytes, (block[1] + 1) * block_bytes
                    held = self._spans.get(block, (last, first))
                    self._spans[block] = (min(held[0], max(begin, first)), max(held[1], min(end, last)))
            self.users.update(self.of(ranges))

    def of(self, ranges: Sequence[Range]) -> tuple[Block, ...]:
        """Return the blocks that hold these bytes, each once."""
        return tuple(dict.fromkeys(block for each in ranges for block in self._cover(*each)))

    def span(self, block: Block) -> tuple[int, int]:
        """Return which bytes of its shard are fetched for a block."""
        return self._spans[block]

    def size(self, block: Block) -> int:
        """Return the bytes that a block takes on a disk."""
        begin, end = self.pages(block)
        return end - begin

    def pages(self, block: Block) -> tuple[int, int]:
        """Return which whole pages of its shard that is: what else lies in them is of no use to any piece."""
        begin, end = self._spans[block]
        return begin // PAGE_BYTES * PAGE_BYTES, -(-end // PAGE_BYTES) * PAGE_BYTES

    def size_of(self, ranges: Sequence[Range]) -> int:
        """Return the bytes that these ranges take on a disk, with all that is fetched along with them."""
        return sum(map(self.size, self.of(ranges)))

    def _cover(self, shard: str, begin: int, end: int) -> Iterable[Block]:
        return ((shard, number) for number in range(begin // self._bytes, -(-end // self._bytes)))


def in_order(plan: Plan, pieces: Iterable[Piece]) -> list[Piece]:
    """Return the pieces as a source is read best: one output shard after the other, each from its beginning on."""
    # By the tensors: the excerpt of a plan that a node of a cluster gets has no shards.
    places = {shard: place for place, shard in enumerate(dict.fromkeys(tensor.shard for tensor in plan.tensors))}

    def place(piece: Piece) -> tuple[int, str, int]:
        tensor = plan.tensors[piece[0]]
        _, begin, _ = source_ranges(tensor, piece)[0]
        return places[tensor.shard], tensor.source_shard, begin

    return sorted(pieces, key=place)
