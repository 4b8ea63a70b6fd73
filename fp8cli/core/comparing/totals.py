"""One difference for many tasks: weighted sums of differences, with their interval."""

import math
from collections.abc import Sequence

from fp8cli.core.comparing.comparison import Interval


def weigh(
    differences: Sequence[float], intervals: Sequence[Interval | None], weights: Sequence[float]
) -> tuple[float, Interval | None]:
    """Return Σ w Δ over tasks with unrelated items, w scaled to sum 1, and its interval; None if a task has none.

    Weights of 1 are the macro average, the tasks' numbers of items the micro average. Each side of the interval is
    the root of the squared weighted distances of the tasks' own, which for normal intervals is SE = √Σ w² SE², and
    keeps skewed ones, and those of tasks without a flip, honest.
    Source: Zou and Donner, Statistics in Medicine 27 (2008) 1693–1702.
    """
    whole = math.fsum(weights)
    if not weights or min(weights) < 0 or not whole > 0:
        raise ValueError(f"weights of tasks must not be negative nor all 0, as in {tuple(weights)}")
    shares = [weight / whole for weight in weights]
    total = math.fsum(share * difference for share, difference in zip(shares, differences, strict=True))
    known = [interval for interval in intervals if interval is not None]
    if len(known) != len(shares) or len({interval.confidence for interval in known}) != 1:
        return total, None
    below = math.hypot(
        *(share * (each - inner.low) for share, each, inner in zip(shares, differences, known, strict=True))
    )
    above = math.hypot(
        *(share * (inner.high - each) for share, each, inner in zip(shares, differences, known, strict=True))
    )
    methods = {interval.method for interval in known}
    method = f"{methods.pop()}, combined" if len(methods) == 1 else "combined over tasks"
    return total, Interval(low=total - below, high=total + above, confidence=known[0].confidence, method=method)
