"""How many tasks run at once on which part of a node: the caps that the user gives are those of every node.

One processor for a task is the finest cut. A task takes more of them where memory for tiles would not be enough for
as many tasks as processors, and where a large cluster would have more tasks at once than one driver can keep busy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import SCRATCH_BYTES_PER_ELEMENT

MOST_SLOTS: Final = 1024
"""Tasks at once: more than one driver keeps busy (see the table in README)."""

BUNDLED_FROM: Final = 64
"""Tasks at once, from which on batches are handed out in bundles."""

BUNDLES: Final = 32
"""That so many batches as there are tasks at once are put into: each is a message to a node that hands them out."""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """What a task gets."""

    count: int
    cpus: int
    """That Ray reserves for it."""
    workers: int
    memory_bytes: int

    @property
    def bundle(self) -> int:
        """How many batches are handed out together."""
        return 1 if self.count < BUNDLED_FROM else -(-self.count // BUNDLES)


def share_nodes(plan: Plan, cpus: Sequence[int], *, workers: int | None, memory_bytes: int) -> Slots:
    """Divide nodes of so many `cpus` into slots. workers, memory_bytes: caps of a node; see `plan_resources`.

    Where the widest tensor takes much of `memory_bytes`, a task claims so many processors that nodes with fewer of
    them get none: with more memory they do.
    """
    least = max(1, plan.widest_tile_elements * SCRATCH_BYTES_PER_ELEMENT)
    largest = max(cpus)
    at_once = max(1, min(workers or largest, memory_bytes // least, largest))
    claim = max(-(-largest // at_once), min(-(-sum(cpus) // MOST_SLOTS), *cpus))
    tasks = largest // claim
    memory = memory_bytes // tasks
    threads = claim if workers is None else max(1, workers // tasks)
    return Slots(
        count=sum(each // claim for each in cpus),
        cpus=claim,
        workers=max(1, min(threads, claim, memory // least)),
        memory_bytes=memory,
    )
