"""The forest plot of a comparison: a table of which one column is drawn, so that it can be read without seeing it.

A row has a dot for the change and a line for its interval. Worse lies left on every axis: changes of shares in
percentage points, ratios of perplexities, and averages in their own unit have panels of their own. The dashed line is
the margin; a verdict of `pass` means that the change is shown not to lie beyond it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.core.comparing.comparison import Comparison, Contest, Kind, MetricComparison, TaskComparison, Total
from fp8cli.render import measures
from fp8cli.render.plot_axis import Axis, lay_axis, spans
from fp8cli.render.verdicts import SYMBOLS
from fp8cli.render.web_page import safe

STYLE: Final = """
.forest { table-layout: fixed; margin: .5rem 0 1.5rem; }
.forest th, .forest td { border: 0; padding: .3rem .5rem; vertical-align: middle; text-align: left; font-weight: 400; }
.forest .what { width: 27%; } .forest .change { width: 21%; } .forest .judged { width: 8.5rem; }
.forest .track { padding: 0; }
.forest svg { display: block; width: 100%; height: 3.3rem; overflow: visible; }
.forest thead svg { height: 2.75rem; }
.forest tbody tr + tr { border-top: 1px solid var(--grid); }
.forest tbody tr.group th { padding-top: 1rem; font-weight: 600; overflow-wrap: anywhere; }
.forest tbody tr.group { border-top: 0; }
.forest tbody tr.total th, .forest tbody tr.total td { font-weight: 600; }
.forest small { display: block; color: var(--soft); font-weight: 400; }
.forest .what { overflow-wrap: anywhere; }
.forest .change { padding-left: 1.25rem; font-variant-numeric: tabular-nums; }
.axis text { font-size: .75rem; fill: var(--soft); }
.zero { stroke: var(--soft); } .tick { stroke: var(--grid); }
.margin { stroke: var(--alarm); stroke-dasharray: 4 3; }
.beyond { fill: var(--alarm); opacity: .07; }
.passed { color: var(--good); } .failed { color: var(--alarm); } .warning { color: var(--doubt); }
.mark { stroke: currentColor; fill: currentColor; }
.mark line { stroke-width: 2.5; } .mark.total line { stroke-width: 7; }
.mark .hollow { fill: var(--paper); stroke-width: 2.5; }
.noise { color: var(--soft); }
@media (max-width: 44rem) {
  .forest, .forest thead, .forest tbody { display: block; }
  .forest tr { display: grid; grid-template-columns: 1fr auto; padding: .5rem 0; }
  .forest thead tr, .forest tbody tr.group { padding: 0; }
  .forest .what, .forest .change, .forest .judged { width: auto; padding: 0; }
  .forest thead .what, .forest thead .change, .forest thead .judged { display: none; }
  .forest .track, .forest .change { grid-column: 1 / -1; }
  .forest .judged { grid-column: 2; grid-row: 1; }
  .forest .change small { display: inline; margin-left: .5rem; }
}
"""


@dataclass(frozen=True, kw_only=True)
class _Row:
    what: str
    detail: str
    estimate: float
    low: float
    high: float
    change: str
    spread: str
    style: str
    judged: str
    total: bool = False


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """What can stand on one axis."""

    kind: Kind
    higher_is_better: bool
    title: str
    unit: str
    zero: float
    margin: float


@dataclass(frozen=True, kw_only=True)
class _Panel:
    scale: _Scale
    groups: tuple[tuple[str, tuple[_Row, ...]], ...]


def draw_forest(comparison: Comparison) -> Iterator[str]:
    """Yield the lines of HTML, one table for each kind of change that there is."""
    for panel in _panels(comparison):
        rows = [row for _, rows in panel.groups for row in rows]
        numbers = [number for row in rows for number in (row.estimate, row.low, row.high)]
        axis = lay_axis((*numbers, panel.scale.zero, panel.scale.margin), downwards=not panel.scale.higher_is_better)
        yield f"<h3>{panel.scale.title}</h3>"
        yield '<table class="forest">'
        yield '<thead><tr><th class="what soft" scope="col">task</th>'
        yield f'<th class="track" scope="col">{_axis(panel, axis)}</th>'
        yield f'<th class="change soft" scope="col">change, {measures.confidence_of(comparison)} interval</th>'
        yield '<th class="judged soft" scope="col">verdict</th></tr></thead>'
        for name, rows_of in panel.groups:
            yield "<tbody>"
            yield f'<tr class="group"><th colspan="4" scope="rowgroup"><bdi>{name}</bdi></th></tr>'
            yield from (_line(row, panel, axis) for row in rows_of)
            yield "</tbody>"
        yield "</table>"


def _scales(comparison: Comparison) -> Iterator[_Scale]:
    points, ratio = 100 * comparison.margin, 1 + comparison.perplexity_margin
    kinds: tuple[tuple[Kind, str, str, float, float], ...] = (
        ("share", "Change of shares in percentage points", "pp", 0.0, points),
        ("perplexity", "Ratio of perplexities", "×", 1.0, ratio),
        ("mean", "Change of averages in their own unit", "", 0.0, comparison.margin),
    )
    for kind, title, unit, zero, margin in kinds:
        for better in (True, False):
            less = "" if better or kind == "perplexity" else ", less is better"
            beyond = -margin if better and kind != "perplexity" else margin
            yield _Scale(
                kind=kind, higher_is_better=better, title=f"{title}{less}", unit=unit, zero=zero, margin=beyond
            )


def _panels(comparison: Comparison) -> Iterator[_Panel]:
    for scale in _scales(comparison):
        contests = (*comparison.contests, *(() if comparison.noise is None else (comparison.noise,)))
        groups = ((_group(contest, comparison), tuple(_rows(contest, scale, comparison))) for contest in contests)
        filled = tuple((name, rows) for name, rows in groups if rows)
        if filled:
            yield _Panel(scale=scale, groups=filled)


def _group(contest: Contest, comparison: Comparison) -> str:
    name = safe(contest.other.label, measures.LABEL)
    return f"noise floor: {name}" if contest is comparison.noise else name


def _rows(contest: Contest, scale: _Scale, comparison: Comparison) -> Iterator[_Row]:
    for task in contest.tasks:
        for metric in task.metrics:
            if metric.kind == scale.kind and metric.higher_is_better == scale.higher_is_better:
                yield _row(task, metric, noise=contest is comparison.noise)
    if scale.kind == "share" and scale.higher_is_better and contest.total is not None and contest.total.tasks > 1:
        yield _total_row(contest.total)


def _row(task: TaskComparison, metric: MetricComparison, *, noise: bool) -> _Row:
    estimate = metric.ratio if metric.kind == "perplexity" else metric.difference
    low, high = (float("nan"), float("nan")) if metric.interval is None else (metric.interval.low, metric.interval.high)
    scale = 100 if metric.kind == "share" else 1
    judged = metric.decides and not noise
    status = measures.STATUS[task.verdict]
    return _Row(
        what=safe(task.task, 60),
        detail=f"{safe(measures.name_of(metric), 60)} · {measures.items_words(metric.items)}",
        estimate=scale * (float("nan") if estimate is None else estimate),
        low=scale * low,
        high=scale * high,
        change=measures.change(metric),
        spread=measures.spread(metric),
        style=status if judged else "noise",
        judged=f"{SYMBOLS[status][0]} {task.verdict}" if judged else ("" if noise else "does not decide"),
    )


def _total_row(total: Total) -> _Row:
    interval = total.macro_interval
    low, high = (float("nan"), float("nan")) if interval is None else (100 * interval.low, 100 * interval.high)
    return _Row(
        what=f"mean of {total.tasks:,} tasks",
        detail=f"every task weighs the same · {measures.items_words(total.items)}",
        estimate=100 * total.macro_difference,
        low=low,
        high=high,
        change=f"{measures.points(total.macro_difference)} pp",
        spread=measures.between(interval),
        style="noise",
        judged="",
        total=True,
    )


def _line(row: _Row, panel: _Panel, axis: Axis) -> str:
    kind = ' class="total"' if row.total else ""
    return (
        f'<tr{kind}><th class="what" scope="row"><bdi>{row.what}</bdi><small>{row.detail}</small></th>'
        f'<td class="track">{_track(row, panel, axis)}</td>'
        f'<td class="change">{row.change}<small>{row.spread}</small></td>'
        f'<td class="judged {row.style}">{row.judged}</td></tr>'
    )


def _track(row: _Row, panel: _Panel, axis: Axis) -> str:
    words = f"{row.what}: {row.change}, {row.spread}"
    marks = []
    if spans((row.low, row.high)):
        left, right = sorted((axis.place(row.low), axis.place(row.high)))
        marks.append(f'<line class="interval" x1="{left:.3f}%" x2="{right:.3f}%" y1="50%" y2="50%"/>')
    if spans((row.estimate,)):
        marks.append(_dot(row, axis.place(row.estimate)))
    drawn = f'<g class="mark {row.style}{" total" if row.total else ""}">{"".join(marks)}</g>'
    return f'<svg role="img"><title>{words}</title>{_lines(panel, axis)}{drawn}</svg>'


def _dot(row: _Row, place: float) -> str:
    """A form for each verdict, so that a grey print tells them apart."""
    if row.total:
        return f'<circle class="estimate hollow" cx="{place:.3f}%" cy="50%" r="4"/>'
    if row.style == "failed":
        corner = "translate(-5.5 -5.5)"
        return f'<rect class="estimate" x="{place:.3f}%" y="50%" width="11" height="11" transform="{corner}"/>'
    hollow = " hollow" if row.style == "warning" else ""
    return f'<circle class="estimate{hollow}" cx="{place:.3f}%" cy="50%" r="5.5"/>'


def _lines(panel: _Panel, axis: Axis) -> str:
    """What all rows share: ticks, the line of no change, the margin, and all that lies beyond it."""
    margin = axis.place(panel.scale.margin)
    ticks = (f'<line class="tick" x1="{place}" x2="{place}" y1="0" y2="100%"/>' for place in _places(axis.ticks, axis))
    upright = (
        f'<line class="{name}" x1="{place:.3f}%" x2="{place:.3f}%" y1="0" y2="100%"/>'
        for name, place in (("zero", axis.place(panel.scale.zero)), ("margin", margin))
    )
    return f'<rect class="beyond" width="{margin:.3f}%" height="100%"/>{"".join(ticks)}{"".join(upright)}'


def _places(ticks: Sequence[float], axis: Axis) -> Iterator[str]:
    yield from (f"{axis.place(tick):.3f}%" for tick in ticks)


def _axis(panel: _Panel, axis: Axis) -> str:
    margin = f"{panel.scale.margin:g} {panel.scale.unit}".strip()
    words = f"axis from {axis.low:.4g} to {axis.high:.4g}, worse on the left, margin at {margin}"
    labels = (
        f'<text class="label" x="{place}" y="85%" text-anchor="middle">{_label(tick, panel, axis)}</text>'
        for place, tick in zip(_places(axis.ticks, axis), axis.ticks, strict=True)
    )
    ends = '<text x="0" y="35%">← worse</text><text x="100%" y="35%" text-anchor="end">better →</text>'
    return f'<svg class="axis" role="img"><title>{words}</title>{ends}{"".join(labels)}</svg>'


def _label(tick: float, panel: _Panel, axis: Axis) -> str:
    if panel.scale.zero:
        return f"{tick:.{axis.decimals}f}"
    return measures.signed(tick, axis.decimals)
