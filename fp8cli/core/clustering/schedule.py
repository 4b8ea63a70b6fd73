"""How long a cluster takes for some batches: the plan's real batches, worked through event by event at stated rates.

One driver hands batches out one after the other and takes their results in; a slot takes the next batch when it has
none; all slots share what the storage can do. Nothing is drawn by chance: nodes are alike and none fails.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What is assumed, or was measured."""

    slot_bytes_per_second: float
    """Read plus written, by one slot that has the storage for itself."""
    batch_seconds: float
    """That a slot loses for every batch."""
    driver_seconds: float
    """That the driver is busy for every batch."""
    storage_bytes_per_second: float | None = None
    """Of all nodes together; None: it keeps up."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What comes of it."""

    seconds: float
    """From the first batch handed out to the last one done."""
    ideal_seconds: float
    """If every slot worked from the beginning to the end, at the rate it has for itself."""

    @property
    def efficiency(self) -> float:
        """Share of the slots' time that moves bytes, at the full rate."""
        return self.ideal_seconds / self.seconds if self.seconds else 1.0


def simulate(batches: Sequence[int], *, slots: int, rates: Rates) -> Schedule:
    """Work through batches of so many bytes, in this order. The driver hands out at most two for every slot ahead."""
    rate = rates.slot_bytes_per_second
    if rates.storage_bytes_per_second is not None:
        rate = min(rate, rates.storage_bytes_per_second / slots)
    free = [0.0] * slots
    under_way: list[float] = []
    handed_out = end = 0.0
    for size in batches:
        if len(under_way) >= 2 * slots:
            handed_out = max(handed_out, heapq.heappop(under_way))
        handed_out += rates.driver_seconds
        begun = max(heapq.heappop(free), handed_out)
        done = begun + rates.batch_seconds + size / rate
        heapq.heappush(free, done)
        heapq.heappush(under_way, done)
        end = max(end, done)
    return Schedule(seconds=end, ideal_seconds=sum(batches) / (slots * rates.slot_bytes_per_second))
