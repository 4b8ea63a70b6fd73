"""A report as one HTML file: headline, drawing and checks. It loads nothing, runs nothing, and follows light and dark.

The drawing is an SVG with fixed colours; here each becomes a variable that the reader's theme sets.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final

from fp8cli import __version__
from fp8cli.commands.inspect import InspectReport
from fp8cli.core.findings import Finding
from fp8cli.render import captions
from fp8cli.render.canvas import ALARM, GRID, INK, PAPER, SOFT
from fp8cli.render.figure import BLUE, GREEN, GREY, ORANGE, VIOLET
from fp8cli.render.verdicts import SYMBOLS

_MOST_FINDINGS: Final = 200
_LONGEST_SUBJECT: Final = 300
_LONGEST_SENTENCE: Final = 1_000

_COLORS: Final[Mapping[str, tuple[str, str]]] = {
    "ink": (INK, "#e6edf3"),
    "soft": (SOFT, "#9aa5b1"),
    "grid": (GRID, "#30363d"),
    "paper": (PAPER, "#0f1419"),
    "alarm": (ALARM, "#ff7b72"),
    "blue": (BLUE, "#58a6ff"),
    "orange": (ORANGE, "#f2b134"),
    "green": (GREEN, "#4cc38a"),
    "violet": (VIOLET, "#b79cf0"),
    "grey": (GREY, "#6b7785"),
}
"""Name → the colour by day, as the drawing has it, and by night."""

_STYLE: Final = """
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; }
figure { margin: 1.5rem 0; overflow-x: auto; }
svg { display: block; width: 100%; min-width: 40rem; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td { border-top: 1px solid var(--grid); padding: .4rem .6rem; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { white-space: nowrap; }
.soft { color: var(--soft); }
.failed { color: var(--alarm); font-weight: 600; }
"""
_RANK: Final = ("failed", "warning", "not checked", "passed")
# Text between tags holds no bare < or >, so this finds tags only.
_TAG: Final = re.compile(r"<[^<>]*>")
_METADATA: Final = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)


def to_html(report: InspectReport, drawing: str) -> str:
    """Return the page. drawing: the SVG of the report without headline, from `figure.draw_figure`."""
    name = escape(captions.shorten(report.name))
    verdict = captions.verdict_note(report)
    lines = (
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{name} · fp8 inspect</title>",
        f"<style>{_variables()}{_STYLE}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1><bdi>{name}</bdi></h1>",
        f"<p>{escape(captions.scheme_line(report))}</p>",
        f'<p class="soft">{escape(captions.size_line(report))}</p>',
        f'<p class="{"failed" if verdict.alarming else "soft"}">{escape(verdict.text)}</p>',
        f"<figure>{_inline(drawing)}</figure>",
        *_checks(report.findings),
        f'<p class="soft">fp8 {__version__}</p>',
        "</main>",
        "</body>",
        "</html>",
    )
    return "".join(f"{line}\n" for line in lines)


def _variables() -> str:
    by_day, by_night = (
        " ".join(f"--{name}: {colors[theme]};" for name, colors in _COLORS.items()) for theme in range(2)
    )
    night = f"@media (prefers-color-scheme: dark) {{ :root {{ {by_night} }} }}"
    return f"\n:root {{ color-scheme: light dark; {by_day} }}\n{night}"


def _inline(drawing: str) -> str:
    """Return the SVG as an element of a page, its colours as variables."""
    svg = _METADATA.sub("", drawing[drawing.index("<svg") :])
    svg = svg.replace("<svg ", '<svg role="img" aria-label="Bytes by role, scales and signal to noise over depth" ', 1)
    return _TAG.sub(lambda tag: _recolor(tag[0]), svg).rstrip()


def _recolor(tag: str) -> str:
    for name, (color, _) in _COLORS.items():
        tag = tag.replace(color, f"var(--{name})")
    return tag


def _checks(findings: Sequence[Finding]) -> Iterator[str]:
    """What was found, worst first; what passed is counted."""
    listed = [finding for status in _RANK[:-1] for finding in findings if finding.status == status]
    passed = sum(finding.status == "passed" for finding in findings)
    yield "<h2>Checks</h2>"
    if listed:
        yield "<table>"
        yield from map(_row, listed[:_MOST_FINDINGS])
        yield "</table>"
    if len(listed) > _MOST_FINDINGS:
        yield f"<p>{len(listed) - _MOST_FINDINGS:,} more; fp8 inspect --json has them all</p>"
    yield f'<p class="soft">{passed:,} passed</p>'


def _row(finding: Finding) -> str:
    status = f"{SYMBOLS[finding.status][0]} {finding.status}"
    subject = ""
    if finding.subject is not None:
        times = f" ×{finding.count:,}" if finding.count > 1 else ""
        subject = f"<bdi>{_text(finding.subject, _LONGEST_SUBJECT)}</bdi>{times}: "
    more = (("so", finding.consequence), ("fix", finding.remedy))
    lines = "".join(f'<br><span class="soft">{word}: {_text(text)}</span>' for word, text in more if text is not None)
    style = "failed" if finding.status == "failed" else "soft"
    cells = (f'<td class="{style}">{status}</td>', f"<td>{_text(finding.check)}</td>")
    return f"<tr>{''.join(cells)}<td>{subject}{_text(finding.found)}{lines}</td></tr>"


def _text(words: str, longest: int = _LONGEST_SENTENCE) -> str:
    return escape(captions.shorten(words, longest))
