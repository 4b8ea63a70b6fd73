"""Which decisions stay in 16 bits: the fewest bytes within a KL, or the least KL within some bytes. Pure arithmetic.

Each decision g has a size, the bytes that keeping it costs, and a cost in KL that quantizing it has. The cost is the
mean of two measurements: what KL gains when g alone is quantized, and what it loses when g is taken out of all that is
quantized. Where KL is a quadratic form of the errors, as it is for small ones, that mean is g's Shapley value: its
interactions shared out evenly, so that all costs sum to the KL of everything quantized.

1. With costs that add up, the sets that no other beats in bytes and KL at once are found exactly (the list of
   nondominated sets of Nemhauser and Ullmann, 1969; thinned beyond `MOST_SETS`). They are a path from nothing kept to
   everything kept.
2. Some sets of the path are measured, which is the curve, and the path is bisected by *measured* KL, never by the sum
   of costs: that gives a set within the budget beside one that is not.
3. What interactions make of the sum is mended by measuring neighbours, most promising first: one decision given back,
   added, or exchanged for one or two others, and of the exchanges of more the `FAR` most promising. One that is better
   and within the budget takes the set's place, until there is none or the measurements are spent.

What holds of the result: its KL is measured and within the budget. Unless the measurements ran out, no single decision
can be given back (for a KL), and no set one exchange away, of one for one or two, that fits has less KL by more than
the standard error of the difference (for a size); beyond `NEAR` decisions only exchanges among the `NEAR` most
promising are tried. Where costs add up it is the best set of all. In general that is promised by nobody who does not
measure all 2ⁿ sets.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

MOST_SETS: Final = 4096
"""Nondominated sets that are carried along; beyond it, of those nearly alike in bytes the best are kept."""

NEAR: Final = 32
"""Decisions of each kind, kept and not, that exchanges are tried with."""

FAR: Final = 12
"""Exchanges of two, or for three, that are measured from a set, the most promising by the sum of costs."""

FAR_AMONG: Final = 10
"""Decisions of each kind that those exchanges are made up from: their number grows with its fifth power."""

_NEARER: Final = ((1, 1), (1, 2))
_FARTHER: Final = ((1, 3), (2, 1), (2, 2), (2, 3))
"""Exchanges, of how many decisions for how many."""

CURVE: Final = 8
"""Sets of the path between its ends that are measured, evenly by bytes."""

Kept = frozenset[int]
"""Numbers of the decisions that stay in 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One decision."""

    saved_bytes: int
    """What quantizing it saves, and keeping it costs; more than 0."""
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
    error: Callable[[Kept, Kept], float] = lambda _one, _other: 0.0
    """Standard error of the difference in KL between two sets that were measured."""
    known: dict[Kept, float] = field(default_factory=dict)

    def kl(self, kept: Kept) -> float:
        """Return the KL of a set, measured."""
        if kept not in self.known:
            self.known[kept] = self.measure(kept)
        return self.known[kept]

    def is_less(self, one: Kept, other: Kept) -> bool:
        """Whether the KL of one set is less than that of another by more than the error of the difference.

        Of many sets that are as good, one always measures best; on other texts it is another one.
        """
        return self.kl(one) < self.kl(other) and self.kl(one) + self.error(one, other) < self.kl(other)

    @property
    def spent(self) -> bool:
        """Whether no more may be measured."""
        return len(self.known) >= self.most


def costs(count: int, measured: Measured) -> list[float]:
    """Return what quantizing each of `count` decisions adds to KL, see above; 2 · count + 2 sets are measured."""
    most = measured.kl(frozenset())
    last = [most - measured.kl(frozenset({number})) for number in range(count)]
    return [(alone(number, count, measured) + last[number]) / 2 for number in range(count)]


def alone(number: int, count: int, measured: Measured) -> float:
    """Return what KL gains when of `count` decisions this one alone is quantized."""
    whole = frozenset(range(count))
    return measured.kl(whole - {number}) - measured.kl(whole)


def curve(path: Sequence[Kept], candidates: Sequence[Candidate]) -> list[int]:
    """Return which sets of a path to measure, from the first to the last, evenly by bytes."""
    sizes = [size(kept, candidates) for kept in path]
    wanted = (sizes[-1] * step // (CURVE + 1) for step in range(1, CURVE + 1))
    between = {min(bisect.bisect_left(sizes, size_wanted), len(path) - 1) for size_wanted in wanted}
    return sorted({0, *between, len(path) - 1})


def fewest_bytes(candidates: Sequence[Candidate], limit: float, measured: Measured) -> Found | None:
    """Return the set with the fewest bytes kept whose KL is at most `limit`; None if even all kept is beyond it."""
    path = nondominated(candidates)
    seen = curve(path, candidates)
    within = [place for place in seen if measured.kl(path[place]) <= limit]
    if not within:
        return None
    high = within[0]
    low = max((place for place in seen if place < high), default=high)
    while high - low > 1:
        middle = (low + high) // 2
        if measured.kl(path[middle]) <= limit:
            high = middle
        else:
            low = middle
    # Interactions may let a set within the limit that the sum of costs puts beyond it: one that was measured for them.
    inside = (kept for kept, kl in measured.known.items() if kl <= limit)
    return _improve(
        min((path[high], *inside), key=lambda kept: size(kept, candidates)),
        lambda kept: _cheaper(kept, candidates, limit, measured),
        better=lambda other, kept: measured.kl(other) <= limit and size(other, candidates) < size(kept, candidates),
        measured=measured,
    )


def least_kl(candidates: Sequence[Candidate], room_bytes: int, measured: Measured) -> Found:
    """Return the set with the least KL of those that cost at most `room_bytes`, which is 0 or more."""
    path = nondominated(candidates)
    for place in curve(path, candidates):
        measured.kl(path[place])
    fitting = [kept for kept in path if size(kept, candidates) <= room_bytes]
    start = fitting[-1]
    # The sum of costs is no more than a guess: one of the sets before may be better, or any that was measured.
    measured_ones = [kept for kept in measured.known if size(kept, candidates) <= room_bytes]
    for other in (*fitting[-3:-1], *measured_ones):
        start = other if measured.is_less(other, start) else start
    return _improve(
        start,
        lambda kept: _closer(kept, candidates, room_bytes),
        better=measured.is_less,
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


def _all(candidates: Sequence[Candidate]) -> Kept:
    return frozenset(range(len(candidates)))


def _thin(states: list[tuple[int, float, tuple[int, ...]]]) -> list[tuple[int, float, tuple[int, ...]]]:
    """Keep the best of each of MOST_SETS / 2 equal steps of bytes, and the two ends."""
    steps = MOST_SETS // 2
    width = max(1, -(-states[-1][0] // steps))
    best = {state[0] // width: state for state in states}  # The last of a step gains the most.
    return sorted({states[0], *best.values()}, key=lambda state: state[0])


def _improve(
    start: Kept,
    neighbours: Callable[[Kept], Iterator[Kept]],
    *,
    better: Callable[[Kept, Kept], bool],
    measured: Measured,
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
    yield from (kept - {number} for number in sorted(kept, key=lambda number: -candidates[number].saved_bytes))
    now = measured.kl(kept)
    giving, taking = _nearest(kept, candidates)
    swaps = [
        (candidates[other].saved_bytes - candidates[number].saved_bytes, kept - {number} | {other})
        for number in giving
        for other in taking
        if candidates[other].saved_bytes < candidates[number].saved_bytes
        and now + candidates[number].cost - candidates[other].cost <= limit
    ]
    yield from (other for _, other in sorted(swaps, key=lambda swap: (swap[0], sorted(swap[1]))))
    # What the sum of costs puts beyond the limit may be within it all the same.
    less = size(kept, candidates)
    fewer = (other for _, other in _far(kept, candidates, (*_NEARER, *_FARTHER)) if size(other, candidates) < less)
    yield from itertools.islice(fewer, FAR)


def _closer(kept: Kept, candidates: Sequence[Candidate], room_bytes: int) -> Iterator[Kept]:
    """Sets that fit: with one more decision, or one exchanged for one or two; the least sum of costs first."""
    free = room_bytes - size(kept, candidates)
    giving, taking = _nearest(kept, candidates)
    found: list[tuple[float, Kept]] = []
    for number in (None, *giving):
        less = kept if number is None else kept - {number}
        room = free if number is None else free + candidates[number].saved_bytes
        lost = 0.0 if number is None else candidates[number].cost
        sets = [{one} for one in taking]
        if number is not None:
            sets += [{one, other} for place, one in enumerate(taking) for other in taking[place + 1 :]]
        found += [
            (lost - math.fsum(candidates[one].cost for one in added), less | added)
            for added in sets
            if size(added, candidates) <= room
        ]
    yield from (other for _, other in sorted(found, key=lambda each: (each[0], sorted(each[1]))))
    far = (other for _, other in _far(kept, candidates, _FARTHER) if size(other, candidates) <= room_bytes)
    yield from itertools.islice(far, FAR)


def _far(kept: Kept, candidates: Sequence[Candidate], exchanges: Iterable[tuple[int, int]]) -> list[tuple[float, Kept]]:
    """Return the sets that are such exchanges away, of how many decisions for how many; the least cost first."""
    giving, taking = (numbers[:FAR_AMONG] for numbers in _nearest(kept, candidates))
    found = []
    for out, into in exchanges:
        for given, taken in itertools.product(
            itertools.combinations(giving, out), itertools.combinations(taking, into)
        ):
            lost = math.fsum(candidates[number].cost for number in given)
            gained = math.fsum(candidates[number].cost for number in taken)
            found.append((lost - gained, kept - {*given} | {*taken}))
    return sorted(found, key=lambda each: (each[0], sorted(each[1])))


def _nearest(kept: Kept, candidates: Sequence[Candidate]) -> tuple[list[int], list[int]]:
    """Return decisions that may be given back, least cost per byte first, and others that may be kept, most first."""

    def worth(number: int) -> float:
        return candidates[number].cost / candidates[number].saved_bytes

    giving = sorted(kept, key=worth)[:NEAR]
    taking = sorted((number for number in range(len(candidates)) if number not in kept), key=worth, reverse=True)
    return giving, taking[:NEAR]
