"""One task on both sides before any verdict: its metrics measured, its flips counted, and what speaks against it.

Verdicts come later, over all tasks together. Samples are read here and let go of: a task can have gigabytes of them.
"""

from dataclasses import dataclass

from fp8cli.core.comparing.changed import find_changed
from fp8cli.core.comparing.comparability import Findings, compare_counts, compare_items, compare_settings, joined
from fp8cli.core.comparing.comparison import ChangedItem, Flips
from fp8cli.core.comparing.items import PairedItems, pair_items
from fp8cli.core.comparing.metrics import MeasuredMetric, measure_metrics
from fp8cli.core.comparing.sides import Evidence
from fp8cli.core.comparing.unpaired import infer_items
from fp8cli.formats.lm_eval_results import TaskResults


@dataclass(frozen=True, kw_only=True)
class TaskDraft:
    """One task on both sides, without a verdict."""

    task: str
    version: str | None
    num_fewshot: int | None
    items: int
    """0 where nobody knows."""
    metrics: tuple[MeasuredMetric, ...]
    """The deciding one first."""
    flips: Flips | None
    changed: tuple[ChangedItem, ...]
    note: str | None
    findings: Findings


def draft_task(task: str, base: Evidence, other: Evidence, allow: frozenset[str]) -> TaskDraft:
    """Measure one task. Raises BadInput where samples are broken."""
    ours, theirs = base.results.tasks[task], other.results.tasks[task]
    items = None
    if ours.samples is not None and theirs.samples is not None:
        items = pair_items(ours.samples, theirs.samples)
    counts, inferred = (_count(ours), _count(theirs)), ours.items is None or theirs.items is None
    found = [compare_settings(base, other, task, allow, hashed=items is not None and not items.unhashed)]
    if items is not None:
        found.append(compare_items(task, items, allow))
    else:
        # What is inferred from rounded figures is about right, and no ground for a refusal.
        found.append(compare_counts(task, ours.items, theirs.items, allow))
    metrics = measure_metrics(ours.scores, theirs.scores, items, counts)
    flips, changed = (None, ()) if items is None or not metrics else find_changed(task, metrics[0], items)
    known = [count for count in counts if count is not None]
    measured = metrics[0].measure.items if metrics and metrics[0].measure is not None else None
    return TaskDraft(
        task=task,
        version=ours.version,
        num_fewshot=ours.num_fewshot,
        items=measured or min(known, default=0),
        metrics=metrics,
        flips=flips,
        changed=changed,
        note=_note(items, metrics, known, inferred=inferred),
        findings=joined(found),
    )


def _count(results: TaskResults) -> int | None:
    if results.items is not None:
        return results.items
    return next((items for score in results.scores if (items := infer_items(score)) is not None), None)


def _note(
    items: PairedItems | None, metrics: tuple[MeasuredMetric, ...], counts: list[int], *, inferred: bool
) -> str | None:
    if not metrics:
        return "the two sides have no metric in common"
    if items is None:
        number = f"; about {min(counts):,} items, inferred from value and standard error" if inferred and counts else ""
        return (
            f"no samples on both sides, so nothing is paired and the interval is as wide as two separate ones{number}"
        )
    if not metrics[0].is_paired:
        return f"the items do not add up to {metrics[0].base.metric}, or none are common, so nothing is paired"
    left_out = len(items.only_base) + len(items.only_other)
    moved = len(items.differing.get("documents", ()))
    if left_out or moved:
        return f"only items that both sides have count; {left_out + moved:,} others are left out"
    return None
