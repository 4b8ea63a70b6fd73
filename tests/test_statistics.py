"""Statistics of a comparison: against scipy and published numbers, at their edges, and with the properties due."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from fp8cli.core.comparing.comparison import Interval
from fp8cli.core.comparing.distributions import (
    binomial_upper_tail,
    normal_quantile,
    normal_upper_tail,
    t_quantile,
    t_upper_tail,
)
from fp8cli.core.comparing.judging import gate_confidence, judge, judge_ratio
from fp8cli.core.comparing.means import FEW, paired_t, perplexity_ratio, ratio_of_means, unpaired_normal
from fp8cli.core.comparing.recovery import (
    recovery,
    recovery_of_means,
    recovery_of_perplexity,
    recovery_of_shares,
)
from fp8cli.core.comparing.shares import agresti_caffo, paired_ratio_score, paired_score, wilson
from fp8cli.core.comparing.significance import holm, mcnemar_exact, mcnemar_worse, paired_t_test, unpaired_z_test
from fp8cli.core.comparing.totals import weigh

Flips = tuple[int, int, int, int]
"""Right on both, lost, gained, wrong on both."""

flips = st.tuples(*[st.integers(0, 400)] * 4).filter(any)
finite = st.floats(-100, 100)
differences = st.lists(finite, min_size=2, max_size=60)
confidences = st.floats(0.5, 0.999)


def ends(interval: Interval | None) -> tuple[float, float]:
    assert interval is not None
    return interval.low, interval.high


def of(low: float, high: float, confidence: float = 0.9) -> Interval:
    return Interval(low=low, high=high, confidence=confidence, method="by hand")


# Distributions


@pytest.mark.parametrize("freedom", [1, 2, 3, 9.5, 29, 249, 2_499, 14_041, 1e6])
def test_tails_of_students_t_are_scipys(freedom: float) -> None:
    for t in (-40, -3.2, -1, -1e-3, 0, 0.3, 1, 1.96, 2.7, 6, 37.0):
        assert t_upper_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-9, abs=1e-300)
        assert abs(t_upper_tail(t, freedom) - stats.t.sf(t, freedom)) < 1e-10
    for p in (0.001, 0.025, 0.3, 0.5, 0.8, 0.95, 0.975, 0.9999):
        assert t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-10, abs=1e-10)


def test_students_t_of_one_degree_is_cauchys_distribution() -> None:
    for t in (1e-8, 0.1, 3.0, 1e6):
        assert t_upper_tail(t, 1) == pytest.approx(math.atan2(1, t) / math.pi, rel=1e-12)


def test_tails_of_the_binomial_are_scipys() -> None:
    draw = random.Random(0)
    for trials in (0, 1, 2, 9, 48, 95, 1_000, 100_000):
        for share in (0.5, 0.01, 0.97):
            for _ in range(20):
                spread = 4 * math.sqrt(trials * share * (1 - share))
                successes = round(trials * share + draw.uniform(-spread, spread))
                expected = stats.binom.sf(successes - 1, trials, share)
                assert abs(binomial_upper_tail(successes, trials, share) - expected) < 1e-10


def test_tails_of_a_fair_coin_are_counted_exactly() -> None:
    for trials, successes in ((24, 14), (40, 22), (60, 30), (95, 60)):
        expected = sum(math.comb(trials, count) for count in range(successes, trials + 1)) / 2**trials
        assert binomial_upper_tail(successes, trials, 0.5) == pytest.approx(expected, rel=1e-13)


def test_a_tiny_tail_keeps_its_digits() -> None:
    assert t_upper_tail(30, 200) == pytest.approx(stats.t.sf(30, 200), rel=1e-10)
    assert normal_upper_tail(30) == pytest.approx(stats.norm.sf(30), rel=1e-10)
    assert binomial_upper_tail(1_000, 1_000, 0.5) == pytest.approx(0.5**1_000, rel=1e-10)
    assert normal_quantile(0.975) == pytest.approx(1.959963984540054, abs=1e-14)


@pytest.mark.parametrize("call", [lambda: t_upper_tail(1, 0), lambda: t_quantile(0, 5), lambda: t_quantile(1, 5)])
def test_distributions_refuse_what_has_no_answer(call: object) -> None:
    with pytest.raises(ValueError, match=r"degrees of freedom|between 0 and 1"):
        call()  # type: ignore[operator]


# Tests of significance


@pytest.mark.parametrize(("lost", "gained", "p"), [(30, 18, 0.1114), (18, 30, 0.1114), (60, 35, 0.0134), (0, 0, 1.0)])
def test_mcnemar_gives_the_published_values(lost: int, gained: int, p: float) -> None:
    assert mcnemar_exact(lost, gained) == pytest.approx(p, abs=5e-5)


@given(st.integers(0, 3_000), st.integers(0, 3_000))
def test_mcnemar_is_scipys_binomial_test(lost: int, gained: int) -> None:
    if lost + gained:
        assert mcnemar_exact(lost, gained) == pytest.approx(stats.binomtest(lost, lost + gained).pvalue, abs=1e-10)
        one_sided = stats.binomtest(lost, lost + gained, alternative="greater").pvalue
        assert mcnemar_worse(lost, gained) == pytest.approx(one_sided, abs=1e-10)
    assert mcnemar_exact(lost, gained) == mcnemar_exact(gained, lost)
    assert mcnemar_worse(lost + 1, gained) <= mcnemar_worse(lost, gained)


def test_pairing_finds_what_error_bars_of_either_side_cannot() -> None:
    """60 of 1,319 items lost and 35 gained: p of 0.27 unpaired, of 0.01 paired."""
    items, lost, gained, right = 1_319, 60, 35, 989
    shares = (right / items, (right - lost + gained) / items)
    errors = [math.sqrt(share * (1 - share) / (items - 1)) for share in shares]
    unpaired = unpaired_z_test(shares[1] - shares[0], *errors)
    assert unpaired is not None
    assert unpaired[0] == pytest.approx(0.267, abs=0.01)
    paired = paired_t_test([-1.0] * lost + [1.0] * gained + [0.0] * (items - lost - gained))
    assert paired[0] == pytest.approx(0.010, abs=5e-4)
    assert mcnemar_exact(lost, gained) == pytest.approx(0.013, abs=5e-4)


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=50))
def test_the_paired_t_test_is_scipys(pairs: list[tuple[float, float]]) -> None:
    base, other = np.array(pairs).T
    if np.std(other - base) > 1e-6:
        found = paired_t_test((other - base).tolist())
        assert found[0] == pytest.approx(stats.ttest_rel(other, base).pvalue, abs=1e-9)
        assert found[1] == pytest.approx(stats.ttest_rel(other, base, alternative="less").pvalue, abs=1e-9)


def test_the_paired_t_test_agrees_with_a_permutation_test() -> None:
    values = np.random.default_rng(3).normal(-0.3, 1, 40)
    permuted = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", alternative="less", n_resamples=9_999, rng=1
    )
    assert paired_t_test(values.tolist())[1] == pytest.approx(permuted.pvalue, abs=0.01)


@pytest.mark.parametrize(
    ("values", "p_values"),
    [
        ([], (1.0, 1.0)),
        ([0.0] * 50, (1.0, 1.0)),
        ([-0.1] * 5, (2 / 32, 1 / 32)),
        ([0.1] * 5, (2 / 32, 1.0)),
        ([-3.0], (1.0, 0.5)),
    ],
)
def test_differences_without_spread_are_judged_by_their_signs(
    values: Sequence[float], p_values: tuple[float, float]
) -> None:
    assert paired_t_test(values) == pytest.approx(p_values)


def test_the_unpaired_test_is_the_normal_distribution() -> None:
    found = unpaired_z_test(-0.04, 0.03, 0.04)
    assert found == pytest.approx((2 * stats.norm.sf(0.8), stats.norm.sf(0.8)))
    assert unpaired_z_test(0.1, 0, 0) is None


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_adjusts_upwards_in_order_and_never_beyond_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert len(adjusted) == len(p_values)
    for p, larger in zip(p_values, adjusted, strict=True):
        assert p <= larger <= min(1.0, len(p_values) * p + 1e-15)
    by_p = sorted(zip(p_values, adjusted, strict=True))
    assert [larger for _, larger in by_p] == sorted(adjusted)


def test_holm_gives_the_values_worked_out_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.7, 0.02]) == pytest.approx((0.7, 0.04))


# Intervals of shares


def test_without_a_flip_the_score_interval_reaches_the_rule_of_three() -> None:
    """Of 90 items without a flip up to 3.3 % may yet be lost, exactly; the score interval is near it."""
    low, high = ends(paired_score(90, 0, 0, 0.9))
    assert high == pytest.approx(normal_quantile(0.95) ** 2 / (90 + normal_quantile(0.95) ** 2))
    assert low == -high
    assert high == pytest.approx(1 - 0.05 ** (1 / 90), abs=0.004)


def test_the_score_interval_ends_where_the_score_test_rejects() -> None:
    """Variance of G − L under the difference, from a likelihood maximized numerically."""
    items, lost, gained = 250, 9, 4
    for end in ends(paired_score(items, lost, gained)):

        def cost(loss: float, end: float = end) -> float:
            gain = loss + end
            if not (0 < loss < 1 and 0 < gain < 1 and loss + gain < 1):
                return 1e9
            unchanged = items - lost - gained
            return -(lost * math.log(loss) + gained * math.log(gain) + unchanged * math.log(1 - loss - gain))

        loss = optimize.minimize_scalar(cost, bounds=(max(0, -end) + 1e-12, 0.4), method="bounded").x
        variance = items * (2 * loss + end - end**2)
        assert abs(gained - lost - items * end) / math.sqrt(variance) == pytest.approx(1.96, abs=2e-3)


def test_the_ratio_score_interval_ends_where_the_score_test_rejects() -> None:
    """Cells maximized numerically under p(other right) = ratio · p(base right)."""
    kept, lost, gained = 160, 12, 5
    for ratio in ends(paired_ratio_score(250, kept + lost, lost, gained)):

        def cost(gain: float, ratio: float = ratio) -> float:
            loss = 1 - ratio * (1 - gain)
            both = 1 - gain - loss
            if min(gain, loss, both) <= 0:
                return 1e9
            return -(kept * math.log(both) + lost * math.log(loss) + gained * math.log(gain))

        gain = optimize.minimize_scalar(cost, bounds=(max(0, 1 - 1 / ratio), ratio / (1 + ratio)), method="bounded").x
        variance = ratio * (kept + lost + gained) * (gain + 1 - ratio * (1 - gain))
        score = (kept + gained - ratio * (kept + lost)) / math.sqrt(variance)
        assert abs(score) == pytest.approx(1.96, abs=2e-3)


def test_agresti_caffo_is_its_formula_written_out() -> None:
    base, other = 21 / 32, 13 / 22
    error = math.sqrt(base * (1 - base) / 32 + other * (1 - other) / 22)
    middle = other - base
    expected = (middle - 1.959964 * error, middle + 1.959964 * error)
    assert ends(agresti_caffo(20 / 30, 30, 12 / 20, 20)) == pytest.approx(expected, abs=1e-6)


def test_wilson_is_scipys() -> None:
    for successes, items in ((0, 10), (10, 10), (7, 10), (177, 250), (9_990, 10_000)):
        expected = stats.binomtest(successes, items).proportion_ci(0.95, method="wilson")
        assert ends(wilson(successes, items)) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert ends(wilson(0, 0)) == (0, 1)


def test_two_printed_accuracies_of_250_items_differ_by_nothing_one_could_see() -> None:
    """0.7120 ± 0.0287 and 0.7160 ± 0.0286."""
    assert ends(unpaired_normal(0.004, 0.0287, 0.0286)) == pytest.approx((-0.0754, 0.0834), abs=1e-4)
    assert ends(agresti_caffo(0.712, 250, 0.716, 250)) == pytest.approx((-0.0752, 0.0831), abs=5e-4)
    verdict, reason = judge(unpaired_normal(0.004, 0.0287, 0.0286, gate_confidence(0.95)), 0.01)
    assert verdict == "inconclusive"
    assert reason == "anything from 6.26 pp worse to 7.06 pp better is possible, more than the margin of 1 pp"


@given(flips, confidences)
def test_intervals_of_shares_contain_the_estimate_and_mirror_when_sides_are_exchanged(
    cells: Flips, confidence: float
) -> None:
    both, lost, gained, _ = cells
    items = sum(cells)
    estimate = (gained - lost) / items
    low, high = ends(paired_score(items, lost, gained, confidence))
    mirrored = ends(paired_score(items, gained, lost, confidence))
    assert (-high, -low) == pytest.approx(mirrored, abs=1e-9)
    assert -1 <= low <= estimate <= high <= 1
    assert low < high
    if both + lost and both + gained:
        forth = ends(paired_ratio_score(items, both + lost, lost, gained, confidence))
        back = ends(paired_ratio_score(items, both + gained, gained, lost, confidence))
        assert (1 / forth[1], 1 / max(forth[0], 1e-300)) == pytest.approx((back[0], back[1]), rel=1e-6)
        assert forth[0] <= (both + gained) / (both + lost) <= forth[1]
    share = wilson(both, items, confidence)
    assert share.low <= both / items <= share.high


@given(flips, confidences)
def test_the_ratio_leaves_out_1_exactly_when_the_difference_leaves_out_0(cells: Flips, confidence: float) -> None:
    both, lost, gained, _ = cells
    if both + lost and lost + gained:
        low, high = ends(paired_score(sum(cells), lost, gained, confidence))
        below, above = ends(paired_ratio_score(sum(cells), both + lost, lost, gained, confidence))
        z = abs(gained - lost) / math.sqrt(lost + gained)
        if abs(z - normal_quantile((1 + confidence) / 2)) > 1e-6:
            assert (low <= 0 <= high) == (below <= 1 <= above)


@given(flips, st.floats(0.5, 0.99))
def test_more_confidence_never_makes_an_interval_narrower(cells: Flips, confidence: float) -> None:
    _, lost, gained, _ = cells
    inner = paired_score(sum(cells), lost, gained, confidence)
    outer = paired_score(sum(cells), lost, gained, confidence + 0.005)
    assert outer.low <= inner.low + 1e-12
    assert inner.high <= outer.high + 1e-12


def test_shares_at_their_edges() -> None:
    assert ends(paired_score(0, 0, 0)) == ends(agresti_caffo(0.5, 0, 0.5, 10)) == (-1, 1)
    assert ends(paired_score(8, 8, 0))[0] == -1
    assert ends(paired_score(8, 8, 0))[1] < 0
    assert ends(paired_score(1, 0, 0))[0] < -0.7
    assert paired_ratio_score(20, 0, 0, 3) is None
    assert ends(paired_ratio_score(20, 3, 3, 0))[0] == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_score(10, 6, 5),
        lambda: paired_score(10, -1, 0),
        lambda: paired_score(10, 1, 1, 1.0),
        lambda: paired_ratio_score(10, 2, 3, 0),
        lambda: paired_ratio_score(10, 9, 0, 2),
        lambda: wilson(3, 2),
        lambda: wilson(math.nan, 2),
        lambda: agresti_caffo(1.2, 10, 0.5, 10),
        lambda: paired_t([0.0, math.nan]),
        lambda: paired_t([0.0, math.inf]),
        lambda: paired_t([0.0, 1.0], 1.5),
        lambda: paired_t_test([0.0, math.nan]),
        lambda: unpaired_normal(math.nan, 0.1, 0.1),
        lambda: unpaired_normal(0, -0.1, 0.1),
        lambda: unpaired_z_test(0, math.inf, 0.1),
        lambda: perplexity_ratio([1.0, math.nan], [1.0, 1.0], [1, 1]),
        lambda: perplexity_ratio([1.0, 1.0], [1.0, 1.0], [0, 0]),
        lambda: perplexity_ratio([], [], []),
        lambda: perplexity_ratio([1.0, 1.0], [1.0], [1, 1]),
        lambda: ratio_of_means([1.0, math.inf], [1.0, 1.0]),
        lambda: holm([0.1, math.nan]),
        lambda: weigh([0.1], [None], [0.0]),
        lambda: judge(of(0, 1), 0),
        lambda: gate_confidence(0.5),
    ],
)
def test_what_cannot_be_is_refused(call: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (each refusal has words of its own)
        call()  # type: ignore[operator]


# Intervals of means and ratios


@given(differences, confidences)
def test_the_paired_interval_is_scipys(values: list[float], confidence: float) -> None:
    if np.std(values) > 1e-6:
        expected = stats.t.interval(confidence, len(values) - 1, np.mean(values), stats.sem(values))
        assert ends(paired_t(values, confidence)) == pytest.approx(expected, rel=1e-8, abs=1e-8)


@given(differences, st.randoms())
def test_the_order_of_the_items_does_not_matter(values: list[float], shuffler: random.Random) -> None:
    shuffled = shuffler.sample(values, len(values))
    assert paired_t(shuffled) == paired_t(values)
    assert paired_t_test(shuffled) == paired_t_test(values)


@given(differences)
def test_exchanging_the_sides_mirrors_the_paired_interval(values: list[float]) -> None:
    low, high = ends(paired_t(values, span=1000.0))
    assert ends(paired_t([-value for value in values], span=1000.0)) == pytest.approx((-high, -low))
    assert low <= math.fsum(values) / len(values) <= high


def test_clusters_are_the_items_when_each_is_alone_and_fewer_when_they_are_alike() -> None:
    values = np.random.default_rng(0).normal(0, 1, 80).tolist()
    assert ends(paired_t(values, clusters=list(range(80)))) == pytest.approx(ends(paired_t(values)))
    copied = [value for value in values for _ in range(4)]
    grouped = ends(paired_t(copied, clusters=[number // 4 for number in range(320)]))
    assert grouped == pytest.approx(ends(paired_t(values)))
    assert paired_t(values, clusters=[0] * 80) is None


def test_equal_differences_claim_no_certainty_where_the_range_is_known() -> None:
    unseen = 1 - 0.025 ** (1 / 250)
    assert ends(paired_t([0.0] * 250, span=1.0)) == pytest.approx((-unseen, unseen))
    assert ends(paired_t([-0.1] * 250, span=1.0)) == pytest.approx((-0.1 - unseen, -0.1 + unseen))
    assert ends(paired_t([0.0] * 2, span=1.0)) == pytest.approx((-0.8419, 0.8419), abs=1e-4)
    one = ends(paired_t([0.0] * 249 + [-0.3], span=1.0))
    assert one[0] <= -unseen
    assert one[1] >= unseen - 0.3 / 250 - 1e-12


def test_equal_differences_without_a_range_say_that_they_are() -> None:
    interval = paired_t([0.0] * 250)
    assert ends(interval) == (0, 0)
    assert interval is not None
    assert interval.method == "paired t, no variation in 250 items"
    assert paired_t([]) is paired_t([0.3]) is None


def test_many_small_differences_are_left_to_t() -> None:
    values = np.random.default_rng(0).normal(0, 0.01, FEW).tolist()
    assert ends(paired_t(values, span=1.0)) == pytest.approx(ends(paired_t(values)))


def test_the_perplexity_ratio_is_the_delta_method_written_out() -> None:
    draw = np.random.default_rng(5)
    tokens = draw.integers(1, 60, 40)
    base = draw.gamma(3, 1, 40) * tokens
    other = base + draw.normal(0.01, 0.05, 40) * tokens
    ratio, interval = perplexity_ratio(base.tolist(), other.tolist(), tokens.tolist())
    expected = math.exp(other.sum() / tokens.sum()) / math.exp(base.sum() / tokens.sum())
    assert ratio == pytest.approx(expected)
    rests = (other - base) - math.log(ratio) * tokens
    error = math.sqrt(40 / 39 * (rests**2).sum()) / tokens.sum()
    reach = stats.t.ppf(0.975, 39) * error
    assert ends(interval) == pytest.approx((ratio * math.exp(-reach), ratio * math.exp(reach)))


def test_equal_losses_have_a_ratio_of_1_and_wrecked_ones_stay_numbers() -> None:
    ratio, interval = perplexity_ratio([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [5, 6, 7])
    assert (ratio, ends(interval)) == (1.0, (1.0, 1.0))
    assert interval is not None
    assert "no variation" in interval.method
    ratio, interval = perplexity_ratio([1.0, 2.0], [9e4, 1e5], [1, 1])
    assert all(math.isfinite(value) for value in (ratio, *ends(interval), *ends(recovery_of_perplexity(interval))))
    assert perplexity_ratio([1.0], [2.0], [1])[1] is None


# Recovery


def test_recovery_is_the_share_of_the_score_that_is_kept() -> None:
    assert recovery(68.71, 68.22) == pytest.approx(99.28, abs=0.01)
    assert recovery(0.75, 0.70, chance=0.25) == pytest.approx(90)
    assert recovery(5.0, 6.25, higher_is_better=False) == pytest.approx(80)
    assert recovery(0.25, 0.3, chance=0.25) is recovery(0.0, 0.1) is None


def test_recovery_of_shares_is_the_ratio_in_percent() -> None:
    low, high = ends(paired_ratio_score(250, 178, 10, 11))
    assert ends(recovery_of_shares(250, 178, 10, 11)) == pytest.approx((100 * low, 100 * high))


def test_recovery_of_means_agrees_with_the_bootstrap() -> None:
    draw = np.random.default_rng(7)
    base = draw.beta(4, 2, 300)
    other = np.clip(base + draw.normal(-0.02, 0.1, 300), 0, 1)
    resampled = stats.bootstrap(
        (base, other),
        lambda a, b, axis: 100 * b.mean(axis) / a.mean(axis),
        paired=True,
        vectorized=True,
        n_resamples=4_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert ends(recovery_of_means(base.tolist(), other.tolist())) == pytest.approx(tuple(resampled), abs=0.1)


def test_recovery_of_metrics_where_lower_is_better_is_that_of_the_sides_exchanged() -> None:
    base, other = [0.3, 0.5, 0.9, 0.7], [0.4, 0.5, 0.8, 0.75]
    assert recovery_of_means(base, other, higher_is_better=False) == recovery_of_means(other, base)


def test_recovery_of_means_at_its_edges() -> None:
    assert recovery_of_means([], []) is recovery_of_means([0.5], [0.5]) is None
    assert recovery_of_means([-1.0, 1.0, 2.0], [1.0, 2.0, 3.0]) is None
    low, high = ends(recovery_of_means([0.5] * 250, [0.5] * 250, span=1.0))
    assert low == pytest.approx(100 - 200 * (1 - 0.025 ** (1 / 250)))
    assert high == pytest.approx(200 - low)


# Totals


def test_a_total_of_normal_intervals_is_the_root_of_the_squared_errors() -> None:
    errors, weights = [0.01, 0.03, 0.02], [100.0, 50.0, 250.0]
    intervals = [of(delta - 1.96 * error, delta + 1.96 * error) for delta, error in zip([0.0, 0.1, -0.2], errors)]  # noqa: B905
    total, interval = weigh([0.0, 0.1, -0.2], intervals, weights)
    error = math.sqrt(sum((weight / 400 * error) ** 2 for weight, error in zip(weights, errors, strict=True)))
    assert total == pytest.approx(0.1 * 50 / 400 - 0.2 * 250 / 400)
    assert ends(interval) == pytest.approx((total - 1.96 * error, total + 1.96 * error))


def test_each_side_of_a_total_comes_from_the_same_side_of_its_parts() -> None:
    total, interval = weigh([0.0, 0.2], [of(-0.3, 0.1), of(-0.2, 0.5)], [1, 1])
    assert total == pytest.approx(0.1)
    assert ends(interval) == pytest.approx((0.1 - math.hypot(0.15, 0.2), 0.1 + math.hypot(0.05, 0.15)))


def test_a_total_without_one_interval_has_none() -> None:
    assert weigh([0.1, 0.2], [of(0, 0.2), None], [1, 1]) == (pytest.approx(0.15), None)
    assert weigh([0.1, 0.2], [of(0, 0.2), of(0, 0.2, 0.95)], [1, 1])[1] is None


# Verdicts


@pytest.mark.parametrize(
    ("low", "high", "verdict", "reason"),
    [
        (0.001, 0.02, "pass", "not worse at all with 95 % confidence"),
        (-0.0062, 0.003, "pass", "worse by at most 0.62 pp with 95 % confidence, within the margin of 1 pp"),
        (-0.008, -0.001, "pass", "worse, but by at most 0.8 pp with 95 % confidence, within the margin of 1 pp"),
        (
            -0.03,
            -0.004,
            "regression",
            "worse by at least 0.4 pp and up to 3 pp with 95 % confidence, not within the margin of 1 pp",
        ),
        (
            -0.02,
            0.01,
            "inconclusive",
            "anything from 2 pp worse to 1 pp better is possible, more than the margin of 1 pp",
        ),
        (
            -0.01,
            0.0,
            "inconclusive",
            "anything from 1 pp worse to 0 pp better is possible, more than the margin of 1 pp",
        ),
    ],
)
def test_a_verdict_says_why(low: float, high: float, verdict: str, reason: str) -> None:
    assert judge(of(low, high), 0.01) == (verdict, reason)
    assert judge(of(-high, -low), 0.01, higher_is_better=False) == (verdict, reason)


def test_a_verdict_without_an_interval_is_none() -> None:
    assert judge(None, 0.01).verdict == judge_ratio(None, 0.01).verdict == "inconclusive"


def test_the_ratio_of_perplexities_is_judged_by_its_own_margin() -> None:
    assert judge_ratio(of(0.998, 1.004), 0.01) == (
        "pass",
        "worse by at most 0.4 % with 95 % confidence, within the margin of 1 %",
    )
    assert judge_ratio(of(1.02, 1.04), 0.01).verdict == "regression"
    assert judge_ratio(of(0.98, 1.02), 0.01).verdict == "inconclusive"
    assert judge_ratio(of(0.9, 0.95), 0.01).verdict == "pass"


@given(finite, finite, st.floats(1e-3, 50), st.floats(1e-3, 50))
def test_a_wider_margin_never_makes_a_verdict_worse(one: float, two: float, margin: float, more: float) -> None:
    order = ["regression", "inconclusive", "pass"]
    interval = of(min(one, two), max(one, two))
    narrow, wide = judge(interval, margin), judge(interval, margin + more)
    assert order.index(wide.verdict) >= order.index(narrow.verdict)
    better = replace(interval, low=interval.low + more, high=interval.high + more)
    assert order.index(judge(better, margin).verdict) >= order.index(narrow.verdict)
