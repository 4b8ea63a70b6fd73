"""A comparison as one HTML file: verdict, forest plot, fidelity, costs, evidence, changed items, settings.

It needs no script and no network, follows light and dark, fits a phone and prints.
"""

from collections.abc import Iterator
from typing import Final

from fp8cli.core.comparing.comparison import Comparison, Contest
from fp8cli.render import flips_page, forest, histogram, measures
from fp8cli.render.comparison import fidelity_lines, judged_by, next_steps, task_verdicts, total_lines, unchecked_lines
from fp8cli.render.comparison_markdown import settings_table
from fp8cli.render.comparison_tables import (
    cost_table,
    differences_table,
    evidence_table,
    fidelity_table,
    other_metrics_table,
)
from fp8cli.render.sections import Command, Judged
from fp8cli.render.table import Table
from fp8cli.render.units import count, number, size
from fp8cli.render.verdicts import SYMBOLS
from fp8cli.render.web_page import document, safe

_STYLE: Final = """
main { max-width: 68rem; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; border-bottom: 1px solid var(--grid); padding-bottom: .25rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
figure { margin: 1rem 0; }
.card { border: 1px solid var(--grid); border-left: 6px solid currentColor; border-radius: .4rem; margin: 1rem 0;
  padding: .9rem 1.1rem; }
.card > * { color: var(--ink); }
.card .word { color: inherit; font-size: 1.35rem; font-weight: 700; letter-spacing: .02em; }
.card p { overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .75rem 1.5rem;
  margin: .9rem 0 0; }
.tiles div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.tiles dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles dt { font-size: .8rem; color: var(--soft); overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .5rem 0 1rem; }
.wide table { width: auto; min-width: 60%; }
.wide th { text-align: left; padding: .4rem .6rem; color: var(--soft); font-weight: 600; vertical-align: bottom; }
.wide thead td { border: 0; }
.wide td, .wide tbody th { overflow-wrap: anywhere; }
.wide td:not(.right) { min-width: 7rem; }
.wide tbody th { border-top: 1px solid var(--grid); color: var(--ink); font-weight: 400; vertical-align: top;
  min-width: 8rem; }
.wide .right { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.wide tr.sub th { padding-left: 1.6rem; color: var(--soft); }
pre { background: color-mix(in srgb, var(--grid) 40%, var(--paper)); border-radius: .4rem; padding: .6rem .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
p { overflow-wrap: anywhere; }
@media print { body { font-size: 11px; } .card, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


def comparison_to_html(comparison: Comparison) -> str:
    """Return the page."""
    base, others = (safe(title, 200) for title in measures.titles_of(comparison))
    style = f"{_STYLE}{forest.STYLE}{histogram.STYLE}{flips_page.STYLE}"
    return document(f"{others} against {base} · fp8 compare", _body(comparison, base, others), style=style)


def _body(comparison: Comparison, base: str, others: str) -> Iterator[str]:
    yield f"<h1><bdi>{others}</bdi> against <bdi>{base}</bdi></h1>"
    yield f'<p class="soft">{judged_by(comparison)}</p>'
    for contest in comparison.contests:
        yield from _card(comparison, contest)
    yield from (f"<p>{safe(measures.sentence(note))}</p>" for note in comparison.notes)
    yield "<h2>Change by task</h2>"
    yield from forest.draw_forest(comparison)
    yield '<p class="soft">Dashed: the margin. A task passes when its change is shown not to lie beyond it.</p>'
    yield from _fidelity(comparison)
    costs = cost_table(comparison)
    if costs is not None:
        yield from ("<h2>Costs</h2>", *_table(costs, "costs"))
    yield "<h2>Evidence</h2>"
    for contest in comparison.contests:
        yield from _evidence(comparison, contest)
    if any(contest.changed for contest in comparison.contests):
        yield "<h2>Changed items</h2>"
    for place, contest in enumerate(comparison.contests):
        yield from flips_page.list_flips(comparison, contest, place)
    yield from _settings(comparison)
    yield "<h2>Next</h2>"
    for part in next_steps(comparison):
        yield f"<pre>{safe(part.text)}</pre>" if isinstance(part, Command) else f"<p>{safe(part)}</p>"


def _card(comparison: Comparison, contest: Contest) -> Iterator[str]:
    status = measures.STATUS[contest.verdict]
    yield f'<section class="card {status}">'
    yield f'<p class="word">{SYMBOLS[status][0]} {contest.verdict.upper()}</p>'
    reason = safe(measures.sentence(contest.reason))
    yield f"<p><b><bdi>{safe(contest.other.label, measures.LABEL)}</bdi></b>: {reason}</p>"
    yield '<dl class="tiles">'
    for name, figure in _tiles(comparison, contest):
        yield f"<div><dt>{name}</dt><dd>{figure}</dd></div>"
    yield "</dl></section>"


def _tiles(comparison: Comparison, contest: Contest) -> Iterator[tuple[str, str]]:
    """Yield the figures that a reader asks for first."""
    metric = next((found for task in contest.tasks if (found := measures.main_metric(task)) is not None), None)
    if contest.total is not None and contest.total.tasks > 1:
        yield f"mean over {count(contest.total.tasks)} tasks", f"{measures.points(contest.total.macro_difference)} pp"
        yield "recovery", measures.kept(contest.total.recovery)
    elif metric is not None:
        yield safe(f"{contest.tasks[0].task} {measures.name_of(metric)}", 60), measures.change(metric)
        yield "recovery", measures.kept(metric.recovery)
    if contest.fidelity is not None:
        least = "" if contest.fidelity.exact else "≥ "
        yield "KL divergence, nats", f"{least}{number(contest.fidelity.kl_mean)}"
        yield "same top token", f"{100 * contest.fidelity.same_top:.1f} %"
    disk, base_disk = contest.other.bytes_on_disk, comparison.base.bytes_on_disk
    if disk is not None:
        yield f"on disk{f', base {size(base_disk)}' if base_disk is not None else ''}", size(disk)
    if contest.other.predicted_bytes is not None:
        yield "on disk, predicted", size(contest.other.predicted_bytes)
    speed, base_speed = contest.other.tokens_per_second, comparison.base.tokens_per_second
    if speed is not None and base_speed:
        yield "tokens per second, of the base", f"×{speed / base_speed:.2f}"


def _fidelity(comparison: Comparison) -> Iterator[str]:
    yield "<h2>Fidelity</h2>"
    floor = None if comparison.noise is None else comparison.noise.fidelity
    for contest in comparison.contests:
        if contest.fidelity is not None:
            name = safe(contest.other.label, measures.LABEL)
            yield f"<h3><bdi>{name}</bdi></h3>"
            yield from histogram.draw_histogram(contest.fidelity, floor, f"KL divergence of {name} from the base")
    table = fidelity_table(comparison)
    if table is not None:
        yield from _table(table, "fidelity")
    yield from (f'<p class="soft">{safe(line)}</p>' for line in fidelity_lines(comparison))


def _evidence(comparison: Comparison, contest: Contest) -> Iterator[str]:
    name = safe(contest.other.label, measures.LABEL)
    yield f"<h3><bdi>{name}</bdi></h3>"
    yield from _table(evidence_table(contest), f"evidence on {name}")
    others = other_metrics_table(comparison, contest)
    if others is not None:
        yield from _table(others, f"other metrics of {name}")
    if contest.total is not None and contest.total.tasks > 1:
        yield from (f"<p>{line}</p>" for line in total_lines(contest.total))
    for line in (*task_verdicts(contest), *map(measures.sentence, contest.notes)):
        if isinstance(line, Judged):
            yield f'<p><b class="{line.status}">{SYMBOLS[line.status][0]} {line.word}</b> {safe(line.text)}</p>'
        else:
            yield f"<p>{safe(line)}</p>"


def _settings(comparison: Comparison) -> Iterator[str]:
    yield "<h2>Settings</h2>"
    sides = (comparison.base, *(contest.other for contest in comparison.contests))
    yield from _table(settings_table(sides), "settings")
    for contest in comparison.contests:
        name = safe(contest.other.label, measures.LABEL)
        differs = differences_table(comparison, contest)
        if differs is not None:
            yield f"<h3>Allowed differences: <bdi>{name}</bdi></h3>"
            yield from _table(differs, f"allowed differences of {name}")
        yield from (f"<p>{safe(line)}</p>" for line in unchecked_lines(contest))
    if comparison.command:
        yield f"<pre>{safe(comparison.command)}</pre>"


def _table(table: Table, words: str) -> Iterator[str]:
    """Write a table that scrolls by itself where it is too wide. words: its name, safe in HTML."""
    yield f'<div class="wide" tabindex="0" role="region" aria-label="{words}"><table>'
    titles = (
        f'<th scope="col"{_side(right=column.right)}>{safe(column.title, 60)}</th>' if column.title else "<td></td>"
        for column in table.columns
    )
    yield f"<thead><tr>{''.join(titles)}</tr></thead><tbody>"
    for row in table.lines:
        below = ' class="sub"' if row[0].startswith("  ") else ""
        cells = (
            f"<td{_side(right=column.right)}><bdi>{safe(cell)}</bdi></td>"
            for column, cell in zip(table.columns[1:], row[1:], strict=True)
        )
        yield f'<tr{below}><th scope="row"><bdi>{safe(row[0].strip())}</bdi></th>{"".join(cells)}</tr>'
    yield "</tbody></table></div>"


def _side(*, right: bool) -> str:
    return ' class="right"' if right else ""
