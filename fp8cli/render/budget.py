"""What was chosen to stay in 16 bits, and why: the budget, the curve of KL against bytes, the groups by fragility."""

import math
from collections.abc import Sequence
from typing import Final

from fp8cli.core.budgeting.report import BudgetReport, CurvePoint, GroupReport
from fp8cli.render.console import Output
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, number, size

_MOST_POINTS: Final = 12
"""Lines of the curve on the screen; `--json` has all."""

_BAR: Final = 12
"""Cells of the longest bar."""
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"

_CURVE: Final = (
    Column(title="16-bit groups", right=True),
    Column(title="tensors", right=True),
    Column(title="KL (nats)", right=True),
    Column(title="± se", right=True, rank=1),
    Column(title="same top token", right=True, rank=2),
    Column(title=""),
    Column(title=""),
)
_NOISE_CURVE: Final = (
    Column(title="16-bit groups", right=True),
    Column(title="tensors", right=True),
    Column(title="lowest SQNR in FP8 (dB)", right=True),
    Column(title=""),
)
_NAME: Final = Column(title="group, most fragile first", shortens=True)
_FATE: Final = Column(title="stays in")
_SAVES: Final = Column(title="saves", right=True, rank=1)
_KL: Final = (Column(title="KL alone", right=True), Column(title="its share", right=True, rank=2))
_SHOWN: Final = 5
"""Names of kept groups without --details."""


def show(report: BudgetReport, output: Output, *, details: bool = False) -> None:
    """Print what was chosen, and the curve; with `details` every group."""
    output.line(_verdict(report))
    output.line(_source(report))
    output.line()
    output.table(_curve_table(report, unicode=output.out.unicode))
    if details:
        output.line()
        output.table(_group_table(report))
    for note in report.notes:
        output.note(note)


def _verdict(report: BudgetReport) -> str:
    kept = [group.name for group in report.groups if group.kept]
    if not kept:
        return f"{report.said}: met with every Linear in FP8{_measured(report.chosen)}"
    names = ", ".join(kept[:_SHOWN])
    more = f" and {count(len(kept) - _SHOWN)} more" if len(kept) > _SHOWN else ""
    stay = "stays" if len(kept) == 1 else "stay"
    return (
        f"{report.said}: {count(len(kept))} of {count(len(report.groups))} groups of Linears {stay} in 16 bits"
        f"{_measured(report.chosen)}: {names}{more}"
    )


def _measured(point: CurvePoint) -> str:
    if point.kl is None:
        return ""
    return f", with a measured KL of {number(point.kl)} ± {number(point.kl_se or 0.0)} nats"


def _source(report: BudgetReport) -> str:
    if report.source == "weights":
        return f"sensitivities from the weights alone, in {report.seconds:.1f} s"
    sets = f"{count(report.measured)} sets measured on {count(report.positions or 0)} tokens of {report.data}"
    when = " by an earlier run" if report.known else f" in {report.seconds:.1f} s on {report.device}"
    if not report.runs:
        return f"{sets}{when}"
    which = "the chosen one" if report.runs == 1 else f"{count(report.runs)} of them, the chosen one too,"
    prepared = f"on the model as prepared by {' and '.join(report.modifiers)}"
    return f"{sets}{when}, {prepared}; {which} in a run for that set alone"


def _curve_table(report: BudgetReport, *, unicode: bool) -> Table:
    points = _thin(report.curve)
    if report.source == "weights":
        rows = tuple(
            (*_place(point), _decibels(point.lowest_sqnr_db), _mark(point, unicode=unicode)) for point in points
        )
        return Table(columns=_NOISE_CURVE, rows=rows)
    most = max((point.kl or 0.0 for point in report.curve), default=0.0)
    return Table(
        columns=_CURVE,
        rows=tuple(
            (
                *_place(point),
                number(point.kl or 0.0),
                number(point.kl_se or 0.0),
                f"{100 * (point.same_top or 0.0):.2f} %",
                _bar((point.kl or 0.0) / most if most else 0.0, unicode=unicode),
                _mark(point, unicode=unicode),
            )
            for point in points
        ),
    )


def _place(point: CurvePoint) -> tuple[str, str]:
    return count(len(point.kept)), size(point.tensor_bytes)


def _mark(point: CurvePoint, *, unicode: bool) -> str:
    return ("◀ chosen" if unicode else "< chosen") if point.chosen else ""


def _thin(points: Sequence[CurvePoint]) -> Sequence[CurvePoint]:
    """Leave out points between the ends, evenly by their order, until the rest fits; the chosen one stays."""
    if len(points) <= _MOST_POINTS:
        return points
    step = (len(points) - 1) / (_MOST_POINTS - 2)
    places = {round(number * step) for number in range(_MOST_POINTS - 1)}
    places.add(next(place for place, point in enumerate(points) if point.chosen))
    return [points[place] for place in sorted(places)]


def _bar(share: float, *, unicode: bool) -> str:
    if not unicode:
        return "#" * round(share * _BAR)
    eighths = round(share * _BAR * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _group_table(report: BudgetReport) -> Table:
    has_kl = any(group.kl_alone is not None for group in report.groups)
    what = "outputs" if any(group.output_sqnr_db is not None for group in report.groups) else "weights"
    return Table(
        columns=(_NAME, _FATE, _SAVES, *(_KL if has_kl else ()), Column(title=f"SQNR of {what} (dB)", right=True)),
        rows=tuple(
            (
                group.name,
                "16 bits" if group.kept else "FP8",
                size(group.saved_bytes) if group.saved_bytes > 0 else "nothing",
                *((_nats(group.kl_alone), _nats(group.kl_share)) if has_kl else ()),
                "not measured" if (ratio := _sqnr(group)) is None else _decibels(ratio),
            )
            for group in report.groups
        ),
    )


def _sqnr(group: GroupReport) -> float | None:
    return group.weight_sqnr_db if group.output_sqnr_db is None else group.output_sqnr_db


def _nats(value: float | None) -> str:
    return "not measured" if value is None else number(value)


def _decibels(value: float | None) -> str:
    return "none in FP8" if value is None else "no noise" if math.isinf(value) else f"{value:.1f}"
