"""The metrics of one task on both sides: which kind each is, item by item where that holds, and which one decides.

lm-eval keeps a number per item for most metrics, but not all of them are averages: F1 and Matthews' correlation keep
pairs of labels, others are computed from the whole task. So the items count only where they add up to the value that
the results file has; a metric whose items do not is compared as a value alone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.core.comparing.comparison import MetricComparison
from fp8cli.core.comparing.items import PairedItems
from fp8cli.core.comparing.measures import (
    Measure,
    PairedBits,
    PairedMeans,
    PairedPerplexities,
    PairedShares,
    shares_of,
)
from fp8cli.core.comparing.recovery import recovery
from fp8cli.core.comparing.unpaired import PERPLEXITIES, Unpaired
from fp8cli.formats.lm_eval_results import Score
from fp8cli.formats.lm_eval_samples import Sample, Value

BITS: Final = "bits_per_byte"

DECIDING: Final = ("exact_match", "acc_norm", "acc", "prompt_level_strict_acc", "pass@1", "f1")
"""The first of these that a task has decides, as on the leaderboards: exact match for generation (GSM8K), accuracy by
length for multiple choice that has it (ARC, HellaSwag), accuracy for the rest (MMLU, Winogrande, LAMBADA). Without any
of them the first share or mean does, and where there is only a perplexity, the first of those, by its ratio."""

_CLOSE: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class MeasuredMetric:
    """One metric of one task through one filter, on both sides."""

    base: Score
    other: Score
    """Over the items of the measure."""
    higher_is_better: bool
    measure: Measure | None
    """None where nothing but two values is known."""
    chance: float | None

    @property
    def is_paired(self) -> bool:
        """Whether it rests on items, one by one."""
        return self.measure is not None and not isinstance(self.measure, Unpaired)


def measure_metrics(
    base: Sequence[Score],
    other: Sequence[Score],
    items: PairedItems | None,
    counts: tuple[int | None, int | None],
) -> tuple[MeasuredMetric, ...]:
    """Pair the scores of one task, the deciding one first; items: None without samples; counts: items of each side."""
    theirs = {(score.metric, score.filter): score for score in other}
    measured = [
        _measure(score, match, items, counts)
        for score in base
        if (match := theirs.get((score.metric, score.filter))) is not None
    ]
    if measured:
        first = min(measured, key=_rank)
        measured.remove(first)
        measured.insert(0, first)
    return tuple(measured)


def describe(metric: MeasuredMetric, confidence: float) -> MetricComparison:
    """Everything about a metric but the verdict, which the assembly gives."""
    measure, ours, theirs = metric.measure, metric.base.value, metric.other.value
    test = None if measure is None else measure.test()
    stderrs = (metric.base.stderr, metric.other.stderr) if measure is None else measure.stderrs()
    keeps = measure is not None and (measure.kind in {"share", "perplexity"} or ours > 0) and metric.base.metric != BITS
    higher = metric.higher_is_better
    kind = "other" if measure is None else measure.kind
    return MetricComparison(
        metric=metric.base.metric,
        filter=metric.base.filter,
        kind=kind,
        higher_is_better=higher,
        items=0 if measure is None else measure.items or 0,
        paired=metric.is_paired,
        base=ours,
        other=theirs,
        base_stderr=stderrs[0],
        other_stderr=stderrs[1],
        difference=theirs - ours,
        interval=None if measure is None else measure.interval(confidence),
        ratio=theirs / ours if kind == "perplexity" else None,
        test=None if test is None else test.name,
        p_value=None if test is None else test.p_value,
        p_worse=None if test is None else test.p_worse,
        p_worse_holm=None,
        recovery=recovery(ours, theirs, higher_is_better=higher) if keeps else None,
        recovery_interval=measure.recovery(confidence) if keeps and measure is not None else None,
        chance=metric.chance,
        recovery_above_chance=None if metric.chance is None else recovery(ours, theirs, chance=metric.chance),
        decides=False,
        verdict=None,
        reason=None,
        items_needed=None,
    )


def _rank(metric: MeasuredMetric) -> tuple[int, int]:
    """Smallest for the metric that decides; the order of the file settles the rest."""
    kind = "other" if metric.measure is None else metric.measure.kind
    name = metric.base.metric
    if kind in {"share", "mean"} and name != BITS:
        return (0, DECIDING.index(name) if name in DECIDING else len(DECIDING) + (kind == "mean"))
    return (1 if kind == "perplexity" else 2 if name == BITS and kind != "other" else 3, 0)


def _measure(
    base: Score, other: Score, items: PairedItems | None, counts: tuple[int | None, int | None]
) -> MeasuredMetric:
    higher = _is_higher_better(base, other)
    if items is not None and (pairs := items.by_filter.get(base.filter)):
        ours = _values(base, items.base[base.filter])
        theirs = _values(other, items.other[base.filter])
        if ours is not None and theirs is not None:
            kept = [(mine.values[base.metric], yours.values[base.metric]) for mine, yours in pairs]
            measure = _paired(base.metric, kept, higher_is_better=higher)
            if measure is not None:
                whole = len(pairs) == len(ours) == len(theirs)
                return MeasuredMetric(
                    base=base if whole else _over(base, [value for value, _ in kept]),
                    other=other if whole else _over(other, [value for _, value in kept]),
                    higher_is_better=higher,
                    measure=measure,
                    chance=_chance(mine for mine, _ in pairs) if isinstance(measure, PairedShares) else None,
                )
    unpaired = Unpaired(base=base, other=other, higher_is_better=higher, base_items=counts[0], other_items=counts[1])
    known = unpaired.kind != "other" and None not in unpaired.stderrs()
    measure = unpaired if known or unpaired.kind in {"share", "perplexity"} else None
    return MeasuredMetric(base=base, other=other, higher_is_better=higher, measure=measure, chance=None)


def _is_higher_better(base: Score, other: Score) -> bool:
    said = base.higher_is_better if base.higher_is_better is not None else other.higher_is_better
    return said if said is not None else base.metric not in PERPLEXITIES | {BITS}


def _values(score: Score, samples: Sequence[Sample]) -> list[Value] | None:
    """The metric's values of all items, if they add up to its score."""
    values = [value for sample in samples if (value := sample.values.get(score.metric)) is not None]
    if len(values) != len(samples):
        return None
    whole = _aggregate(score.metric, values)
    return values if whole is not None and math.isclose(whole, score.value, rel_tol=_CLOSE, abs_tol=1e-9) else None


def _aggregate(metric: str, values: Sequence[Value]) -> float | None:
    """The score of a task, as lm-eval computes it from its items; None where it is no average."""
    pairs = [value for value in values if isinstance(value, tuple)]
    numbers = [value for value in values if not isinstance(value, tuple)]
    if pairs:
        tokens = math.fsum(count for _, count in pairs)
        if numbers or metric not in {*PERPLEXITIES, BITS} or tokens <= 0:
            return None
        loss = -math.fsum(likelihood for likelihood, _ in pairs) / tokens
        return loss / math.log(2) if metric == BITS else _exp(loss)
    mean = math.fsum(numbers) / len(numbers)
    return _exp(-mean) if metric in PERPLEXITIES else mean


def _exp(loss: float) -> float | None:
    try:
        return math.exp(loss)
    except OverflowError:
        return None


def _paired(metric: str, pairs: Sequence[tuple[Value, Value]], *, higher_is_better: bool) -> Measure | None:
    if metric in {*PERPLEXITIES, BITS}:
        perplexities = _perplexities(pairs)
        return PairedBits(perplexities=perplexities) if perplexities and metric == BITS else perplexities
    base = [value for value, _ in pairs if not isinstance(value, tuple)]
    other = [value for _, value in pairs if not isinstance(value, tuple)]
    if {*base, *other} <= {0.0, 1.0}:
        return shares_of(base, other, higher_is_better=higher_is_better)
    return PairedMeans(base=base, other=other, higher_is_better=higher_is_better)


def _perplexities(pairs: Sequence[tuple[Value, Value]]) -> PairedPerplexities | None:
    """None where the two sides do not count the same words or bytes: there is no common loss then."""
    ours, theirs = ([_with_count(value) for value in values] for values in zip(*pairs, strict=True))
    tokens = [count for _, count in ours]
    if tokens != [count for _, count in theirs]:
        return None
    return PairedPerplexities(
        base_losses=[-likelihood for likelihood, _ in ours],
        other_losses=[-likelihood for likelihood, _ in theirs],
        tokens=tokens,
    )


def _with_count(value: Value) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, 1.0)


def _over(score: Score, values: Sequence[Value]) -> Score:
    """The score over some of the items."""
    value = _aggregate(score.metric, values)
    return Score(
        metric=score.metric,
        filter=score.filter,
        value=score.value if value is None else value,
        stderr=None,
        higher_is_better=score.higher_is_better,
    )


def _chance(samples: Iterable[Sample]) -> float | None:
    """What guessing gets: the mean of one over the number of choices; None where something else than a choice is asked.

    A text that is generated, or must be the most likely, is guessed by nobody.
    """
    shares = [1 / sample.choices if sample.choices else 0.0 for sample in samples]
    return math.fsum(shares) / len(shares) if shares and all(shares) else None
