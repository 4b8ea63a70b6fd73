"""What a choice within a budget is to decide, as the job of the measurer says it, and what it finds.

The result has, with groups called by their numbers from 0 in the order of the work:

    groups      for each: weights, of each of its Linears [sum of squares of the weight, of its rounding error];
                outputs, the same of what its Linears (for experts: their layer) put out, null unless the goal is an
                SQNR; alone, KL with this group alone in FP8, and cost, its share of the whole (see `budget_choosing`),
                both null if the goal is an SQNR
    sets        all that were measured: {kept: [group, …], kl, kl_se, same_top, own_run}, see `reference.Divergence`;
                own_run: whether modifiers ran for that set alone (see `budget_settling`)
    kept        the groups that stay in 16 bits; null where not even all of them meet the budget, or with modifiers none
                that got a run of its own
    exhausted   whether the measurements, or such runs, ran out before everything better was tried
    positions   next-token distributions that each set was measured on
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fp8cli.measurer.explore_protocol import read_scheme
from fp8cli.simulator.scheme import SimulatedScheme

GoalKind = Literal["kl", "sqnr", "size"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One budget."""

    kind: GoalKind
    value: float
    """Nats that KL may have; decibels that the SQNR of each group must have; bytes that what is kept may cost."""


@dataclass(frozen=True, kw_only=True)
class BudgetGroup:
    """Linears that are rounded together or not at all."""

    name: str
    weights: tuple[str, ...]
    """Names of their weights in the checkpoint."""
    saved_bytes: int
    """What quantizing them saves; more than 0."""


@dataclass(frozen=True, kw_only=True)
class BudgetWork:
    """Groups of which some are to stay in 16 bits, so that a budget is met."""

    scheme: SimulatedScheme
    groups: tuple[BudgetGroup, ...]
    goal: Goal
    most: int
    """Sets that may be measured."""
    kind: Literal["budget"] = "budget"


def read_budget_work(fields: Mapping[str, Any]) -> BudgetWork:
    """Return the work of a job that was read as JSON."""
    groups = tuple(BudgetGroup(**{**group, "weights": tuple(group["weights"])}) for group in fields["groups"])
    return BudgetWork(
        scheme=read_scheme(fields["scheme"]), groups=groups, goal=Goal(**fields["goal"]), most=int(fields["most"])
    )
