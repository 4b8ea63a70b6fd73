"""The checks made, and what they mean for each task.

A task is as well as the worst of the checks it needs: failed before warning, warning before not checked. No check can
crash (see `environment.guard`), and none is made that nobody asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from fp8cli.core.doctor.environment import Check, guard
from fp8cli.core.doctor.examinations import TASKS, Category, Examination, Task
from fp8cli.core.doctor.surroundings import Surroundings
from fp8cli.core.findings import Status

_WORST_FIRST: Final[tuple[Status, ...]] = ("failed", "warning", "not checked", "passed")


@dataclass(frozen=True, kw_only=True)
class Diagnosed:
    """One check that was made, with its place in the table."""

    category: Category
    check: Check
    tasks: tuple[Task, ...]


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """How a task would go."""

    task: Task
    status: Status
    because: tuple[str, ...]
    """Names of the checks that make it so; none when it is passed."""


def diagnose(seen: Surroundings, examinations: Sequence[Examination]) -> tuple[Diagnosed, ...]:
    """Make the checks. Never raises."""
    return tuple(
        Diagnosed(
            category=each.category,
            check=guard(each.name, partial(each.make, seen)),
            tasks=each.tasks,
        )
        for each in examinations
    )


def judge_tasks(diagnosed: Sequence[Diagnosed]) -> tuple[Prospect, ...]:
    """Say of each task how it would go, by the checks it needs."""
    prospects: list[Prospect] = []
    for task in TASKS:
        needed = [each.check for each in diagnosed if task in each.tasks]
        status: Status = next(
            (one for one in _WORST_FIRST if any(check.status == one for check in needed)), "not checked"
        )
        because = () if status == "passed" else tuple(check.name for check in needed if check.status == status)
        prospects.append(Prospect(task=task, status=status, because=because))
    return tuple(prospects)
