"""Which decisions stay in 16 bits: the fewest bytes within a KL, or the least KL within some bytes. Pure arithmetic.

Each decision g has a size in bytes that keeping it costs, and a cost in KL that quantizing it has. The cost is the mean
of two measurements: KL with g alone quantized, and what KL loses when g is taken out of all that is quantized. For
small errors KL is a quadratic form of them, and that mean is then g's Shapley value: its share of the whole with every
other decision counted half, so that all costs sum to the KL of everything quantized.

1. With costs that add up, the sets that no other beats in bytes and KL at once are found exactly (Nemhauser and
   Ullmann's list of nondominated sets, thinned beyond `MOST_SETS`). They are the path from nothing kept to all.
2. The path is bisected by *measured* KL, never by the sum of costs: it gives a set that meets the budget, beside one
   that does not.
3. What interaction of layers and rounding make of the sum is mended by measuring neighbours, most promising first, one
   decision given back, added, or exchanged for another: any that is better and meets the budget takes the set's place,
   until none is left or `most` measurements are spent.

What holds of the result: its KL was measured and it meets the budget; and unless the measurements ran out, no decision
of it can be given back by itself (for a KL), and no neighbour that fits has less KL (for a size). It is the best of all
sets where costs add up. In general that cannot be promised: 2ⁿ sets cannot be measured.
"""

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

MOST_SETS: Final = 4096
"""Nondominated sets that are carried along; beyond it, of those nearly alike in bytes the best are kept."""

Kept = frozenset[int]
"""Numbers of the decisions that stay in 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One decision."""

    saved_bytes: int
    """What quantizing it saves, so what keeping it costs."""
    cost: float
    """What quantizing it adds to KL, see above; noise may make it negative."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to."""

    kept: Kept
    exhausted: bool
    """Whether the measurements ran out before every neighbour of it was measured."""


@dataclass(kw_only=True)
class Measured:
    """Sets whose KL is known; a set is measured once."""

    measure: Callable[[Kept], float]
    most: int
    """Measurements that may be made."""
    known: dict[Kept, float] = field(default_factory=dict)

    def kl(self, kept: Kept) -> float:
        """Return the KL of a set, measured."""
        if kept not in self.known:
            self.known[kept] = self.measure(kept)
        return self.known[kept]

    @property
    def spent(self) -> bool:
        """Whether no more may be measured."""
        return len(self.known) >= self.most


def fewest_bytes(candidates: Sequence[Candidate], limit: float, measured: Measured) -> Found | None:
    """Return the set with the fewest bytes kept whose KL is at most `limit`; None if even all kept is beyond it."""
    path = nondominated(candidates)
    if measured.kl(frozenset()) <= limit:
        return Found(kept=frozenset(), exhausted=False)
    if measured.kl(_all(candidates)) > limit:
        return None
    low, high = 0, len(path) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if measured.kl(path[middle]) <= limit:
            high = middle
        else:
            low = middle
    return _improve(
        path[high],
        lambda kept: _cheaper(kept, candidates, limit, measured),
        better=lambda other, kept: measured.kl(other) <= limit and size(other, candidates) < size(kept, candidates),
        measured=measured,
    )


def least_kl(candidates: Sequence[Candidate], room_bytes: int, measured: Measured) -> Found:
    """Return the set with the least KL of those that cost at most `room_bytes`, which is 0 or more."""
    path = nondominated(candidates)
    sizes = [size(kept, candidates) for kept in path]
    last = bisect.bisect_right(sizes, room_bytes) - 1
    # The sum of costs is no more than a guess: of the last sets that fit, the one that measures best is the start.
    start = min(path[max(last - 2, 0) : last + 1], key=measured.kl)
    return _improve(
        start,
        lambda kept: _closer(kept, candidates, room_bytes),
        better=lambda other, kept: measured.kl(other) < measured.kl(kept),
        measured=measured,
    )


def nondominated(candidates: Sequence[Candidate]) -> list[Kept]:
    """Return the sets that no other beats in bytes and in the sum of costs, from nothing kept on, by bytes.

    The last keeps all: a decision whose cost is not above 0 is kept in it alone.
    """
    states: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    for number, candidate in enumerate(candidates):
        with_it = ((b + candidate.saved_bytes, g + candidate.cost, (*k, number)) for b, g, k in states)
        merged = sorted([*states, *with_it], key=lambda state: (state[0], -state[1]))
        states = []
        for state in merged:
            if not states or state[1] > states[-1][1]:
                states.append(state)
        if len(states) > MOST_SETS:
            states = _thin(states)
    path = [frozenset(kept) for _, _, kept in states]
    if path[-1] != _all(candidates):
        path.append(_all(candidates))
    return path


def size(kept: Iterable[int], candidates: Sequence[Candidate]) -> int:
    """Return the bytes that keeping these decisions costs."""
    return sum(candidates[number].saved_bytes for number in kept)


def predicted(kept: Kept, candidates: Sequence[Candidate]) -> float:
    """Return the sum of the costs of all that is not kept."""
    return math.fsum(each.cost for number, each in enumerate(candidates) if number not in kept)


def _all(candidates: Sequence[Candidate]) -> Kept:
    return frozenset(range(len(candidates)))


def _thin(states: list[tuple[int, float, tuple[int, ...]]]) -> list[tuple[int, float, tuple[int, ...]]]:
    """Keep the best of each of MOST_SETS / 2 equal steps of bytes, and the two ends."""
    steps = MOST_SETS // 2
    width = max(1, -(-states[-1][0] // steps))
    best = {state[0] // width: state for state in states}  # The last of a step gains the most.
    return sorted({states[0], *best.values()}, key=lambda state: state[0])


def _improve(
    start: Kept, neighbours: Callable[[Kept], Iterator[Kept]], *, better: Callable[[Kept, Kept], bool], measured: Measured
) -> Found:
    kept = start
    while True:
        for other in neighbours(kept):
            if measured.spent and other not in measured.known:
                return Found(kept=kept, exhausted=True)
            if better(other, kept):
                kept = other
                break
        else:
            return Found(kept=kept, exhausted=False)


def _cheaper(kept: Kept, candidates: Sequence[Candidate], limit: float, measured: Measured) -> Iterator[Kept]:
    """Sets with fewer bytes: every single decision given back, then exchanges that may be within the limit."""
    back = sorted(kept, key=lambda number: -candidates[number].saved_bytes)
    yield from (kept - {number} for number in back)
    now = measured.kl(kept)
    swaps = [
        (size(kept, candidates) - out.saved_bytes + into.saved_bytes, kept - {number} | {other})
        for number, out in ((number, candidates[number]) for number in kept)
        for other, into in enumerate(candidates)
        if other not in kept and into.saved_bytes < out.saved_bytes and now + out.cost - into.cost <= limit
    ]
    yield from (other for _, other in sorted(swaps, key=lambda swap: (swap[0], sorted(swap[1]))))


def _closer(kept: Kept, candidates: Sequence[Candidate], room_bytes: int) -> Iterator[Kept]:
    """Sets that fit: with one more decision, or one exchanged for one or for two; the least sum of costs first."""
    free = room_bytes - size(kept, candidates)
    others = [number for number in range(len(candidates)) if number not in kept]
    found = [kept | {other} for other in others if candidates[other].saved_bytes <= free]
    for number in kept:
        room = free + candidates[number].saved_bytes
        fitting = [other for other in others if candidates[other].saved_bytes <= room]
        found += [kept - {number} | {other} for other in fitting]
        found += [
            kept - {number} | {one, other}
            for place, one in enumerate(fitting)
            for other in fitting[place + 1 :]
            if candidates[one].saved_bytes + candidates[other].saved_bytes <= room
        ]
    yield from sorted(found, key=lambda other: (predicted(other, candidates), sorted(other)))
