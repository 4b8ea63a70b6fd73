"""Numbers of items: the published ones, what they promise by enumeration, and what has no number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8cli.core.comparing.means import paired_t, perplexity_ratio, unpaired_normal
from fp8cli.core.comparing.power import (
    deviation_of,
    items_needed_paired,
    items_needed_unpaired,
    items_to_settle,
    margin_settled,
)
from tests.test_intervals_coverage import passes


@pytest.mark.parametrize(
    ("flip_rate", "margin", "items"),
    [
        (0.03, 0.02, 464),
        (0.03, 0.01, 1_855),
        (0.03, 0.005, 7_419),
        (0.05, 0.02, 773),
        (0.05, 0.01, 3_091),
        (0.05, 0.005, 12_365),
    ],
)
def test_items_needed_are_the_published_ones(flip_rate: float, margin: float, items: int) -> None:
    assert items_needed_paired(flip_rate, margin) == items
    assert margin_settled(items, flip_rate) == pytest.approx(margin, rel=1e-3)


@pytest.mark.parametrize(
    ("flip_rate", "margin", "power"),
    [(0.03, 0.01, 0.778), (0.05, 0.01, 0.785), (0.1, 0.02, 0.785), (0.03, 0.02, 0.727), (0.05, 0.02, 0.77)],
)
def test_so_many_items_pass_an_equal_model_as_often_as_is_said(flip_rate: float, margin: float, power: float) -> None:
    items = items_needed_paired(flip_rate, margin)
    assert items is not None
    assert passes(items, flip_rate / 2, flip_rate / 2, margin) == pytest.approx(power, abs=0.02)


def test_a_model_that_is_a_little_worse_needs_the_items_that_are_said() -> None:
    items = items_needed_paired(0.03, 0.02, difference=-0.005)
    assert items == pytest.approx(823, abs=3)
    assert passes(items, 0.0175, 0.0125, 0.02) == pytest.approx(0.78, abs=0.04)


def test_flips_that_all_go_one_way_leave_less_spread() -> None:
    assert items_needed_paired(0.1, 0.5, difference=-0.1) == round(2.4864749**2 * 0.09 / 0.4**2)
    assert items_needed_paired(0.4, 0.5, difference=-0.4) == round(2.4864749**2 * 0.24 / 0.1**2)


def test_without_flips_it_takes_as_many_items_as_rule_flips_out() -> None:
    assert items_needed_paired(0.0, 0.01) == 268
    assert passes(268, 0.0, 0.0, 0.01) == pytest.approx(1)
    assert passes(267, 0.0, 0.0, 0.01) == 0
    assert margin_settled(268, 0.0) == pytest.approx(0.01, rel=1e-3)


def test_what_is_beyond_the_margin_passes_with_no_number_of_items() -> None:
    assert items_needed_paired(0.03, 0.01, difference=-0.01) is None
    assert items_needed_paired(0.03, 0.01, difference=-0.02) is None
    assert items_needed_unpaired(0.7, 0.01, difference=-0.02) is None
    assert items_needed_paired(0.03, 0.01, difference=-0.0099999999) is None
    assert items_to_settle(0.0, 0.01, 0.0) == 1


def test_comparing_without_pairs_takes_ten_times_as_many() -> None:
    unpaired = items_needed_unpaired(0.712, 0.01)
    assert unpaired == pytest.approx((1.6449 + 0.8416) ** 2 * 2 * 0.712 * 0.288 / 0.01**2, rel=1e-3)
    paired = items_needed_paired(0.03, 0.01)
    assert unpaired is not None
    assert paired is not None
    assert 10 < unpaired / paired < 15


def test_250_items_with_printed_error_bars_would_have_to_be_12_946() -> None:
    """0.7120 ± 0.0287 and 0.7160 ± 0.0286, within 1 pp."""
    interval = unpaired_normal(0.004, 0.0287, 0.0286)
    assert interval is not None
    items = items_to_settle(deviation_of(interval, 250), 0.01, 0.004)
    assert items == 12_946
    assert items == pytest.approx(items_needed_unpaired(0.712, 0.01, 0.004), rel=0.01)


def test_what_is_worse_beyond_the_margin_settles_as_a_regression() -> None:
    assert items_to_settle(0.2, 0.01, -0.03) == round(2.4864749**2 * 0.04 / 0.03**2)
    assert items_to_settle(0.2, 0.01, -0.005) == round(2.4864749**2 * 0.04 / 0.005**2)


def test_the_deviation_comes_back_out_of_an_interval() -> None:
    values = [0.1, -0.2, 0.3, 0.0, -0.1] * 400
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    interval = paired_t(values)
    assert interval is not None
    assert deviation_of(interval, len(values)) == pytest.approx(deviation, rel=2e-3)
    _, ratio = perplexity_ratio([0.0] * len(values), values, [1.0] * len(values))
    assert ratio is not None
    assert deviation_of(ratio, len(values), log_scale=True) == pytest.approx(deviation, rel=2e-3)


@given(st.floats(0, 1), st.floats(0.001, 0.5), st.floats(1.01, 3))
def test_a_wider_margin_or_fewer_flips_never_need_more_items(flip_rate: float, margin: float, factor: float) -> None:
    items = items_needed_paired(flip_rate, margin)
    wider = items_needed_paired(flip_rate, min(1.0, margin * factor))
    fewer = items_needed_paired(flip_rate / factor, margin)
    assert items is not None
    assert wider is not None
    assert fewer is not None
    assert wider <= items
    assert fewer <= items


def test_no_items_settle_no_margin() -> None:
    assert margin_settled(0, 0.03) == 1
    assert margin_settled(100, 0.03) == pytest.approx(0.0431, abs=1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: items_needed_paired(0.01, 0.01, difference=0.02),
        lambda: items_needed_paired(1.5, 0.01),
        lambda: items_needed_paired(0.03, 0.0),
        lambda: items_needed_paired(0.03, 0.01, alpha=0.0),
        lambda: items_needed_paired(0.03, 0.01, power=1.0),
        lambda: items_needed_unpaired(0.99, 0.01, 0.05),
        lambda: items_to_settle(math.nan, 0.01, 0.0),
        lambda: items_to_settle(0.1, 0.01, math.inf),
        lambda: margin_settled(-1, 0.03),
    ],
)
def test_what_cannot_be_is_refused(call: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (each refusal has words of its own)
        call()  # type: ignore[operator]
