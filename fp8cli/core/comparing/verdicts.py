"""Verdicts on tasks, on the whole of a contest, and on their totals.

The metric that decides is judged by non-inferiority (`judging`). That all tasks pass needs no correction for their
number; that one of many regressed does, so a regression stands only if Holm's adjusted p-value says so too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from fp8cli.core.comparing.comparison import Flips, Interval, MetricComparison, TaskComparison, Total, Verdict
from fp8cli.core.comparing.drafts import TaskDraft
from fp8cli.core.comparing.judging import Judgement, Unit, gate_confidence, judge, judge_ratio
from fp8cli.core.comparing.metrics import MeasuredMetric, describe
from fp8cli.core.comparing.recovery import recovery
from fp8cli.core.comparing.significance import holm
from fp8cli.core.comparing.totals import weigh

SEVERITY: Final[tuple[Verdict, ...]] = ("pass", "inconclusive", "regression")
"""From best to worst."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be lost, and how sure the answer must be."""

    margin: float
    """In the metric's unit."""
    perplexity_margin: float
    """Of the ratio less one."""
    confidence: float


def judge_tasks(drafts: Sequence[TaskDraft], limits: Limits) -> tuple[TaskComparison, ...]:
    """Give every task its verdict."""
    described = [tuple(describe(metric, limits.confidence) for metric in draft.metrics) for draft in drafts]
    worse = [metrics[0].p_worse if metrics else None for metrics in described]
    adjusted = iter(holm([p for p in worse if p is not None]))
    return tuple(
        _task(draft, metrics, None if p is None else next(adjusted), limits, alone=len(drafts) == 1)
        for draft, metrics, p in zip(drafts, described, worse, strict=True)
    )


def judge_contest(tasks: Sequence[TaskComparison]) -> Judgement:
    """Judge a contest by its tasks: pass if all pass, regression if one regressed."""
    if len(tasks) == 1:
        reason = tasks[0].metrics[0].reason if tasks[0].metrics else None
        return Judgement(tasks[0].verdict, reason or tasks[0].note or "nothing could be judged")
    by_verdict = {verdict: [task for task in tasks if task.verdict == verdict] for verdict in SEVERITY}
    if lost := by_verdict["regression"]:
        worst = lost[0].metrics[0].reason
        others = "" if len(lost) == 1 else f", and so did {len(lost) - 1} more"
        return Judgement("regression", f"`{lost[0].task}` regressed: {worst}{others}")
    if unsettled := by_verdict["inconclusive"]:
        names = ", ".join(f"`{task.task}`" for task in unsettled[:3]) + (", …" if len(unsettled) > 3 else "")
        return Judgement("inconclusive", f"{len(unsettled)} of {len(tasks)} tasks are not settled: {names}")
    return Judgement("pass", f"each of {len(tasks)} tasks passed by itself")


def add_up(tasks: Sequence[TaskComparison]) -> Total | None:
    """Add up the tasks that are decided by a share, or a mean of numbers in [0, 1]; None for fewer than two of them."""
    counted = [
        (task, metric)
        for task in tasks
        if task.metrics and (metric := task.metrics[0]).higher_is_better and _is_in_unit(metric)
    ]
    if len(counted) < 2:
        return None
    metrics = [metric for _, metric in counted]
    differences, intervals = [each.difference for each in metrics], [each.interval for each in metrics]
    items = [each.items for each in metrics]
    macro, macro_interval = weigh(differences, intervals, [1.0] * len(metrics))
    micro, micro_interval = weigh(differences, intervals, items) if all(items) else (macro, None)
    base, other = (sum(values) / len(metrics) for values in zip(*((m.base, m.other) for m in metrics), strict=True))
    flips = [task.flips for task, _ in counted]
    return Total(
        tasks=len(metrics),
        items=sum(items),
        base=base,
        other=other,
        macro_difference=macro,
        macro_interval=macro_interval,
        micro_difference=micro,
        micro_interval=micro_interval,
        recovery=recovery(base, other),
        flips=_summed([each for each in flips if each is not None]) if all(flips) else None,
    )


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the worst of some verdicts; of none, that nothing is settled."""
    return max(verdicts, key=SEVERITY.index, default="inconclusive")


def _is_in_unit(metric: MetricComparison) -> bool:
    return metric.kind in {"share", "mean"} and 0 <= metric.base <= 1 and 0 <= metric.other <= 1


def _summed(flips: Sequence[Flips]) -> Flips:
    return Flips(
        items=sum(each.items for each in flips),
        lost=sum(each.lost for each in flips),
        gained=sum(each.gained for each in flips),
        answers=sum(each.answers for each in flips),
        answers_changed=sum(each.answers_changed for each in flips),
    )


def _task(
    draft: TaskDraft, metrics: tuple[MetricComparison, ...], p_holm: float | None, limits: Limits, *, alone: bool
) -> TaskComparison:
    verdict: Verdict = "inconclusive"
    if metrics:
        judgement = _judge(draft.metrics[0], p_holm, limits, alone=alone)
        verdict = judgement.verdict
        needed = _items_needed(draft.metrics[0], limits) if verdict == "inconclusive" else None
        first = replace(
            metrics[0],
            p_worse_holm=p_holm,
            decides=True,
            verdict=verdict,
            reason=judgement.reason,
            items_needed=None if needed is None else max(needed, metrics[0].items + 1),
        )
        metrics = (first, *metrics[1:])
    return TaskComparison(
        task=draft.task,
        version=draft.version,
        num_fewshot=draft.num_fewshot,
        items=draft.items,
        metrics=metrics,
        flips=draft.flips,
        verdict=verdict,
        note=draft.note,
    )


def _judge(metric: MeasuredMetric, p_holm: float | None, limits: Limits, *, alone: bool) -> Judgement:
    measure = metric.measure
    if measure is None:
        return Judgement("inconclusive", f"of {metric.base.metric} nothing is known but its two values")
    interval: Interval | None = measure.interval(gate_confidence(limits.confidence))
    if interval is None and not metric.is_paired:
        return Judgement("inconclusive", f"of {metric.base.metric} no standard error is known")
    if measure.kind == "perplexity":
        judgement = judge_ratio(interval, limits.perplexity_margin)
    else:
        unit: Unit = "pp" if measure.kind == "share" else ""
        judgement = judge(interval, limits.margin, higher_is_better=metric.higher_is_better, unit=unit)
    if judgement.verdict == "regression" and not alone and p_holm is not None and p_holm > 1 - limits.confidence:
        reason = f"worse by itself, but among so many tasks that may be chance (Holm's p is {p_holm:.2g})"
        return Judgement("inconclusive", reason)
    return judgement


def _items_needed(metric: MeasuredMetric, limits: Limits) -> int | None:
    if metric.measure is None:
        return None
    is_ratio = metric.measure.kind == "perplexity"
    return metric.measure.items_needed(limits.perplexity_margin if is_ratio else limits.margin)
