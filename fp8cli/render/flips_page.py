"""The items that changed, as a table of a page that filters itself with style alone: no script runs."""

from collections.abc import Iterator
from typing import Final

from fp8cli.core.comparing.comparison import ChangedItem, Comparison, Contest
from fp8cli.render import measures
from fp8cli.render.names import shorten, tail
from fp8cli.render.web_page import safe

STYLE: Final = """
.flips td, .flips th { text-align: left; vertical-align: top; padding: .4rem .6rem; }
.flips td { white-space: pre-wrap; overflow-wrap: anywhere; }
.changed .wide { max-height: 42rem; overflow: auto; }
.flips .item { min-width: 3rem; }
.flips .prompt { color: var(--soft); min-width: 12rem; }
.flips .lost { border-left: 4px solid var(--alarm); } .flips .gained { border-left: 4px solid var(--good); }
.flips .answer { border-left: 4px solid var(--doubt); }
fieldset { border: 0; margin: .5rem 0; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
legend { float: left; margin-right: 1rem; color: var(--soft); }
.changed:has([value="lost"]:checked) tr:is(.is-gained, .is-answer),
.changed:has([value="gained"]:checked) tr:is(.is-lost, .is-answer),
.changed:has([value="answer"]:checked) tr:is(.is-lost, .is-gained) { display: none; }
@media print { fieldset { display: none; } .changed .wide { max-height: none; } }
"""
_MOST: Final = 500
_PROMPT, _ANSWER = 300, 300
_CHOICES: Final = (("all", "all"), ("lost", "lost"), ("gained", "gained"), ("answer", "another answer"))


def list_flips(comparison: Comparison, contest: Contest, place: int) -> Iterator[str]:
    """Yield the lines of HTML; nothing where no item is known to have changed. place: of the contest on the page."""
    if not contest.changed:
        return
    base, other = safe(comparison.base.label, measures.LABEL), safe(contest.other.label, measures.LABEL)
    shown = measures.listed(contest.changed, _MOST)
    name = f"changed-{place}"
    yield f'<section class="changed"><h3><bdi>{other}</bdi>: {len(contest.changed):,} changed items</h3>'
    yield "<fieldset><legend>show</legend>"
    for value, words in _CHOICES:
        number = len(shown) if value == "all" else sum(item.change == value for item in shown)
        checked = " checked" if value == "all" else ""
        yield f'<label><input type="radio" name="{name}" value="{value}"{checked}> {words} ({number:,})</label>'
    yield "</fieldset>"
    yield f'<div class="wide" tabindex="0" role="region" aria-label="changed items of {other}"><table class="flips">'
    titles = ("change", "task", "item", "end of the prompt", "right", f"<bdi>{base}</bdi>", f"<bdi>{other}</bdi>")
    heads = (f'<th scope="col">{title}</th>' for title in titles)
    yield f"<thead><tr>{''.join(heads)}</tr></thead><tbody>"
    yield from map(_row, shown)
    yield "</tbody></table></div>"
    if len(contest.changed) > len(shown):
        yield f'<p class="soft">{len(contest.changed) - len(shown):,} more; fp8 compare --json has them all</p>'
    yield "</section>"


def _row(item: ChangedItem) -> str:
    answers = "".join(
        f"<td><bdi>{safe(shorten(text.strip(), _ANSWER))}</bdi></td>"
        for text in (item.target, item.base_answer, item.other_answer)
    )
    return (
        f'<tr class="is-{item.change}"><td class="{item.change}">{measures.CHANGES[item.change]}</td>'
        f'<td>{safe(item.task, 60)}</td><td class="item">{item.doc_id}</td>'
        f'<td class="prompt"><bdi>{safe(tail(item.prompt.rstrip(), _PROMPT))}</bdi></td>{answers}</tr>'
    )
