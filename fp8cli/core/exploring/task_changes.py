"""What a form changes on tasks: lm-eval's answers of the model as it is and of the form, paired item by item."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.comparing.comparison import MetricComparison
from fp8cli.core.comparing.items import pair_items
from fp8cli.core.comparing.metrics import describe, measure_metrics
from fp8cli.formats.lm_eval_results import read_results
from fp8cli.measurer.explore_protocol import RESULTS, samples_file

CONFIDENCE: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class TaskChange:
    """One task on the model as it is (`base`) and on a form of it (`other`)."""

    task: str
    metrics: tuple[MetricComparison, ...]
    """The deciding one first. There is no verdict: an exploration has no margin."""


def read_changes(base: Path, other: Path) -> tuple[TaskChange, ...]:
    """Compare the answers in two folders. Raises BadInput where they are broken."""
    ours, theirs = read_results(base / RESULTS), read_results(other / RESULTS)
    changes = []
    for task, results in ours.tasks.items():
        items = pair_items(base / samples_file(task), other / samples_file(task))
        found = theirs.tasks[task]
        metrics = measure_metrics(results.scores, found.scores, items, (results.items, found.items))
        changes.append(TaskChange(task=task, metrics=tuple(describe(metric, CONFIDENCE) for metric in metrics)))
    return tuple(changes)
