"""The report of a choice within a budget, put together from what the measurer or the kernel found."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from fp8cli.core.budgeting.groups import Group, patterns_of
from fp8cli.core.budgeting.ordering import BudgetOrder
from fp8cli.core.budgeting.report import BudgetReport, CurvePoint, GroupReport
from fp8cli.core.budgeting.weight_choice import decibels, worst_ratio
from fp8cli.core.quantizing.modifiers import Modifiers
from fp8cli.core.quantizing.plan import Plan

WEIGHTS_NOTE: Final = (
    "chosen by the weights alone: how much each is changed by FP8 is known, what that does to the model's answers is "
    "not; name texts with --calibration-data to measure it"
)
EXHAUSTED_NOTE: Final = (
    "the measurements ran out before all neighbours of the choice were tried; a slightly better one may exist"
)

UNMEASURED: Final[Mapping[str, Any]] = {"kl": None, "kl_se": None, "same_top": None, "own_run": False}
"""What is said of a set whose KL is not known."""


def assemble(
    order: BudgetOrder,
    plan: Plan,
    linears: Sequence[str],
    groups: Sequence[Group],
    found: Mapping[str, Any],
    *,
    fixed: int,
    known: bool,
    seconds: float,
) -> BudgetReport | None:
    """Put the report together; None where not even everything in 16 bits meets the budget.

    plan: that quantizes all groups. found: as `measurer.budget_protocol` has it, of the groups after the first `fixed`
    ones, which stay in 16 bits whatever is found. linears: see `BudgetRequest`.
    """
    if found["kept"] is None:
        return None
    kept = {*range(fixed), *(fixed + number for number in found["kept"])}
    reports = [_group(group, number, found, fixed=fixed, kept=number in kept) for number, group in enumerate(groups)]
    ranking = sorted(range(len(groups)), key=lambda number: (number < fixed, _sturdiness(reports[number]), number))
    place = {number: rank for rank, number in enumerate(ranking)}
    points = _curve(plan, groups, found, fixed, place)
    chosen = next(point for point in points if point.chosen)
    staying = [groups[number] for number in sorted(kept)]
    data = order.data
    notes = [] if data is not None else [WEIGHTS_NOTE]
    if order.modifiers.names:
        notes.append(_fitted_note(order.modifiers))
    if found["exhausted"]:
        notes.append(EXHAUSTED_NOTE)
    return BudgetReport(
        kind=order.budget.kind,
        value=order.budget.value,
        said=order.budget.said,
        source="weights" if data is None else "data",
        data=None if data is None else data.source,
        data_fingerprint=None if data is None else data.fingerprint,
        samples=found.get("samples"),
        tokens=found.get("tokens"),
        token_ids_sha256=found.get("token_ids_sha256"),
        positions=found["positions"],
        groups=tuple(reports[number] for number in ranking),
        curve=points,
        chosen=chosen,
        kept_modules=tuple(module for group in staying for module in group.modules),
        ignore=patterns_of(staying, linears),
        measured=0 if data is None else len(found["sets"]),
        modifiers=order.modifiers.names,
        runs=sum(each["own_run"] for each in found["sets"]),
        exhausted=found["exhausted"],
        device=found.get("device"),
        seconds=seconds,
        known=known,
        notes=tuple(notes),
    )


def _fitted_note(modifiers: Modifiers) -> str:
    names = " and ".join(modifiers.names)
    return f"KL was measured on the texts that {names} had too; on others it may be higher"


def say_why(plan: Plan, report: BudgetReport) -> Plan:
    """Return a plan made with `report.ignore` with the budget as the reason for what that keeps: no user named it."""
    ours = {f"ignored by `{pattern}`" for pattern in report.ignore}
    reason = f"kept in 16 bits by {report.said}"
    return replace(
        plan,
        tensors=tuple(replace(tensor, reason=reason) if tensor.reason in ours else tensor for tensor in plan.tensors),
    )


def _group(group: Group, number: int, found: Mapping[str, Any], *, fixed: int, kept: bool) -> GroupReport:
    told: Mapping[str, Any] = found["groups"][number - fixed] if number >= fixed else {}
    weights, outputs = told.get("weights"), told.get("outputs")
    return GroupReport(
        name=group.name,
        modules=group.modules,
        saved_bytes=group.saved_bytes,
        kept=kept,
        kl_alone=told.get("alone"),
        kl_share=told.get("cost"),
        weight_sqnr_db=None if weights is None else decibels(worst_ratio(weights)),
        output_sqnr_db=None if outputs is None else decibels(worst_ratio(outputs)),
    )


def _sturdiness(group: GroupReport) -> float:
    """Return what the most fragile group has least of."""
    if group.kl_alone is not None:
        return -group.kl_alone
    known = (each for each in (group.output_sqnr_db, group.weight_sqnr_db) if each is not None)
    return next(known, math.inf)


def _curve(
    plan: Plan, groups: Sequence[Group], found: Mapping[str, Any], fixed: int, place: Mapping[int, int]
) -> tuple[CurvePoint, ...]:
    """Return the sets that no other beats, by bytes, and the chosen one."""
    chosen = tuple(found["kept"])
    sets = {tuple(each["kept"]): each for each in found["sets"]}
    sets.setdefault(chosen, UNMEASURED)
    whole = sum(plan.bytes_after.values()) + sum(group.saved_bytes for group in groups[:fixed])

    def size(kept: tuple[int, ...]) -> int:
        return whole + sum(groups[fixed + number].saved_bytes for number in kept)

    ratios = [worst_ratio(group["outputs"] or group["weights"]) for group in found["groups"]]
    points = []
    least = math.inf
    for kept, each in sorted(sets.items(), key=lambda item: (size(item[0]), item[1]["kl"] or 0.0)):
        kl = each["kl"]
        if kl is not None and kl >= least and kept != chosen:
            continue
        least = least if kl is None else min(least, kl)
        left = [ratio for number, ratio in enumerate(ratios) if number not in kept]
        points.append(
            CurvePoint(
                kept=tuple(sorted([*(place[number] for number in range(fixed)), *(place[fixed + n] for n in kept)])),
                tensor_bytes=size(kept),
                kl=kl,
                kl_se=each["kl_se"],
                same_top=each["same_top"],
                lowest_sqnr_db=decibels(max(left)) if left else None,
                own_run=each["own_run"],
                chosen=kept == chosen,
            )
        )
    return tuple(points)
