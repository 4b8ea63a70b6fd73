"""The verdict on a difference: whether the other side is no worse than a margin allows.

Non-inferiority, not absence of significance: a small test that finds nothing proves nothing. The other side passes
where the interval of its difference lies wholly above −margin; it is a regression where the interval lies below 0 and
not within the margin; anything else is inconclusive. One side of the interval decides at a time, so the two-sided
interval to judge is that of `gate_confidence`: with 95 % confidence a model that is worse by just the margin passes in
5 % of all runs, and the interval to judge is the two-sided one of 90 %, whose ends are one-sided bounds of 95 %.

All tasks must pass for the whole to pass, which needs no correction for their number (intersection–union); that a
certain task regressed, among many, does (`significance.holm`).
"""

from typing import Final, Literal, NamedTuple

from fp8cli.core.comparing.comparison import Interval, Verdict

Unit = Literal["pp", "%", ""]
"""In which differences are said: percentage points of a share, percent of a ratio less one, or as they are."""

_SCALE: Final = {"pp": 100.0, "%": 100.0, "": 1.0}


class Judgement(NamedTuple):
    """What is said of one metric, and why."""

    verdict: Verdict
    reason: str
    """One sentence without a full stop."""


def gate_confidence(confidence: float) -> float:
    """Confidence of the two-sided interval whose ends are one-sided bounds of `confidence`: 0.95 → 0.9."""
    if not 0.5 < confidence < 1:
        raise ValueError(f"a verdict needs a confidence above 0.5 and below 1, not {confidence}")
    return 2 * confidence - 1


def judge(interval: Interval | None, margin: float, *, higher_is_better: bool = True, unit: Unit = "pp") -> Judgement:
    """Judge the interval of a difference other − base, of `gate_confidence`, against a margin > 0 in the same unit."""
    if not margin > 0:
        raise ValueError(f"a margin lies above 0, not at {margin}")
    if interval is None:
        return Judgement("inconclusive", "there are too few items for an interval")
    low, high = (interval.low, interval.high) if higher_is_better else (-interval.high, -interval.low)
    level = f"with {100 * (1 + interval.confidence) / 2:.4g} % confidence"
    limit = f"the margin of {_said(margin, unit)}"
    if low > -margin:
        if low >= 0:
            return Judgement("pass", f"not worse at all {level}")
        worst = f"by at most {_said(-low, unit)}"
        if high < 0:
            return Judgement("pass", f"worse, but {worst} {level}, within {limit}")
        return Judgement("pass", f"worse {worst} {level}, within {limit}")
    if high < 0:
        least, most = _said(-high, unit), _said(-low, unit)
        return Judgement("regression", f"worse by at least {least} and up to {most} {level}, not within {limit}")
    most, best = _said(-low, unit), _said(high, unit)
    return Judgement("inconclusive", f"anything from {most} worse to {best} better is possible, more than {limit}")


def judge_ratio(interval: Interval | None, margin: float) -> Judgement:
    """Judge the interval of a ratio other / base of perplexities, of `gate_confidence`; margin of the ratio less one.

    ratio < 1 + margin is log ratio < log(1 + margin), so nothing depends on the scale.
    """
    if interval is not None:
        interval = Interval(
            low=interval.low - 1, high=interval.high - 1, confidence=interval.confidence, method=interval.method
        )
    return judge(interval, margin, higher_is_better=False, unit="%")


def _said(amount: float, unit: Unit) -> str:
    return f"{_SCALE[unit] * amount:.3g} {unit}".rstrip()
