"""A report as a drawing: bytes by role, scales over depth, signal to noise over depth, one below the other.

Every kind of module has a colour, a line and a marker, so that a grey print tells them apart too. A panel without
data says why.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import log10
from typing import Any, Final, Protocol

from fp8cli.commands.inspect import InspectReport
from fp8cli.core.inspection.depth import Band, Depth, FidelityDepth, ScaleDepth, Span
from fp8cli.core.inspection.depth_axis import Axis
from fp8cli.core.inspection.fidelity_verdict import EXPECTED_DB, POOR_DB, WRONG_DB
from fp8cli.core.inspection.roles import RoleRow
from fp8cli.render import captions
from fp8cli.render.canvas import EDGE, WIDTH, Canvas, Format, canvas
from fp8cli.render.captions import Note
from fp8cli.render.names import shorten
from fp8cli.render.palette import ALARM, BLUE, GREEN, GREY, INK, ORANGE, SOFT, VIOLET
from fp8cli.render.ticks import layer_ticks, scale_limits, scale_ticks, spread

_STYLES: Final = (
    {"color": BLUE, "linestyle": "-", "marker": "o"},
    {"color": ORANGE, "linestyle": "--", "marker": "s"},
    {"color": GREEN, "linestyle": ":", "marker": "^"},
    {"color": VIOLET, "linestyle": "-.", "marker": "D"},
)
_KINDS: Final = ("attention", "mlp", "experts", "other")
# Inches.
_TITLE, _LINE, _GAP = 0.27, 0.19, 0.32
_LEFT, _RIGHT, _PLOT, _BELOW = 0.85, 1.45, 2.1, 0.48
_BAR, _ROLE_NAMES, _ROLE_FIGURES = 0.29, 2.35, 2.9
_MARKED: Final = 64
"""Positions up to which every middle has a marker of its own."""
# Characters that fit.
_LONGEST_NAME, _PER_INCH, _SHORTEST_STACK = 68, 11, 6


def draw_figure(report: InspectReport, depth: Depth, kind: Format, *, headline: bool = True) -> bytes:
    """Return the drawing of a report. The same report gives the same bytes. Raises ImportError without matplotlib."""
    panels = list(_panels(report, depth, headline=headline))
    with canvas(2 * EDGE + sum(panel.height for panel in panels) + _GAP * (len(panels) - 1)) as sheet:
        top = EDGE
        for panel in panels:
            panel.draw(sheet, top)
            top += panel.height + _GAP
        return sheet.save(kind)


class _Panel(Protocol):
    @property
    def height(self) -> float: ...

    def draw(self, sheet: Canvas, top: float) -> None: ...


def _panels(report: InspectReport, depth: Depth, *, headline: bool) -> Iterator[_Panel]:
    if headline:
        yield _Headline(report)
    yield _Roles(report.roles) if report.roles else _Empty("Bytes by role", "no tensor could be read")
    yield from (_Scales(scales, depth.axis) for scales in depth.scales)
    if not depth.scales:
        yield _Empty("Scales over depth", captions.no_scales(report))
    title = "Signal to noise (SQNR) over depth"
    if depth.fidelity is None:
        yield _Empty(title, captions.no_fidelity(report))
    else:
        yield _Fidelity(title, captions.fidelity_notes(depth.fidelity, report), depth.fidelity, depth.axis)


@dataclass(frozen=True)
class _Headline:
    report: InspectReport
    height: float = 0.42 + 3 * 0.21

    def draw(self, sheet: Canvas, top: float) -> None:
        verdict = captions.verdict_note(self.report)
        sheet.text(EDGE, top, self.report.name, longest=_LONGEST_NAME, fontsize=14, fontweight="bold")
        sheet.text(EDGE, top + 0.36, captions.scheme_line(self.report), fontsize=10)
        sheet.text(EDGE, top + 0.57, captions.size_line(self.report), fontsize=10, color=SOFT)
        sheet.text(EDGE, top + 0.78, verdict.text, fontsize=10, color=ALARM if verdict.alarming else SOFT)


@dataclass(frozen=True)
class _Empty:
    title: str
    why: str
    height: float = _TITLE + _LINE

    def draw(self, sheet: Canvas, top: float) -> None:
        _titles(sheet, top, self.title, (Note(text=self.why),))


@dataclass(frozen=True)
class _Roles:
    rows: Sequence[RoleRow]

    @property
    def height(self) -> float:
        return _TITLE + _BAR * len(self.rows)

    def draw(self, sheet: Canvas, top: float) -> None:
        _titles(sheet, top, "Bytes by role", ())
        left, room = EDGE + _ROLE_NAMES, WIDTH - 2 * EDGE - _ROLE_NAMES - _ROLE_FIGURES
        axes = sheet.axes(left, top + _TITLE, room, _BAR * len(self.rows))
        largest = max(row.bytes for row in self.rows) or 1
        places = range(len(self.rows))
        colors = [BLUE if row.role == "quantized weights" else GREY for row in self.rows]
        axes.barh(places, [row.bytes / largest for row in self.rows], height=0.66, color=colors)
        axes.set(xlim=(0, 1), ylim=(len(self.rows) - 0.5, -0.5), xticks=[])
        axes.set_yticks(places, [captions.role_label(row) for row in self.rows], color=INK)
        axes.tick_params(left=False)
        axes.spines["bottom"].set_visible(False)
        for place, row in zip(places, self.rows, strict=True):
            end = row.bytes / largest + 0.07 / room
            axes.text(end, place, captions.role_figures(row), va="center", fontsize=9)


@dataclass(frozen=True)
class _Scales:
    scales: ScaleDepth
    axis: Axis

    @property
    def notes(self) -> tuple[Note, ...]:
        return captions.scale_notes(self.scales, self.axis)

    @property
    def height(self) -> float:
        return _height(self.notes)

    def draw(self, sheet: Canvas, top: float) -> None:
        title = captions.scale_title(self.scales)
        axes = _depth_axes(sheet, top, title, self.notes, self.axis)
        if self.scales.smallest is not None and self.scales.largest is not None:
            low, high = scale_limits(self.scales.smallest, self.scales.largest)
            ticks = scale_ticks(low, high)
            axes.set(ylim=(low, high))
            axes.set_yticks([mark for mark, _ in ticks], [label for _, label in ticks])
        else:
            axes.set(ylim=(0, 1), yticks=[])
        logarithms = [_in_log10(band) for band in self.scales.bands]
        _draw_bands(axes, logarithms, self.axis)
        sheet.legend(axes, top)
        _draw_alarms(axes, [each.position for each in self.scales.bad])


@dataclass(frozen=True)
class _Fidelity:
    title: str
    notes: tuple[Note, ...]
    fidelity: FidelityDepth
    axis: Axis

    @property
    def height(self) -> float:
        return _height(self.notes) + _LINE * len(self.fidelity.worst)

    def draw(self, sheet: Canvas, top: float) -> None:
        axes = _depth_axes(sheet, top, self.title, self.notes, self.axis)
        axes.set_ylabel("SQNR (dB)")
        spans = [span for band in self.fidelity.bands for span in band.spans]
        low = min((span.smallest for span in spans), default=EXPECTED_DB)
        high = max((span.largest for span in spans), default=EXPECTED_DB)
        floor = WRONG_DB if low < POOR_DB else POOR_DB
        low, high = min(low, floor), max(high, EXPECTED_DB)
        low, high = low - 0.12 * (high - low), high + 0.08 * (high - low)
        axes.set(ylim=(low, high))
        self._thresholds(axes, low, high)
        _draw_bands(axes, self.fidelity.bands, self.axis)
        sheet.legend(axes, top)
        self._worst(axes)
        below = top + _height(self.notes)
        for rank, worst in enumerate(self.fidelity.worst, start=1):
            # The number comes first: a name may read from right to left.
            words = f"{rank}   {captions.decibels(worst.sqnr_db)}   {shorten(worst.name, captions.LONGEST_NAME)}"
            sheet.text(_LEFT, below + _LINE * (rank - 1), words, fontsize=8.5)

    def _thresholds(self, axes: Any, low: float, high: float) -> None:
        lines = ((WRONG_DB, "wrong below", ALARM), (POOR_DB, "poor below", ALARM), (EXPECTED_DB, "expected", INK))
        shown = [line for line in lines if low <= line[0] <= high]
        places = spread([(level - low) / (high - low) for level, _, _ in shown], 0.17 / _PLOT)
        for (level, words, color), place in zip(shown, places, strict=True):
            axes.axhline(level, color=color, linewidth=0.9, linestyle=(0, (5, 3)), alpha=0.8)
            style = {"transform": axes.transAxes, "va": "center", "fontsize": 8.5, "color": color}
            axes.text(1.01, place, f"{words} {level:g} dB", **style)

    def _worst(self, axes: Any) -> None:
        """Ring and number the worst weights; those at one position get their numbers side by side."""
        numbers: dict[int, list[int]] = {}
        for rank, worst in enumerate(self.fidelity.worst, start=1):
            numbers.setdefault(worst.position, []).append(rank)
            if worst.sqnr_db > float("-inf"):
                ring = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "markeredgecolor": INK}
                axes.plot([worst.position], [worst.sqnr_db], linestyle="none", zorder=5, **ring)
        _draw_alarms(axes, [worst.position for worst in self.fidelity.worst if worst.sqnr_db == float("-inf")])
        for position, ranks in numbers.items():
            low, high = axes.get_ylim()
            lowest = max(min(worst.sqnr_db for worst in self.fidelity.worst if worst.position == position), low)
            # Below the ring, but above it where the axis ends.
            up, anchor = (9, "bottom") if lowest < low + 0.15 * (high - low) else (-7, "top")
            style = {"textcoords": "offset points", "xytext": (0, up), "ha": "center", "va": anchor, "fontsize": 8.5}
            axes.annotate(",".join(map(str, ranks)), (position, lowest), **style)


def _height(notes: Sequence[Note]) -> float:
    return _TITLE + _LINE * len(notes) + 0.08 + _PLOT + _BELOW


def _titles(sheet: Canvas, top: float, title: str, notes: Sequence[Note]) -> None:
    sheet.text(EDGE, top, title, fontsize=11, fontweight="bold")
    for number, note in enumerate(notes):
        place = top + _TITLE + _LINE * number
        sheet.text(EDGE, place, note.text, fontsize=8.5, color=ALARM if note.alarming else SOFT)


def _depth_axes(sheet: Canvas, top: float, title: str, notes: Sequence[Note], axis: Axis) -> Any:
    """Write the titles of a panel and return its axes, their depth numbered."""
    _titles(sheet, top, title, notes)
    width = WIDTH - _LEFT - _RIGHT
    axes = sheet.axes(_LEFT, top + _TITLE + _LINE * len(notes) + 0.08, width, _PLOT)
    ticks = layer_ticks(axis)
    axes.set(xlim=(-0.6, axis.end + 0.6))
    axes.set_xticks([place for place, _ in ticks], [label for _, label in ticks])
    axes.grid(axis="y")
    style = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top", "color": SOFT}
    for stack in axis.stacks:
        layers = stack.last - stack.first + 1
        room = int(layers / (axis.end + 1.2) * width * _PER_INCH)
        words = "layer" if len(axis.stacks) == 1 else shorten(sheet.legible(stack.name), room)
        if room >= _SHORTEST_STACK:
            axes.text(stack.begin + (layers - 1) / 2, -0.13, words, **style)
        if stack.begin:
            axes.axvline(stack.begin - 1, color=SOFT, linewidth=0.8, linestyle=":")
    if axis.outside is not None:
        axes.text(axis.outside, -0.13, "no layer", **style)
    return axes


def _in_log10(band: Band) -> Band:
    spans = (
        Span(
            position=span.position,
            smallest=log10(span.smallest),
            middle=log10(span.middle),
            largest=log10(span.largest),
            tensors=span.tensors,
        )
        for span in band.spans
    )
    return Band(name=band.name, spans=tuple(spans))


def _draw_bands(axes: Any, bands: Sequence[Band], axis: Axis) -> None:
    """Draw from smallest to largest as an area, and the middle as a line; a single layer as a stroke with a mark."""
    is_marked = axis.end <= _MARKED
    for number, band in enumerate(bands):
        style = _STYLES[(_KINDS.index(band.name) if band.name in _KINDS else number) % len(_STYLES)]
        label: str | None = band.name
        for _, group in groupby(band.spans, key=lambda span: axis.stack_at(span.position)):
            spans = list(group)
            beside = 0.14 * (number - (len(bands) - 1) / 2) if len(spans) == 1 else 0
            at = [span.position + beside for span in spans]
            lows, highs = [span.smallest for span in spans], [span.largest for span in spans]
            if len(spans) == 1:
                axes.vlines(at, lows, highs, color=style["color"], alpha=0.45, linewidth=4)
            axes.fill_between(at, lows, highs, color=style["color"], alpha=0.16, linewidth=0)
            for edge in (lows, highs):
                axes.plot(at, edge, color=style["color"], linestyle=style["linestyle"], linewidth=0.7, alpha=0.55)
            line = {**style, "marker": style["marker"] if is_marked or len(spans) == 1 else None}
            axes.plot(at, [span.middle for span in spans], label=label, linewidth=1.5, markersize=3.2, **line)
            label = None


def _draw_alarms(axes: Any, positions: Sequence[int]) -> None:
    """Cross out positions at the lower edge."""
    cross = {"marker": "X", "markersize": 6, "markerfacecolor": ALARM, "markeredgecolor": INK, "markeredgewidth": 0.6}
    edge = axes.get_xaxis_transform()
    axes.plot(positions, [0.05] * len(positions), transform=edge, linestyle="none", clip_on=False, zorder=6, **cross)
