"""Runs for single sets: what is settled on is within the budget by such a run, in few of them."""

import itertools
import math
from collections.abc import Callable, Mapping

import pytest

from fp8cli.measurer.budget_choosing import Found, Kept
from fp8cli.measurer.budget_settling import MOST_RUNS, Settled, settle_kl, settle_outputs

SIZES = (1, 2, 4, 8, 16)
COSTS = (5.0, 4.0, 3.0, 2.0, 1.0)
EVERYTHING = frozenset(range(5))
SETS = [frozenset(chosen) for count in range(6) for chosen in itertools.combinations(range(5), count)]


def size(kept: Kept) -> int:
    return sum(SIZES[number] for number in kept)


def seen(kept: Kept) -> float:
    return math.fsum(cost for number, cost in enumerate(COSTS) if number not in kept)


def fewest(limit: float) -> Found | None:
    """Return the best of all sets, by what is seen."""
    within = [kept for kept in SETS if seen(kept) <= limit]
    return Found(kept=min(within, key=size), exhausted=False) if within else None


class Runs:
    """Runs that come out as some function of what is seen, counted."""

    def __init__(self, come_out: Callable[[Kept], float]) -> None:
        self.come_out = come_out
        self.made: list[Kept] = []

    def __call__(self, kept: Kept) -> float:
        self.made.append(kept)
        return self.come_out(kept)


def settle(limit: float, runs: Runs) -> Settled:
    return settle_kl(fewest, limit, everything=EVERYTHING, seen=seen, run=runs, size=size)


def test_a_run_that_comes_out_as_seen_is_the_only_one() -> None:
    runs = Runs(seen)
    assert settle(6, runs) == Settled(kept=frozenset({0, 1}), exhausted=False)
    assert runs.made == [frozenset({0, 1})]


@pytest.mark.parametrize("factor", [1.1, 1.4, 2.0, 0.9, 0.6])
def test_runs_that_come_out_above_or_below_by_some_share_lead_to_the_best_set_there_is(factor: float) -> None:
    for limit in (3, 5, 6, 8, 11):
        runs = Runs(lambda kept: factor * seen(kept))
        settled = settle(limit, runs)
        best = min((kept for kept in SETS if factor * seen(kept) <= limit), key=size)
        assert settled == Settled(kept=best, exhausted=False)
        assert len(runs.made) == len(set(runs.made)) <= 3


def test_a_set_beyond_the_budget_by_its_own_run_is_never_settled_on() -> None:
    # All that was seen to be just within the budget is not.
    runs = Runs(lambda kept: seen(kept) + (1.5 if seen(kept) > 4 else 0))
    settled = settle(6, runs)
    assert settled.kept is not None
    assert runs.come_out(settled.kept) <= 6
    assert settled.kept in runs.made
    assert all(size(settled.kept) <= size(kept) for kept in runs.made if runs.come_out(kept) <= 6)


def test_runs_end_after_some_and_say_so() -> None:
    # Whatever is asked for, the next set is beyond it by a hair.
    runs = Runs(lambda kept: 9.0 - len(kept) / 1000)
    settled = settle_kl(
        lambda limit: Found(kept=frozenset(range(math.ceil(20 - limit))), exhausted=False),
        8.9,
        everything=frozenset(range(20)),
        seen=lambda kept: 20.0 - len(kept),
        run=runs,
        size=len,
    )
    assert [len(kept) for kept in runs.made] == [12, 13, 14, 15, 16]
    assert len(runs.made) == MOST_RUNS
    assert settled == Settled(kept=None, exhausted=True)


def test_everything_in_16_bits_needs_no_run() -> None:
    runs = Runs(seen)
    assert settle(0, runs) == Settled(kept=EVERYTHING, exhausted=False)
    assert not runs.made


def test_a_floor_above_the_budget_has_no_answer() -> None:
    runs = Runs(seen)
    none = settle_kl(lambda _: None, 1, everything=EVERYTHING, seen=seen, run=runs, size=size)
    assert none == Settled(kept=None, exhausted=False)
    assert not runs.made


def test_a_search_that_ran_out_of_measurements_is_told() -> None:
    kept = frozenset({0, 1})
    found = Found(kept=kept, exhausted=True)
    settled = settle_kl(lambda _: found, 6, everything=EVERYTHING, seen=seen, run=seen, size=size)
    assert settled == Settled(kept=kept, exhausted=True)


def test_groups_that_turn_out_too_noisy_in_a_run_without_others_are_kept_too() -> None:
    def run(kept: Kept) -> Mapping[int, float]:
        # What is kept takes the noise of the next one up.
        return {number: 0.9 if number - 1 in kept and number < 3 else 0.1 for number in EVERYTHING - kept}

    asked: list[Kept] = []

    def counted(kept: Kept) -> Mapping[int, float]:
        asked.append(kept)
        return run(kept)

    settled = settle_outputs(frozenset({0}), counted, most=0.5, everything=EVERYTHING)
    assert settled == Settled(kept=frozenset({0, 1, 2}), exhausted=False)
    assert asked == [frozenset({0}), frozenset({0, 1}), frozenset({0, 1, 2})]


def test_outputs_that_never_settle_end_in_everything_or_in_no_answer() -> None:
    loud = settle_outputs(
        frozenset(), lambda kept: dict.fromkeys(EVERYTHING - kept, 1.0), most=0.5, everything=EVERYTHING
    )
    assert loud == Settled(kept=EVERYTHING, exhausted=False)
    many = frozenset(range(100))

    def one_more(kept: Kept) -> Mapping[int, float]:
        return {number: float(number == len(kept)) for number in many - kept}

    assert settle_outputs(frozenset(), one_more, most=0.5, everything=many) == Settled(kept=None, exhausted=True)
