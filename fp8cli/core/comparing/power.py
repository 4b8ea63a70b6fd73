"""How many items it takes: before a run, whether it can settle anything; after one, how many more would.

Non-inferiority within a margin δ needs n ≈ (z₁₋α + z₁₋β)² · σ² / (δ + Δ)² items, σ² the variance of an item's
difference and Δ the true difference other − base (Chow, Shao and Wang, Sample Size Calculations in Clinical Research,
2nd ed. 2008, ch. 3). Paired shares have σ² = f − Δ², f the rate of flips: few flips, few items. Unpaired ones have
p(1 − p) of both sides, ten times as much. So n = 100 settles no margin of 1 pp, paired or not.

The formula is the normal approximation. With the score interval that verdicts on shares rest on, a power of 80 % comes
out as 78 to 80 % while the margin is at most a third of the flip rate, and as 73 % at two thirds; and however few
items flip, the score interval needs z²(1 − δ)/δ of them to reach the margin, which is the least that is answered.
"""

import math
from typing import Final

from fp8cli.core.comparing.comparison import Interval
from fp8cli.core.comparing.distributions import normal_quantile
from fp8cli.core.comparing.shares import two_sided

ALPHA: Final = 0.05
"""One-sided: how often a model that is worse by just the margin may pass."""
POWER: Final = 0.8
"""How often one whose difference is as assumed shall pass."""
_BEYOND: Final = 1e9
"""More items than any task has: no number is better."""


def items_needed_paired(
    flip_rate: float, margin: float, difference: float = 0.0, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """Items on which shares must be compared, one by one, to pass the margin.

    difference: the true one, other − base. None if it is not within the margin: no number of items would pass then.
    """
    if not abs(difference) <= flip_rate <= 1:
        raise ValueError(f"a flip rate of {flip_rate} cannot make a difference of {difference}")
    _check(margin, alpha, power)
    needed = _items(flip_rate - difference**2, margin + difference, alpha, power)
    least = math.ceil(normal_quantile(1 - alpha) ** 2 * (1 - margin) / margin)
    return None if needed is None else max(needed, least)


def items_needed_unpaired(
    base_share: float, margin: float, difference: float = 0.0, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """Items that each side needs to pass the margin if the two are not compared item by item."""
    other_share = base_share + difference
    if not (0 <= base_share <= 1 and 0 <= other_share <= 1):
        raise ValueError(f"{base_share} and {other_share} are not both shares")
    _check(margin, alpha, power)
    variance = base_share * (1 - base_share) + other_share * (1 - other_share)
    return _items(variance, margin + difference, alpha, power)


def items_to_settle(
    deviation: float, margin: float, difference: float, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """Items that would settle a verdict if what was seen is the truth: as a pass within the margin, or a regression.

    deviation: standard deviation of an item's difference, see `deviation_of`. All in the metric's unit, oriented so
    that higher is better; of a perplexity the logarithms, of base / other.
    """
    _check(margin, alpha, power)
    if not 0 <= deviation < math.inf or not math.isfinite(difference):
        raise ValueError(f"a difference of {difference} with deviation {deviation} settles nothing")
    distance = margin + difference if difference > -margin else -difference
    return _items(deviation**2, distance, alpha, power)


def margin_settled(items: int, flip_rate: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest margin that so many items, compared one by one, can settle if nothing is lost; at most 1."""
    if items < 0 or not 0 <= flip_rate <= 1:
        raise ValueError(f"{items} items with a flip rate of {flip_rate} cannot be")
    _check(1.0, alpha, power)
    if items == 0:
        return 1.0
    square = normal_quantile(1 - alpha) ** 2
    return min(1.0, max(_quantiles(alpha, power) * math.sqrt(flip_rate / items), square / (items + square)))


def deviation_of(interval: Interval, items: int, *, log_scale: bool = False) -> float:
    """Standard deviation of an item's difference, from the interval of the mean over so many items.

    log_scale: the interval is of a ratio.
    """
    low, high = (math.log(interval.low), math.log(interval.high)) if log_scale else (interval.low, interval.high)
    return (high - low) / (2 * two_sided(interval.confidence)) * math.sqrt(items)


def _check(margin: float, alpha: float, power: float) -> None:
    if not 0 < margin <= 1 or not 0 < alpha < 0.5 or not 0.5 <= power < 1:
        raise ValueError(f"margin {margin}, α {alpha} and power {power} are not all possible")


def _quantiles(alpha: float, power: float) -> float:
    return normal_quantile(1 - alpha) + normal_quantile(power)


def _items(variance: float, distance: float, alpha: float, power: float) -> int | None:
    if distance <= 0:
        return None
    items = _quantiles(alpha, power) ** 2 * variance / distance**2
    # To the nearest: the approximation is not good to a single item.
    return max(1, round(items)) if items < _BEYOND else None
