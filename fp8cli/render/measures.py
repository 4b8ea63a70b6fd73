"""How the numbers of a comparison read: values, changes with their unit, intervals, p-values, what was kept.

A change of a share is in percentage points (pp), a perplexity is compared as a ratio (×), anything else has the
metric's own unit.
"""

import math
from collections.abc import Mapping
from typing import Final

from fp8cli.core.comparing.comparison import (
    ChangedItem,
    Comparison,
    Contest,
    Interval,
    MetricComparison,
    TaskComparison,
    Verdict,
)
from fp8cli.core.findings import Status
from fp8cli.render.names import shorten
from fp8cli.render.units import count

LABEL: Final = 24
"""Characters of a label that stand in a title."""
_SENTENCE: Final = 500
UNKNOWN: Final = "-"

STATUS: Final[Mapping[Verdict, Status]] = {"pass": "passed", "regression": "failed", "inconclusive": "warning"}
CHANGES: Final[Mapping[str, str]] = {"lost": "lost", "gained": "gained", "answer": "another answer"}
"""`ChangedItem.change` in words."""


def name_of(metric: MetricComparison) -> str:
    """Name a metric, its filter if it has one, and which way is better: `exact_match (strict-match) ↑`."""
    which = "" if metric.filter in {"", "none"} else f" ({metric.filter})"
    return f"{metric.metric}{which} {'↑' if metric.higher_is_better else '↓'}"


def value(metric: MetricComparison, number: float) -> str:
    """Write one side's value: `0.7656`."""
    return f"{number:.4f}" if metric.kind == "share" else four_digits(number)


def change(metric: MetricComparison) -> str:
    """Write what became of it: `−0.16 pp`, `×1.0011`, `+0.0031`."""
    match metric.kind:
        case "share":
            return f"{points(metric.difference)} pp"
        case "perplexity":
            return UNKNOWN if metric.ratio is None else f"×{metric.ratio:.4f}"
        case "mean" | "other":
            return signed(metric.difference, 4)


def spread(metric: MetricComparison) -> str:
    """Write the interval of the change, in the same unit: `−0.52 to +0.20`."""
    if metric.interval is None:
        return UNKNOWN
    low, high = metric.interval.low, metric.interval.high
    match metric.kind:
        case "share":
            return between(metric.interval)
        case "perplexity":
            return f"{low:.4f} to {high:.4f}"
        case "mean" | "other":
            return f"{signed(low, 4)} to {signed(high, 4)}"


def between(interval: Interval | None) -> str:
    """Write an interval of a share in percentage points."""
    return UNKNOWN if interval is None else f"{points(interval.low)} to {points(interval.high)}"


def points(share: float) -> str:
    """Write a difference of shares in percentage points, without the unit: `−0.16`."""
    return signed(100 * share, 2)


def signed(number: float, decimals: int) -> str:
    """Write a number with its sign, a real minus; what rounds to nothing has none."""
    text = f"{number:+z.{decimals}f}"
    return text.replace("-", "−") if float(text) or not math.isfinite(number) else text.removeprefix("+")


def four_digits(number: float) -> str:
    """Write a number that may have any size: `1.810`, `43.85`, `1.234e+07`."""
    if not math.isfinite(number) or number == 0 or not 1e-3 <= abs(number) < 1e6:
        return f"{number:.4g}"
    return f"{number:.{max(0, 3 - math.floor(math.log10(abs(number))))}f}"


def probability(p: float | None) -> str:
    """Write a p-value; one that rounds to nothing is `<0.0001`."""
    if p is None:
        return UNKNOWN
    if p < 0.0001:
        return "<0.0001"
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def kept(percentage: float | None) -> str:
    """Write a recovery: `99.79 %`."""
    return UNKNOWN if percentage is None else f"{percentage:.2f} %"


def kept_between(interval: Interval | None) -> str:
    """Write the interval of a recovery: `99.30 to 100.28`."""
    return UNKNOWN if interval is None else f"{interval.low:.2f} to {interval.high:.2f}"


def confidence_of(comparison: Comparison) -> str:
    """Write the confidence of the intervals: `95 %`."""
    return f"{100 * comparison.confidence:g} %"


def margins(comparison: Comparison) -> str:
    """Say what counts as not worse."""
    ratio = f"{1 + comparison.perplexity_margin:g}"
    return f"margin {100 * comparison.margin:g} pp, ×{ratio} for a perplexity"


def label_of(contest: Contest) -> str:
    """Return the label of the other side, short enough for a title."""
    return shorten(contest.other.label, LABEL)


def sentence(text: str) -> str:
    """Return a sentence, of bounded length whatever name stands in it."""
    return shorten(text, _SENTENCE)


def titles_of(comparison: Comparison) -> tuple[str, str]:
    """Return the labels of the base and of all others."""
    others = ", ".join(label_of(contest) for contest in comparison.contests)
    return shorten(comparison.base.label, LABEL), others


def main_metric(task: TaskComparison) -> MetricComparison | None:
    """Return the metric that the verdict on a task rests on, or its first where none can be judged."""
    return next((metric for metric in task.metrics if metric.decides), next(iter(task.metrics), None))


def items_words(number: int) -> str:
    """Write a number of items."""
    return f"{count(number)} item{'' if number == 1 else 's'}"


def needed(contest: Contest) -> int | None:
    """Return the number of items that would settle every task that is open; None where that is not known."""
    open_ones = [main_metric(task) for task in contest.tasks if task.verdict == "inconclusive"]
    known = [metric.items_needed for metric in open_ones if metric is not None and metric.items_needed is not None]
    return max(known, default=None)


def listed(changed: tuple[ChangedItem, ...], most: int) -> tuple[ChangedItem, ...]:
    """Return the first changed items, at most so many, an equal part of them from every task."""
    tasks = dict.fromkeys(item.task for item in changed)
    queues = {task: iter([item for item in changed if item.task == task]) for task in tasks}
    chosen: list[ChangedItem] = []
    while queues and len(chosen) < most:
        for task in tuple(queues):
            item = next(queues[task], None)
            if item is None:
                del queues[task]
            elif len(chosen) < most:
                chosen.append(item)
    return tuple(sorted(chosen, key=lambda item: tuple(tasks).index(item.task)))
