"""A comparison as Markdown, ready for a model card: the table that readers look for, fidelity, settings, command."""

from collections.abc import Iterator
from typing import Final

from fp8cli import __version__
from fp8cli.core.comparing.comparison import Comparison, Contest, Side
from fp8cli.render import measures
from fp8cli.render.comparison import fidelity_lines, judged_by, task_verdicts, total_lines, unchecked_lines
from fp8cli.render.comparison_tables import cost_table, differences_table, fidelity_table
from fp8cli.render.measures import LABEL
from fp8cli.render.names import shorten
from fp8cli.render.sections import Command, Judged, Part, Section, to_markdown
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count

_SETTING: Final = 80


def comparison_to_markdown(comparison: Comparison) -> str:
    """Return the text of a section of a model card."""
    return "".join(f"{line}\n" for line in to_markdown(_sections(comparison)))


def _sections(comparison: Comparison) -> Iterator[Section]:
    for place, contest in enumerate(comparison.contests):
        yield _contest(comparison, contest, first=place == 0)
    fidelity = fidelity_table(comparison)
    if fidelity is not None:
        yield Section(title="Fidelity", parts=(fidelity, *fidelity_lines(comparison)))
    costs = cost_table(comparison)
    if costs is not None:
        yield Section(title="Costs", parts=(costs,))
    yield Section(title="How it was measured", parts=tuple(_settings(comparison)))


def _contest(comparison: Comparison, contest: Contest, *, first: bool) -> Section:
    base = shorten(comparison.base.label, LABEL)
    judged = Judged(
        status=measures.STATUS[contest.verdict],
        word=contest.verdict.upper(),
        text=measures.sentence(contest.reason),
    )
    parts: list[Part] = [judged, _table(comparison, contest)]
    if contest.total is not None and contest.total.tasks > 1:
        parts.extend(total_lines(contest.total))
    parts.extend((*task_verdicts(contest), *map(measures.sentence, contest.notes)))
    if first:
        parts.append(f"Judged by: {judged_by(comparison)}.")
    return Section(title=f"Evaluation: {measures.label_of(contest)} against {base}", parts=tuple(parts))


def _table(comparison: Comparison, contest: Contest) -> Table:
    columns = (
        Column(title="task"),
        Column(title="metric"),
        Column(title="shots", right=True),
        Column(title="items", right=True),
        Column(title=shorten(comparison.base.label, LABEL), right=True),
        Column(title=measures.label_of(contest), right=True),
        Column(title="recovery", right=True),
        Column(title="Δ", right=True),
        Column(title=f"{measures.confidence_of(comparison)} interval", right=True),
        Column(title="verdict"),
    )
    rows = tuple(
        (
            shorten(task.task, _SETTING),
            measures.name_of(metric),
            measures.UNKNOWN if task.num_fewshot is None else count(task.num_fewshot),
            count(metric.items),
            measures.value(metric, metric.base),
            measures.value(metric, metric.other),
            measures.kept(metric.recovery),
            measures.change(metric),
            measures.spread(metric),
            task.verdict if metric.decides else "",
        )
        for task in contest.tasks
        for metric in task.metrics
    )
    total = contest.total
    if total is None or total.tasks < 2:
        return Table(columns=columns, rows=rows)
    means = (f"{total.base:.4f}", f"{total.other:.4f}", measures.kept(total.recovery))
    change = (f"{measures.points(total.macro_difference)} pp", measures.between(total.macro_interval))
    return Table(
        columns=columns,
        rows=rows,
        total=(f"mean of {count(total.tasks)} tasks", "", "", count(total.items), *means, *change, contest.verdict),
    )


def _settings(comparison: Comparison) -> Iterator[Part]:
    sides = (comparison.base, *(contest.other for contest in comparison.contests))
    yield settings_table(sides)
    for contest in comparison.contests:
        differs = differences_table(comparison, contest)
        if differs is not None:
            yield f"Differences that were allowed, {measures.label_of(contest)}:"
            yield differs
        yield from unchecked_lines(contest)
    yield from map(measures.sentence, comparison.notes)
    if comparison.command:
        yield Command(text=comparison.command)
    yield f"fp8 {__version__}"


def settings_table(sides: tuple[Side, ...]) -> Table:
    """How every side was run, a row for each thing that is known of any."""
    rows = [
        (name, *(shorten(cell or measures.UNKNOWN, _SETTING) for cell in cells))
        for name, cells in (
            ("model", [side.model for side in sides]),
            ("quantization", [side.quantization for side in sides]),
            ("executed as", [side.executed_as for side in sides]),
            ("backend", [side.backend for side in sides]),
            ("hardware", [side.hardware for side in sides]),
            ("measured", [side.created for side in sides]),
        )
        if any(cells)
    ]
    named = {row[0] for row in rows}
    keys = dict.fromkeys(key for side in sides for key in side.settings if key not in named)
    rows.extend(
        (shorten(key, _SETTING), *(shorten(side.settings.get(key, measures.UNKNOWN), _SETTING) for side in sides))
        for key in keys
    )
    rows.extend(
        ("note", *(shorten(note, 4 * _SETTING) if each is side else "" for each in sides))
        for side in sides
        for note in side.notes
    )
    titles = ("", *(shorten(side.label, LABEL) for side in sides))
    return Table(columns=tuple(Column(title=title) for title in titles), rows=tuple(rows))
