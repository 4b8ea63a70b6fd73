"""Choosing what stays in 16 bits: beside exhaustive search, where KL adds up and where it does not."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from fp8cli.measurer.budget_choosing import (
    CURVE,
    MOST_SETS,
    Candidate,
    Kept,
    Measured,
    costs,
    curve,
    fewest_bytes,
    least_kl,
    nondominated,
    size,
)

ENOUGH = 10**6


def subsets(count: int) -> Iterator[Kept]:
    for number in range(count + 1):
        yield from map(frozenset, itertools.combinations(range(count), number))


def additive(gains: Sequence[float]) -> Callable[[Kept], float]:
    return lambda kept: sum(gain for number, gain in enumerate(gains) if number not in kept)


def quadratic(count: int, seed: int) -> Callable[[Kept], float]:
    """KL as it is for small errors, with interactions of both signs: e'e, where e adds up the errors of decisions."""
    chance = random.Random(seed)
    scales = [10 ** chance.uniform(-1, 0.5) for _ in range(count)]
    errors = [[chance.gauss(0, scale) for _ in range(24)] for scale in scales]
    return lambda kept: sum(
        sum(column for number, column in enumerate(axis) if number not in kept) ** 2
        for axis in zip(*errors, strict=True)
    )


def sizes_of(count: int, seed: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.choice((100, 150, 300, 457)) for _ in range(count)]


def candidates_of(sizes: Sequence[int], measured: Measured) -> list[Candidate]:
    found = costs(len(sizes), measured)
    return [Candidate(saved_bytes=each, cost=cost) for each, cost in zip(sizes, found, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_where_kl_adds_up_the_fewest_bytes_are_found(seed: int) -> None:
    chance = random.Random(seed)
    kl = additive([10 ** chance.uniform(-5, -2) for _ in range(9)])
    measured = Measured(measure=kl, most=ENOUGH)
    candidates = candidates_of(sizes_of(9, seed), measured)
    limit = kl(frozenset()) * chance.random()
    found = fewest_bytes(candidates, limit, measured)
    assert found is not None
    best = min(size(kept, candidates) for kept in subsets(9) if kl(kept) <= limit)
    assert kl(found.kept) <= limit
    assert size(found.kept, candidates) == best


@pytest.mark.parametrize("seed", range(20))
def test_where_kl_adds_up_the_least_kl_within_a_size_is_found(seed: int) -> None:
    chance = random.Random(seed)
    kl = additive([10 ** chance.uniform(-5, -2) for _ in range(9)])
    measured = Measured(measure=kl, most=ENOUGH)
    candidates = candidates_of(sizes_of(9, seed), measured)
    room = int(sum(each.saved_bytes for each in candidates) * chance.random())
    found = least_kl(candidates, room, measured)
    assert size(found.kept, candidates) <= room
    assert kl(found.kept) == pytest.approx(min(kl(kept) for kept in subsets(9) if size(kept, candidates) <= room))


def test_where_it_does_not_add_up_the_budget_is_met_and_the_result_is_near_the_best() -> None:
    optimal, excess = 0, []
    for seed in range(40):
        kl = quadratic(9, seed)
        measured = Measured(measure=kl, most=ENOUGH)
        candidates = candidates_of(sizes_of(9, seed), measured)
        limit = kl(frozenset()) * random.Random(seed).random()
        found = fewest_bytes(candidates, limit, measured)
        assert found is not None
        assert kl(found.kept) <= limit
        assert not found.exhausted
        # As the docstring promises: nothing can be given back.
        assert all(kl(found.kept - {number}) > limit for number in found.kept)
        best = min(size(kept, candidates) for kept in subsets(9) if kl(kept) <= limit)
        optimal += size(found.kept, candidates) == best
        excess.append(size(found.kept, candidates) / max(best, 1))
    assert optimal >= 36
    assert sum(excess) / len(excess) < 1.02


def test_where_it_does_not_add_up_no_exchange_within_a_size_has_less_kl() -> None:
    optimal = 0
    for seed in range(40):
        kl = quadratic(9, seed)
        measured = Measured(measure=kl, most=ENOUGH)
        candidates = candidates_of(sizes_of(9, seed), measured)
        room = sum(each.saved_bytes for each in candidates) // 2
        found = least_kl(candidates, room, measured)
        assert size(found.kept, candidates) <= room
        outside = set(range(9)) - found.kept
        for number, other in itertools.product(found.kept, outside):
            swapped = found.kept - {number} | {other}
            assert size(swapped, candidates) > room or kl(swapped) >= kl(found.kept)
        optimal += kl(found.kept) == min(kl(kept) for kept in subsets(9) if size(kept, candidates) <= room)
    assert optimal >= 33


def test_costs_are_shares_of_the_whole_where_kl_is_quadratic() -> None:
    kl = quadratic(7, 3)
    assert sum(costs(7, Measured(measure=kl, most=ENOUGH))) == pytest.approx(kl(frozenset()))


def test_a_budget_that_everything_meets_keeps_nothing() -> None:
    measured = Measured(measure=additive([0.1, 0.2]), most=ENOUGH)
    found = fewest_bytes(candidates_of([100, 100], measured), 0.5, measured)
    assert found is not None
    assert found.kept == frozenset()


def test_a_budget_that_not_even_all_in_16_bits_meets_has_no_answer() -> None:
    # As with a KV cache in FP8: its error stays whatever is kept.
    measured = Measured(measure=lambda kept: 0.3 + 0.1 * (2 - len(kept)), most=ENOUGH)
    assert fewest_bytes(candidates_of([100, 100], measured), 0.2, measured) is None


def test_no_budget_at_all_keeps_everything() -> None:
    measured = Measured(measure=additive([0.1, 0.2]), most=ENOUGH)
    found = fewest_bytes(candidates_of([100, 100], measured), 0.0, measured)
    assert found is not None
    assert found.kept == {0, 1}


def test_measurements_that_run_out_are_told_and_the_budget_is_met_all_the_same() -> None:
    kl = quadratic(12, 1)
    sizes = sizes_of(12, 1)
    measured = Measured(measure=kl, most=2 * 12 + 2)
    candidates = candidates_of(sizes, measured)
    found = fewest_bytes(candidates, kl(frozenset()) / 40, measured)
    assert found is not None
    assert found.exhausted
    assert kl(found.kept) <= kl(frozenset()) / 40
    # The curve and the bisection are always made; nothing comes after them.
    assert len(measured.known) <= 2 * 12 + 2 + CURVE + 12


def test_an_exchange_is_not_made_for_a_difference_that_may_be_chance() -> None:
    kl = additive([0.3, 0.2, 0.1, 0.4])

    def luckily(kept: Kept) -> float:
        # On these texts the third decision with the fourth looks a little better than the costs say.
        return kl(kept) - (0.23 if kept == {2, 3} else 0.0)

    for error, kept in ((0.0, {2, 3}), (0.01, {2, 3}), (0.05, {0, 3})):
        measured = Measured(measure=luckily, most=ENOUGH, error=lambda _one, _other, error=error: error)
        candidates = [Candidate(saved_bytes=10, cost=cost) for cost in (0.3, 0.2, 0.2, 0.4)]
        assert luckily(frozenset({0, 3})) - luckily(frozenset({2, 3})) == pytest.approx(0.03)
        assert least_kl(candidates, 20, measured).kept == kept


def test_a_set_is_measured_once() -> None:
    asked: list[Kept] = []

    def kl(kept: Kept) -> float:
        asked.append(kept)
        return additive([0.3, 0.2, 0.1, 0.4])(kept)

    measured = Measured(measure=kl, most=ENOUGH)
    candidates = candidates_of([1, 2, 3, 4], measured)
    fewest_bytes(candidates, 0.35, measured)
    least_kl(candidates, 5, measured)
    assert len(asked) == len(set(asked))


def test_the_path_goes_from_nothing_to_everything_and_no_set_of_it_beats_another() -> None:
    chance = random.Random(0)
    candidates = [Candidate(saved_bytes=chance.choice((3, 5, 9)), cost=chance.gauss(1, 1)) for _ in range(10)]
    path = nondominated(candidates)
    assert (path[0], path[-1]) == (frozenset(), frozenset(range(10)))
    sizes = [size(kept, candidates) for kept in path]
    gains = [sum(candidates[number].cost for number in kept) for kept in path[:-1]]
    assert sizes == sorted(set(sizes))
    assert gains == sorted(set(gains))
    for kept in subsets(10):
        room = size(kept, candidates)
        best = max(gain for gain, other in zip(gains, sizes, strict=False) if other <= room)
        assert sum(candidates[number].cost for number in kept) <= best + 1e-9


def test_a_path_of_many_decisions_is_thinned_and_still_near_the_best() -> None:
    chance = random.Random(5)
    candidates = [Candidate(saved_bytes=chance.randrange(10**6, 10**7), cost=chance.expovariate(1)) for _ in range(100)]
    path = nondominated(candidates)
    assert len(path) <= MOST_SETS + 1
    order = sorted(range(100), key=lambda number: -candidates[number].cost / candidates[number].saved_bytes)
    greedy: list[int] = []
    room = sum(each.saved_bytes for each in candidates) // 3
    for number in order:
        if size([*greedy, number], candidates) <= room:
            greedy.append(number)
    fitting = [kept for kept in path if size(kept, candidates) <= room]
    gain = max(sum(candidates[number].cost for number in kept) for kept in fitting)
    assert gain >= 0.999 * sum(candidates[number].cost for number in greedy)


def test_a_curve_has_both_ends_and_points_between_them() -> None:
    candidates = [Candidate(saved_bytes=10, cost=1.0 / (1 + number)) for number in range(40)]
    path = nondominated(candidates)
    points = curve(path, candidates)
    assert (points[0], points[-1]) == (0, len(path) - 1)
    assert len(points) == CURVE + 2
    assert curve(nondominated(candidates[:1]), candidates[:1]) == [0, 1]
