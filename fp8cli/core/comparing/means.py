"""Intervals of metrics that are a number per item, and of perplexities, which are exp of an average.

Pairing is everything here: what is hard for one side is hard for the other, and it cancels in the difference. On 50
documents the standard error of the change of a log perplexity was a hundred times smaller paired than unpaired.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final

from fp8cli.core.comparing.comparison import Interval
from fp8cli.core.comparing.distributions import t_quantile
from fp8cli.core.comparing.shares import two_sided

FEW: Final = 20
"""Differences other than 0 below which their spread is not trusted alone."""


@dataclass(frozen=True, kw_only=True)
class _Mean:
    """A mean, or a ratio of sums, with its standard error over independent clusters of items."""

    value: float
    stderr: float
    clusters: int

    def reach(self, confidence: float) -> float:
        """Half the width of its t interval; confidence two-sided."""
        if not 0 < confidence < 1:
            raise ValueError(f"a confidence lies between 0 and 1, not at {confidence}")
        return t_quantile((1 + confidence) / 2, self.clusters - 1) * self.stderr


def paired_t(
    differences: Sequence[float],
    confidence: float = 0.95,
    clusters: Sequence[int] | None = None,
    span: float | None = None,
) -> Interval | None:
    """Interval of the mean of the differences other − base; None with fewer than two items, or clusters.

    clusters: the group of each item, such as the document of a question; items of one group may resemble each other.
    span: how far the metric reaches, 1 for one in [0, 1]. With it, differences of which fewer than FEW are not 0 are
    judged, like those that are all equal, with care for what was not seen: as if there were two items more, half of
    one lost and half of one gained by the whole span, and no closer than 1 − (α/2)^(1/n) of the span, the share of
    items that n others may fail to show. Without it, equal differences have an interval of width 0, and its method
    says so.
    """
    estimate = _ratio_of_sums(differences, None, clusters)
    if estimate is None:
        return None
    reach, method = estimate.reach(confidence), "paired t" if clusters is None else "paired t, clustered"
    if span is None:
        return _interval(estimate.value - reach, estimate.value + reach, confidence, _named(method, estimate))
    if sum(value != 0 for value in differences) < FEW or estimate.stderr == 0:
        reach, method = max(reach, _reach_of_few(differences, confidence, span)), f"{method}, few differences"
    return _interval(max(estimate.value - reach, -span), min(estimate.value + reach, span), confidence, method)


def unpaired_normal(
    difference: float, base_stderr: float, other_stderr: float, confidence: float = 0.95
) -> Interval | None:
    """Interval of the difference of two means over unrelated items, from their standard errors.

    None where both are 0: a score of 0 or 1 says nothing of its spread.
    """
    error = math.hypot(base_stderr, other_stderr)
    if not math.isfinite(error) or not math.isfinite(difference) or min(base_stderr, other_stderr) < 0:
        raise ValueError(f"{difference} with standard errors {base_stderr} and {other_stderr} has no interval")
    if error == 0:
        return None
    reach = two_sided(confidence) * error
    return _interval(difference - reach, difference + reach, confidence, "unpaired normal")


def perplexity_ratio(
    base_losses: Sequence[float], other_losses: Sequence[float], tokens: Sequence[float], confidence: float = 0.95
) -> tuple[float, Interval | None]:
    """Return other / base of two perplexities over the same items, and its interval; None with fewer than two items.

    Losses are summed per item, in nats; tokens are what they are divided by (words, bytes, or 1 per item where the
    metric averages over items). R = Σ(other − base) / ΣT, the ratio is exp(R), and the standard error of R is that of
    a ratio of sums (delta method, linearized; Cochran, Sampling Techniques, 3rd ed. 1977, 2.11), with Student's t.
    """
    changes = [other - base for base, other in zip(base_losses, other_losses, strict=True)]
    if not tokens or min(tokens) < 0 or math.fsum(tokens) <= 0:
        raise ValueError("a perplexity needs at least one token")
    value = math.fsum(changes) / math.fsum(tokens)
    estimate = _ratio_of_sums(changes, tokens, None)
    if estimate is None:
        return _exp(value), None
    reach = estimate.reach(confidence)
    method = _named("paired t of the log ratio", estimate)
    return _exp(value), _interval(_exp(value - reach), _exp(value + reach), confidence, method)


def ratio_of_means(base: Sequence[float], other: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Interval of the ratio other / base of two positive means over the same items, by Fieller's theorem.

    None if the base's mean may as well be 0, or with fewer than two items. Source: Fieller, Journal of the Royal
    Statistical Society B 16 (1954) 175–185.
    """
    items = len(base)
    if items < 2:
        return None
    base_mean, other_mean = math.fsum(base) / items, math.fsum(other) / items
    pairs = list(zip(base, other, strict=True))
    square = t_quantile((1 + confidence) / 2, items - 1) ** 2 / (items * (items - 1))
    base_square = square * math.fsum((a - base_mean) ** 2 for a, _ in pairs)
    both = square * math.fsum((a - base_mean) * (b - other_mean) for a, b in pairs)
    other_square = square * math.fsum((b - other_mean) ** 2 for _, b in pairs)
    if not math.isfinite(base_square + both + other_square):
        raise ValueError("a value is not a finite number")
    # Ratios θ with (b̄ − θ ā)² ≤ t² · Var(b̄ − θ ā): between the roots of a quadratic equation.
    leading, linear = base_mean**2 - base_square, base_mean * other_mean - both
    if base_mean <= 0 or leading <= 0:
        return None
    root = math.sqrt(max(linear**2 - leading * (other_mean**2 - other_square), 0.0))
    return _interval((linear - root) / leading, (linear + root) / leading, confidence, "Fieller")


def _ratio_of_sums(
    values: Sequence[float], weights: Sequence[float] | None, clusters: Sequence[int] | None
) -> _Mean | None:
    """Σ values / Σ weights (1 each if None), with the standard error over clusters (each item its own if None)."""
    whole = len(values) if weights is None else math.fsum(weights)
    if not math.isfinite(math.fsum(values)) or not math.isfinite(whole):
        raise ValueError("a value is not a finite number")
    if len(values) < 2:
        return None
    value = math.fsum(values) / whole
    rests = [each - value * weight for each, weight in zip(values, weights or repeat(1.0), strict=False)]
    if clusters is not None:
        sums: defaultdict[int, float] = defaultdict(float)
        for cluster, rest in zip(clusters, rests, strict=True):
            sums[cluster] += rest
        rests = list(sums.values())
    independent = len(rests)
    if independent < 2:
        return None
    # Equal values leave rests that are rounding and no spread.
    spread = weights is not None or min(values) != max(values)
    squares = math.fsum(rest * rest for rest in rests) if spread else 0.0
    return _Mean(value=value, stderr=math.sqrt(independent / (independent - 1) * squares) / whole, clusters=independent)


def _reach_of_few(differences: Sequence[float], confidence: float, span: float) -> float:
    total = len(differences) + 2
    summed = math.fsum(differences)
    squares = math.fsum(value * value for value in differences) + span * span
    unseen = span * (1 - math.pow((1 - confidence) / 2, 1 / len(differences)))
    return max(unseen, two_sided(confidence) * math.sqrt(squares - summed**2 / total) / total)


def _exp(value: float) -> float:
    """exp(value), and for what no double holds 10^±304: a wrecked model can be that bad, and stays a number in JSON."""
    return math.exp(max(-700.0, min(value, 700.0)))


def _named(method: str, estimate: _Mean) -> str:
    return method if estimate.stderr > 0 else f"{method}, no variation in {estimate.clusters:,} items"


def _interval(low: float, high: float, confidence: float, method: str) -> Interval:
    return Interval(low=low, high=high, confidence=confidence, method=method)
