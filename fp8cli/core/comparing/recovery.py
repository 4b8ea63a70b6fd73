"""Recovery: what percentage of the base's score the other side keeps, as model cards give it, with an interval.

From metrics where lower is better it is the inverse, base / other. Over several tasks there are two averages: the ratio
of the mean scores, as Red Hat's cards have it, and the mean of the tasks' ratios; `Total` has the first.
"""

from collections.abc import Sequence

from fp8cli.core.comparing.comparison import Interval
from fp8cli.core.comparing.means import FEW, paired_t, ratio_of_means
from fp8cli.core.comparing.shares import paired_ratio_score


def recovery(base: float, other: float, *, higher_is_better: bool = True, chance: float = 0.0) -> float | None:
    """Percentage of base − chance that the other side keeps; None if the base is no better than chance.

    chance: what guessing gets; 0 for the plain recovery. It has no meaning where lower is better.
    """
    if not higher_is_better:
        base, other, chance = other, base, 0.0
    return 100 * (other - chance) / (base - chance) if base > chance else None


def recovery_of_shares(
    items: int, base_right: int, lost: int, gained: int, confidence: float = 0.95
) -> Interval | None:
    """Interval of the recovery of a share over the same items, in percent; None if the base has no item right."""
    return _percent(paired_ratio_score(items, base_right, lost, gained, confidence))


def recovery_of_means(
    base: Sequence[float],
    other: Sequence[float],
    confidence: float = 0.95,
    *,
    higher_is_better: bool = True,
    span: float | None = None,
) -> Interval | None:
    """Interval of the recovery of a mean over the same items, in percent; None where there is none.

    span: as in `paired_t`, which tells the interval where few items differ.
    """
    if not higher_is_better:
        base, other = other, base
    differences = [b - a for a, b in zip(base, other, strict=True)]
    if span is not None and sum(value != 0 for value in differences) < FEW:
        mean = sum(base) / len(base) if base else 0.0
        change = paired_t(differences, confidence, span=span)
        if change is None or mean <= 0:
            return None
        low, high = max(0.0, 1 + change.low / mean), 1 + change.high / mean
        return _percent(Interval(low=low, high=high, confidence=confidence, method=change.method))
    return _percent(ratio_of_means(base, other, confidence))


def recovery_of_perplexity(ratio: Interval | None) -> Interval | None:
    """Interval of the recovery, in percent, from that of the ratio other / base of two perplexities."""
    if ratio is None:
        return None
    return _percent(Interval(low=1 / ratio.high, high=1 / ratio.low, confidence=ratio.confidence, method=ratio.method))


def _percent(ratio: Interval | None) -> Interval | None:
    if ratio is None:
        return None
    return Interval(low=100 * ratio.low, high=100 * ratio.high, confidence=ratio.confidence, method=ratio.method)
