"""The tables of a comparison: what became of each task, the evidence for it, fidelity, costs, settings, changed items.

Each is whole in a pipe and in a file; on a terminal of 80 columns the least useful columns go.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from fp8cli.core.comparing.comparison import (
    ChangedItem,
    Comparison,
    Contest,
    FidelityComparison,
    MetricComparison,
    Side,
    TaskComparison,
)
from fp8cli.render import measures
from fp8cli.render.measures import LABEL, UNKNOWN
from fp8cli.render.names import shorten, tail
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, number, percent, size
from fp8cli.render.verdicts import SYMBOLS

_TASK: Final = 60
_NARROW: Final = 8
"""Characters of a label above a column of figures, whose section names it in full."""
_PROMPT, _ANSWER = 60, 28
"""Characters of a prompt's end and of an answer that a screen shows."""


def quality_table(comparison: Comparison, contest: Contest) -> Table:
    """One row a task, by the metric that decides; the total is the mean over tasks."""
    columns = (
        Column(title=""),
        Column(title="task", shortens=True),
        Column(title=_narrow(comparison.base, "base"), right=True),
        Column(title=_narrow(contest.other, "simulated"), right=True),
        Column(title="Δ", right=True),
        Column(title=f"{measures.confidence_of(comparison)} interval", right=True),
        Column(title="verdict", rank=1),
    )
    rows = tuple(_quality_row(task, metric) for task, metric in _main_metrics(contest))
    total = contest.total
    if total is None or total.tasks < 2:
        return Table(columns=columns, rows=rows)
    cells = ("", f"mean of {count(total.tasks)} tasks", f"{total.base:.4f}", f"{total.other:.4f}")
    changed = (f"{measures.points(total.macro_difference)} pp", measures.between(total.macro_interval))
    return Table(columns=columns, rows=rows, total=(*cells, *changed, ""))


def _narrow(side: Side, role: str) -> str:
    """Name a side above a column of figures; of a simulation, whose name tells nothing once it is cut, the role."""
    if len(side.label) > _NARROW and side.simulated is not None:
        return role
    return shorten(side.label, _NARROW)


def _quality_row(task: TaskComparison, metric: MetricComparison) -> tuple[str, ...]:
    symbol = SYMBOLS[measures.STATUS[task.verdict]][0]
    values = (measures.value(metric, metric.base), measures.value(metric, metric.other))
    what = f"{shorten(task.task, _TASK)} {measures.name_of(metric)}"
    return (symbol, what, *values, measures.change(metric), measures.spread(metric), task.verdict)


def _main_metrics(contest: Contest) -> Iterator[tuple[TaskComparison, MetricComparison]]:
    for task in contest.tasks:
        metric = measures.main_metric(task)
        if metric is not None:
            yield task, metric


def evidence_table(contest: Contest) -> Table:
    """What the verdicts rest on: items, flips, tests, what was kept. Tests are one-sided: that the other is worse."""
    columns = (
        Column(title="task", shortens=True),
        Column(title="items", right=True),
        Column(title="lost", right=True),
        Column(title="gained", right=True),
        Column(title="answers changed", right=True, rank=1),
        Column(title="p worse", right=True, rank=4),
        Column(title="p", right=True),
        Column(title="Holm", right=True, rank=3),
        Column(title="recovery", right=True),
        Column(title="interval", right=True, rank=5),
        Column(title="above chance", right=True, rank=2),
    )
    rows = tuple(_evidence_row(task, metric) for task, metric in _main_metrics(contest))
    return _without_empty(Table(columns=columns, rows=rows))


def _evidence_row(task: TaskComparison, metric: MetricComparison) -> tuple[str, ...]:
    flips = task.flips
    lost, gained = (UNKNOWN, UNKNOWN) if flips is None else (count(flips.lost), count(flips.gained))
    known = flips is not None and flips.answers > 0
    answers = f"{count(flips.answers_changed)} of {count(flips.answers)}" if flips is not None and known else UNKNOWN
    tests = (metric.p_worse, metric.p_value, metric.p_worse_holm)
    return (
        shorten(task.task, _TASK),
        count(metric.items),
        lost,
        gained,
        answers,
        *map(measures.probability, tests),
        measures.kept(metric.recovery),
        measures.kept_between(metric.recovery_interval),
        measures.kept(metric.recovery_above_chance),
    )


def _without_empty(table: Table) -> Table:
    """Leave out the columns of which nothing is known in any row."""
    for index in reversed(range(len(table.columns))):
        if table.rows and all(row[index] == UNKNOWN for row in table.rows):
            table = table.without(index)
    return table


def other_metrics_table(comparison: Comparison, contest: Contest) -> Table | None:
    """The metrics that do not decide; None where there are none."""
    columns = (
        Column(title="metric that does not decide", shortens=True),
        Column(title=_narrow(comparison.base, "base"), right=True),
        Column(title=_narrow(contest.other, "simulated"), right=True),
        Column(title="Δ", right=True),
        Column(title=f"{measures.confidence_of(comparison)} interval", right=True),
    )
    rows = tuple(
        (
            f"{shorten(task.task, _TASK)} {measures.name_of(metric)}",
            measures.value(metric, metric.base),
            measures.value(metric, metric.other),
            measures.change(metric),
            measures.spread(metric),
        )
        for task in contest.tasks
        for metric in task.metrics
        if metric is not measures.main_metric(task)
    )
    return Table(columns=columns, rows=rows) if rows else None


def fidelity_table(comparison: Comparison) -> Table | None:
    """A column for every contest that has fidelity, the noise floor last; None where none has."""
    contests = [*comparison.contests, *(() if comparison.noise is None else (comparison.noise,))]
    known = [(contest, contest.fidelity) for contest in contests if contest.fidelity is not None]
    if not known:
        return None
    names = ("noise floor" if contest is comparison.noise else measures.label_of(contest) for contest, _ in known)
    columns = (Column(title="next tokens"), *(Column(title=name, right=True) for name in names))
    figures = [dict(fidelity_figures(fidelity)) for _, fidelity in known]
    rows = tuple((what, *(each[what] for each in figures)) for what in figures[0])
    return Table(columns=columns, rows=rows, divides=True)


def fidelity_figures(fidelity: FidelityComparison) -> Iterator[tuple[str, str]]:
    """Yield each figure of a comparison of distributions with its name."""
    least = "" if fidelity.exact else "≥ "
    yield "KL divergence, nats", f"{least}{number(fidelity.kl_mean)}"
    yield "  standard error", number(fidelity.kl_stderr)
    for name, quantile in (
        ("  median", fidelity.kl.median),
        ("  99 %", fidelity.kl.high_99),
        ("  largest", fidelity.kl.largest),
    ):
        yield name, f"{least}{number(quantile)}"
    top, ratio = fidelity.same_top_interval, fidelity.perplexity_ratio_interval
    yield "same top token", f"{100 * fidelity.same_top:.2f} %"
    yield "  interval, %", f"{100 * top.low:.2f} to {100 * top.high:.2f}"
    yield "Δp, next token", f"{measures.signed(100 * fidelity.delta_p_mean, 3)} pp"
    yield "  root mean square", f"{100 * fidelity.delta_p_rms:.3f} pp"
    yield "perplexity ratio", f"×{fidelity.perplexity_ratio:.4f}"
    yield "  interval, ×", f"{ratio.low:.4f} to {ratio.high:.4f}"
    yield "share compared", "all" if fidelity.exact else percent(fidelity.captured)
    yield "positions", count(fidelity.positions)
    yield "texts", count(fidelity.documents)


def cost_table(comparison: Comparison) -> Table | None:
    """Size, memory and speed of all sides, each with its ratio to the base; None where nothing is known."""
    sides = (comparison.base, *(contest.other for contest in comparison.contests))
    titles = ("", *(shorten(side.label, LABEL) for side in sides))
    rows = tuple(row for row in _cost_rows(sides) if any(cell != UNKNOWN for cell in row[1:]))
    if not rows:
        return None
    columns = tuple(Column(title=title, right=bool(place)) for place, title in enumerate(titles))
    return Table(columns=columns, rows=rows, divides=True)


def _cost_rows(sides: Sequence[Side]) -> Iterator[tuple[str, ...]]:
    yield ("size on disk", *_beside([side.bytes_on_disk for side in sides], lambda found: size(int(found))))
    if any(side.predicted_bytes is not None for side in sides):
        yield ("size, predicted", *list(_predicted(sides)))
    yield ("GPU memory, peak", *_beside([side.peak_gpu_memory_bytes for side in sides], lambda found: size(int(found))))
    yield ("memory, peak", *_beside([side.peak_memory_bytes for side in sides], lambda found: size(int(found))))
    yield ("tokens per second", *_beside([side.tokens_per_second for side in sides], lambda found: f"{found:,.0f}"))
    yield ("seconds", *_beside([side.seconds for side in sides], lambda found: f"{found:,.1f}"))
    yield ("executed as", *(shorten(side.executed_as or UNKNOWN, LABEL) for side in sides))


def _predicted(sides: Sequence[Side]) -> Iterator[str]:
    """What simulations would take on disk, beside what the base takes there."""
    on_disk = sides[0].bytes_on_disk or sides[0].predicted_bytes
    for side in sides:
        _, cell = _beside([on_disk, side.predicted_bytes], lambda found: size(int(found)))
        yield cell


def _beside(numbers: Sequence[float | None], write: Callable[[float], str]) -> Iterator[str]:
    base = numbers[0]
    for place, found in enumerate(numbers):
        ratio = f" (×{found / base:.2f})" if place and found is not None and base else ""
        yield UNKNOWN if found is None else f"{write(found)}{ratio}"


def differences_table(comparison: Comparison, contest: Contest) -> Table | None:
    """The settings in which two runs differ, by the key that allows it; None where none does."""
    columns = (
        Column(title="differs"),
        Column(title=shorten(comparison.base.label, LABEL), shortens=True),
        Column(title=measures.label_of(contest)),
    )
    rows = tuple((each.key, shorten(each.base, 40), shorten(each.other, 40)) for each in contest.differences)
    return Table(columns=columns, rows=rows) if rows else None


def flips_table(comparison: Comparison, contest: Contest, most: int) -> Table:
    """The first changed items: the end of the prompt, what is right, and both answers."""
    columns = (
        Column(title="task", rank=2),
        Column(title="item", right=True, rank=1),
        Column(title="change"),
        Column(title="end of the prompt", shortens=True),
        Column(title="right"),
        Column(title=shorten(comparison.base.label, LABEL)),
        Column(title=measures.label_of(contest)),
    )
    return Table(columns=columns, rows=tuple(map(_flip_row, measures.listed(contest.changed, most))))


def _flip_row(item: ChangedItem) -> tuple[str, ...]:
    answers = (shorten(text.strip(), _ANSWER) for text in (item.target, item.base_answer, item.other_answer))
    end = tail(item.prompt.rstrip(), _PROMPT)
    return (shorten(item.task, _TASK), count(item.doc_id), measures.CHANGES[item.change], end, *answers)
