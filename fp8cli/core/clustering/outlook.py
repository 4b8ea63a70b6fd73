"""What a cluster would make of a plan, for several numbers of nodes, before any is asked; and whether it is worth it.

An estimate from rates that are stated with it. Nodes are taken to be as this machine, on storage that keeps up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.core.clustering.batches import cut_batches
from fp8cli.core.clustering.choice import ClusterChoice
from fp8cli.core.clustering.schedule import Rates, simulate
from fp8cli.core.clustering.slots import share_nodes
from fp8cli.core.quantizing.pieces import cut
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import Resources

NODE_COUNTS: Final = (1, 2, 4, 10, 100, 1000)

CPU_BYTES_PER_SECOND: Final = 500_000_000
"""Read plus written by one processor: half of what README measures on two."""

BATCH_SECONDS: Final = 0.01
"""Lost by a slot for every batch; see `scripts/bench_cluster.py`."""

DRIVER_SECONDS: Final = 0.0008
"""Of the driver, for every batch; likewise."""

BUNDLED_DRIVER_SECONDS: Final = 0.0003
"""The same where a relay hands batches out for it: see `slots.BUNDLED_FROM`."""

START_SECONDS: Final = 10.0
"""Until a cluster of one machine stands and its nodes have answered."""

JOIN_SECONDS: Final = 4.0
"""Until one that runs already is joined and its nodes have answered."""


@dataclass(frozen=True, kw_only=True)
class NodesOutlook:
    """The plan on so many nodes."""

    nodes: int
    slots: int
    """Tasks at once."""
    batches: int
    largest_batch_bytes: int
    """Read plus written."""
    seconds: float
    """Of work, without the beginning."""
    efficiency: float


@dataclass(frozen=True, kw_only=True)
class ClusterOutlook:
    """All of it, with the rates it was made from."""

    address: str | None
    rows: tuple[NodesOutlook, ...]
    cpus_per_node: int
    cpu_bytes_per_second: int
    batch_seconds: float
    driver_seconds: float
    bundled_driver_seconds: float
    """For more than so many tasks at once that batches are handed out in bundles."""
    start_seconds: float
    local_seconds: float
    """Of this machine alone, without a cluster."""

    @property
    def is_worth_it(self) -> bool:
        """Whether a cluster that could be twice as fast as this machine would be done before it."""
        return self.local_seconds > self.start_seconds + self.local_seconds / 2

    @property
    def warning(self) -> str | None:
        """What to say before a cluster is begun that is not worth it."""
        if self.is_worth_it:
            return None
        return (
            f"a cluster is not worth it here: it takes about {self.start_seconds:.0f} s to begin, and this machine "
            f"about {self.local_seconds:.1f} s for all of the work without --cluster"
        )


def foresee_cluster(
    plan: Plan,
    choice: ClusterChoice,
    resources: Resources,
    *,
    workers: int | None,
    cpus: int,
    local_seconds: float,
    counts: Sequence[int] = NODE_COUNTS,
) -> ClusterOutlook:
    """Estimate a plan on clusters of so many nodes with `cpus` processors each. Reads nothing, asks no one."""
    pieces = cut(plan, resources.piece_bytes)
    rows = []
    for count in counts:
        slots = share_nodes(plan, [cpus] * count, workers=workers, memory_bytes=resources.memory_bytes)
        batches = cut_batches(plan, pieces, slots=slots.count, share_bytes=choice.batch_bytes)
        sizes = [batch.moved_bytes for batch in batches]
        rates = Rates(
            slot_bytes_per_second=CPU_BYTES_PER_SECOND * slots.workers,
            batch_seconds=BATCH_SECONDS,
            driver_seconds=DRIVER_SECONDS if slots.bundle == 1 else BUNDLED_DRIVER_SECONDS,
        )
        schedule = simulate(sizes, slots=slots.count, rates=rates)
        rows.append(
            NodesOutlook(
                nodes=count,
                slots=slots.count,
                batches=len(batches),
                largest_batch_bytes=max(sizes, default=0),
                seconds=schedule.seconds,
                efficiency=schedule.efficiency,
            )
        )
    return ClusterOutlook(
        address=choice.address,
        rows=tuple(rows),
        cpus_per_node=cpus,
        cpu_bytes_per_second=CPU_BYTES_PER_SECOND,
        batch_seconds=BATCH_SECONDS,
        driver_seconds=DRIVER_SECONDS,
        bundled_driver_seconds=BUNDLED_DRIVER_SECONDS,
        start_seconds=START_SECONDS if choice.address is None else JOIN_SECONDS,
        local_seconds=local_seconds,
    )
