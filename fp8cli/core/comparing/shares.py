"""Intervals of shares: how many items are right, and how many more or fewer on another side.

FP8 changes few items, and that is where the usual intervals fail: Wald's and the bootstrap's are of width 0 when no
item flipped, and even Agresti–Min's lets a model that loses 1 item in 100 pass a margin of 1 pp with up to 19 %
probability instead of 5 % (n = 165, every flip a loss). The score intervals here, Tango's of the difference and Nam
and Blackwelder's of the ratio, keep their promise there: with no flip in n items they reach z²/(n + z²), about the
"rule of three".

Both score tests are McNemar's at no difference, so the interval of the difference leaves out 0 exactly when that of
the ratio leaves out 1.
"""

import math
from collections.abc import Callable

from fp8cli.core.comparing.comparison import Interval
from fp8cli.core.comparing.distributions import normal_quantile


def two_sided(confidence: float) -> float:
    """The z that a standard normal variable stays within, on both sides, with this confidence (0.95 → 1.96)."""
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, not at {confidence}")
    return normal_quantile((1 + confidence) / 2)


def paired_score(items: int, lost: int, gained: int, confidence: float = 0.95) -> Interval:
    """Interval of the difference other − base of two shares over the same items, by inverting Tango's score test.

    lost: right on the base and wrong on the other; gained: the reverse. Without items it is all of [−1, 1].
    Source: Tango, Statistics in Medicine 17 (1998) 891–908.
    """
    _check_flips(items, lost, gained)
    z = two_sided(confidence)
    method = "score (Tango)"
    if items == 0:
        return Interval(low=-1.0, high=1.0, confidence=confidence, method=method)
    middle = (gained - lost) / items

    def score(difference: float) -> float:
        # The most likely share of losses, were `difference` true: the root of a quadratic equation.
        halved = (gained + lost - (2 * items - gained + lost) * difference) / 2
        product = 2 * items * lost * difference * (1 - difference)
        losses = (halved + math.sqrt(max(halved * halved + product, 0.0))) / (2 * items)
        variance = items * (2 * losses + difference * (1 - difference))
        return _ratio(gained - lost - items * difference, variance)

    return Interval(
        low=_crossing(score, z, inside=middle, outside=-1.0),
        high=_crossing(score, -z, inside=middle, outside=1.0),
        confidence=confidence,
        method=method,
    )


def agresti_caffo(
    base_share: float, base_items: int, other_share: float, other_items: int, confidence: float = 0.95
) -> Interval:
    """Interval of the difference other − base of two shares over unrelated items: two pseudo-items more on each side.

    One of the two is right and one wrong. The shares may come from a printed table, and need not be whole numbers of
    items.
    Source: Agresti and Caffo, The American Statistician 54 (2000) 280–288.
    """
    middle = variance = 0.0
    for sign, share, items in ((-1, base_share, base_items), (1, other_share, other_items)):
        if not 0 <= share <= 1 or items < 0:
            raise ValueError(f"a share of {share} of {items} items is none")
        adjusted = (share * items + 1) / (items + 2)
        middle += sign * adjusted
        variance += adjusted * (1 - adjusted) / (items + 2)
    margin = math.inf if base_items == 0 or other_items == 0 else two_sided(confidence) * math.sqrt(variance)
    return _around(middle, margin, confidence, "Agresti–Caffo")


def wilson(successes: float, items: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of one share. Either number may be a fraction: an effective number of items.

    Source: Wilson, Journal of the American Statistical Association 22 (1927) 209–212.
    """
    if not 0 <= successes <= items or not math.isfinite(items):
        raise ValueError(f"{successes} of {items} items is no share")
    square = two_sided(confidence) ** 2
    total = items + square
    middle = (successes + square / 2) / total
    spread = successes * (items - successes) / items if items else 0.0
    margin = math.sqrt(square * (spread + square / 4)) / total
    return Interval(
        # At the ends the formula gives 0 and 1, and rounding would leave them out.
        low=max(middle - margin, 0.0) if successes else 0.0,
        high=min(middle + margin, 1.0) if successes < items else 1.0,
        confidence=confidence,
        method="Wilson",
    )


def paired_ratio_score(
    items: int, base_right: int, lost: int, gained: int, confidence: float = 0.95
) -> Interval | None:
    """Interval of the ratio other / base of two shares over the same items, by inverting a score test.

    None if the base has no item right. Source: Nam and Blackwelder, Statistics in Medicine 21 (2002) 689–699.
    """
    _check_flips(items, lost, gained)
    if not lost <= base_right <= items - gained:
        raise ValueError(f"{lost} lost and {gained} gained do not fit {base_right} right of {items} on the base")
    if base_right == 0:
        return None
    z = two_sided(confidence)
    other_right = base_right - lost + gained
    # Items wrong on both sides say nothing about the ratio.
    some = base_right + gained
    kept = base_right - lost

    def score(ratio: float) -> float:
        # The most likely share of gains among those items, were `ratio` true: the larger root of a quadratic equation.
        linear = kept * (ratio * ratio - 1) + lost * ratio * ratio + gained * (2 * ratio * ratio - 1)
        leading = ratio * (ratio + 1) * some
        constant = gained * ratio * (1 - ratio)
        root = math.sqrt(max(linear * linear + 4 * leading * constant, 0.0))
        gains = min(max((linear + root) / (2 * leading), 0.0, 1 - 1 / ratio), ratio / (1 + ratio))
        losses = 1 - ratio * (1 - gains)
        return _ratio(other_right - ratio * base_right, ratio * some * (gains + losses))

    middle = other_right / base_right
    outside = max(2 * middle, 2.0)
    while score(outside) > -z:
        outside *= 2
    return Interval(
        low=0.0 if middle == 0 else _crossing(score, z, inside=middle, outside=0.0),
        high=_crossing(score, -z, inside=middle, outside=outside),
        confidence=confidence,
        method="ratio score (Nam–Blackwelder)",
    )


def _check_flips(items: int, lost: int, gained: int) -> None:
    if min(items, lost, gained) < 0 or lost + gained > items:
        raise ValueError(f"{lost} lost and {gained} gained of {items} items cannot be")


def _ratio(excess: float, variance: float) -> float:
    """Excess in standard errors; where nothing can vary, any excess is impossible."""
    if variance > 0:
        return excess / math.sqrt(variance)
    return 0.0 if excess == 0 else math.copysign(math.inf, excess)


def _crossing(score: Callable[[float], float], level: float, *, inside: float, outside: float) -> float:
    """Where the score, 0 at `inside`, crosses `level` on the way to `outside`; `outside` if it does not before."""
    while True:
        middle = (inside + outside) / 2
        if middle in {inside, outside}:
            return outside
        if abs(score(middle)) < abs(level):
            inside = middle
        else:
            outside = middle


def _around(middle: float, margin: float, confidence: float, method: str) -> Interval:
    return Interval(
        low=max(middle - margin, -1.0), high=min(middle + margin, 1.0), confidence=confidence, method=method
    )
