"""How often intervals hold the truth, and verdicts a false claim: enumerated where that is possible, else simulated.

Shares over the same items depend on two counts, so their probabilities are summed over all outcomes that can matter,
and the result is exact. FP8 flips few items, and the rare flips are where usual intervals fail.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fp8cli.core.comparing.comparison import Interval
from fp8cli.core.comparing.judging import gate_confidence, judge
from fp8cli.core.comparing.means import paired_t, perplexity_ratio
from fp8cli.core.comparing.recovery import recovery_of_means
from fp8cli.core.comparing.shares import agresti_caffo, paired_ratio_score, paired_score, wilson
from fp8cli.core.comparing.significance import mcnemar_exact, mcnemar_worse

ITEMS = (30, 250, 2_500)
RATES = (0.0, 0.004, 0.01, 0.03, 0.1)
NEGLIGIBLE = 1e-6
"""Probability of an outcome that is left out of a sum."""

Outcomes = list[tuple[int, int, float]]
"""Lost, gained, and how probable that is."""


@cache
def outcomes(items: int, loss: float, gain: float) -> Outcomes:
    """All outcomes of so many items, lost and gained with these probabilities."""
    losses, gains = (
        np.arange(stats.binom.ppf(NEGLIGIBLE, items, rate), stats.binom.isf(NEGLIGIBLE, items, rate) + 1)
        for rate in (loss, gain)
    )
    lost, gained = (each.ravel().astype(int) for each in np.meshgrid(losses, gains))
    lost, gained = lost[lost + gained <= items], gained[lost + gained <= items]
    cells = np.column_stack([lost, gained, items - lost - gained])
    probable = stats.multinomial.pmf(cells, items, [loss, gain, 1 - loss - gain])
    kept = probable > NEGLIGIBLE
    return list(zip(lost[kept].tolist(), gained[kept].tolist(), probable[kept].tolist(), strict=True))


def coverage(interval: Callable[..., Interval], items: int, loss: float, gain: float) -> float:
    """How often the interval holds gain − loss."""
    held = 0.0
    for lost, gained, probability in outcomes(items, loss, gain):
        found = interval(items, lost, gained)
        held += probability * (found.low <= gain - loss <= found.high)
    return held


def agresti_min(items: int, lost: int, gained: int, confidence: float = 0.95) -> Interval:
    """Half an item added to all four cells (Agresti and Min, Statistics in Medicine 24, 2005): the usual choice."""
    total = items + 2
    middle = (gained - lost) / total
    error = math.sqrt(lost + gained + 1 - (gained - lost) ** 2 / total) / total
    margin = float(stats.norm.ppf((1 + confidence) / 2)) * error
    return Interval(low=middle - margin, high=middle + margin, confidence=confidence, method="Agresti–Min")


def passes(items: int, loss: float, gain: float, margin: float) -> float:
    """How often a model that loses and gains with these probabilities passes the margin."""
    passed = 0.0
    for lost, gained, probability in outcomes(items, loss, gain):
        gate = paired_score(items, lost, gained, gate_confidence(0.95))
        passed += probability * (judge(gate, margin).verdict == "pass")
    return passed


@pytest.mark.parametrize("items", ITEMS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("part_lost", [0.5, 0.8, 1.0])
def test_the_interval_of_paired_shares_holds_the_truth(items: int, rate: float, part_lost: float) -> None:
    held = coverage(paired_score, items, rate * part_lost, rate * (1 - part_lost))
    # Score intervals keep their level on average over rates; a few points of it are a little below.
    assert held > 0.93
    if items * rate > 50:
        assert held < 0.965


def test_agresti_mins_interval_does_not_where_flips_are_rare() -> None:
    """Why no verdict rests on it."""
    assert coverage(agresti_min, 250, 0.01, 0.0) < 0.92
    assert coverage(paired_score, 250, 0.01, 0.0) > 0.95
    assert coverage(agresti_min, 250, 0.05, 0.05) == pytest.approx(0.95, abs=0.01)
    wrongly_passed = sum(
        probability
        for lost, gained, probability in outcomes(165, 0.01, 0.0)
        if agresti_min(165, lost, gained, 0.9).low > -0.01
    )
    assert wrongly_passed == pytest.approx(0.19, abs=0.005)


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("items", [30, 165, 250, 1_000])
@pytest.mark.parametrize("more_flips", [0.0, 0.02, 0.06])
def test_a_model_worse_by_the_margin_passes_in_5_of_100_runs_at_most(
    margin: float, items: int, more_flips: float
) -> None:
    wrongly = passes(items, margin + more_flips / 2, more_flips / 2, margin)
    assert wrongly < 0.06


def test_a_model_that_loses_nothing_passes_once_there_are_items_enough() -> None:
    assert passes(250, 0.0, 0.0, 0.01) == 0
    assert passes(300, 0.0, 0.0, 0.01) == pytest.approx(1, abs=1e-5)
    assert passes(2_500, 0.005, 0.005, 0.01) > 0.99


@pytest.mark.parametrize("items", [30, 250, 1_000])
@pytest.mark.parametrize("rate", [0.004, 0.03, 0.1])
def test_mcnemars_test_raises_a_false_alarm_in_5_of_100_runs_at_most(items: int, rate: float) -> None:
    found = outcomes(items, rate / 2, rate / 2)
    assert sum(probability for lost, gained, probability in found if mcnemar_exact(lost, gained) <= 0.05) <= 0.05
    assert sum(probability for lost, gained, probability in found if mcnemar_worse(lost, gained) <= 0.05) <= 0.05


@pytest.mark.parametrize("items", ITEMS)
@pytest.mark.parametrize("rate", [0.01, 0.03, 0.1])
def test_the_interval_of_recovery_holds_the_truth(items: int, rate: float) -> None:
    """Simulated: the number right on the base varies too."""
    draw = np.random.default_rng(items)
    right, loss, gain = 0.7, rate * 0.7, rate * 0.3
    truth = (right - loss + gain) / right
    cells = draw.multinomial(items, [right - loss, loss, gain, 1 - right - gain], 1_500)
    held = 0
    for kept, lost, gained, _ in cells.tolist():
        interval = paired_ratio_score(items, kept + lost, lost, gained)
        assert interval is not None
        held += interval.low <= truth <= interval.high
    assert held / len(cells) > 0.93


@pytest.mark.parametrize("items", ITEMS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.99])
def test_wilsons_interval_holds_the_truth(items: int, share: float) -> None:
    counts = np.arange(items + 1)
    held = sum(
        probability
        for count, probability in zip(counts.tolist(), stats.binom.pmf(counts, items, share).tolist(), strict=True)
        if probability > NEGLIGIBLE and wilson(count, items).low <= share <= wilson(count, items).high
    )
    assert held > 0.93


@pytest.mark.parametrize("items", [30, 250])
def test_the_unpaired_interval_of_shares_holds_the_truth(items: int) -> None:
    draw = np.random.default_rng(items)
    base, other = draw.binomial(items, 0.72, 3_000) / items, draw.binomial(items, 0.70, 3_000) / items
    found = [agresti_caffo(a, items, b, items) for a, b in zip(base.tolist(), other.tolist(), strict=True)]
    assert np.mean([each.low <= -0.02 <= each.high for each in found]) == pytest.approx(0.95, abs=0.015)


def share_held(found: list[Interval | None], truth: float) -> float:
    return float(np.mean([each is not None and each.low <= truth <= each.high for each in found]))


@pytest.mark.parametrize(("items", "runs"), [(30, 2_000), (250, 800), (2_500, 300)])
def test_the_paired_interval_of_means_holds_the_truth(items: int, runs: int) -> None:
    draw = np.random.default_rng(items)
    values = draw.normal(-0.1, 0.4, (runs, items))
    assert share_held([paired_t(each) for each in values.tolist()], -0.1) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("rate", [0.002, 0.01, 0.03, 0.1])
def test_the_paired_interval_holds_the_truth_where_few_items_differ(rate: float) -> None:
    """Scores of texts, of which most stay as they were; a t interval would hold it in as few as 39 of 100 runs."""
    draw = np.random.default_rng(1)
    changed = draw.random((800, 250)) < rate
    values = np.where(changed, -draw.random((800, 250)), 0.0).tolist()
    truth = -rate / 2
    assert share_held([paired_t(each, span=1.0) for each in values], truth) > 0.925
    if rate == 0.002:
        assert share_held([paired_t(each) for each in values], truth) < 0.5


def test_the_clustered_interval_holds_the_truth_where_items_resemble_each_other() -> None:
    draw = np.random.default_rng(2)
    clusters = np.repeat(np.arange(40), 6)
    shared: Any = draw.normal(0, 1, (800, 40))[:, clusters]
    values = (shared + draw.normal(0, 1, (800, 240))).tolist()
    assert share_held([paired_t(each, clusters=clusters.tolist()) for each in values], 0.0) > 0.93
    assert share_held([paired_t(each) for each in values], 0.0) < 0.75


@pytest.mark.parametrize(("items", "runs"), [(30, 1_500), (250, 600), (2_500, 150)])
def test_the_interval_of_a_perplexity_ratio_holds_the_truth(items: int, runs: int) -> None:
    draw = np.random.default_rng(items)
    held = []
    for _ in range(runs):
        tokens = draw.integers(20, 200, items)
        base = draw.gamma(4, 0.5, items) * tokens
        other = base + tokens * 0.01 + draw.normal(0, 0.3, items) * np.sqrt(tokens)
        _, interval = perplexity_ratio(base.tolist(), other.tolist(), tokens.tolist())
        held.append(interval)
    assert share_held(held, float(np.exp(0.01))) == pytest.approx(0.945, abs=0.03)


@pytest.mark.parametrize(("items", "runs"), [(30, 1_500), (250, 500)])
def test_the_interval_of_recovery_of_means_holds_the_truth(items: int, runs: int) -> None:
    draw = np.random.default_rng(items)
    base = draw.beta(4, 2, (runs, items))
    other = base * draw.beta(19, 1, (runs, items))
    found = [recovery_of_means(a, b) for a, b in zip(base.tolist(), other.tolist(), strict=True)]
    assert share_held(found, 95.0) == pytest.approx(0.945, abs=0.03)
