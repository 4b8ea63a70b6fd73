"""An inspection as one HTML file: headline, drawing and checks.

The drawing is an SVG with fixed colours; here each becomes a variable that the reader's theme sets.
"""

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from fp8cli.commands.inspect import InspectReport
from fp8cli.core.findings import Finding
from fp8cli.render import captions
from fp8cli.render.palette import COLORS
from fp8cli.render.verdicts import SYMBOLS
from fp8cli.render.web_page import document, safe

_MOST_FINDINGS: Final = 200
_LONGEST_SUBJECT: Final = 300

_STYLE: Final = """
figure { margin: 1.5rem 0; overflow-x: auto; }
svg { display: block; width: 100%; min-width: 40rem; height: auto; }
td:first-child { white-space: nowrap; }
.failed { color: var(--alarm); font-weight: 600; }
"""
_RANK: Final = ("failed", "warning", "not checked", "passed")
# Text between tags holds no bare < or >, so this finds tags only.
_TAG: Final = re.compile(r"<[^<>]*>")
_METADATA: Final = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)


def to_html(report: InspectReport, drawing: str) -> str:
    """Return the page. drawing: the SVG of the report without headline, from `figure.draw_figure`."""
    name = safe(report.name, captions.LONGEST_NAME)
    verdict = captions.verdict_note(report)
    body = (
        f"<h1><bdi>{name}</bdi></h1>",
        f"<p>{escape(captions.scheme_line(report))}</p>",
        f'<p class="soft">{escape(captions.size_line(report))}</p>',
        f'<p class="{"failed" if verdict.alarming else "soft"}">{escape(verdict.text)}</p>',
        f"<figure>{_inline(drawing)}</figure>",
        *_checks(report.findings),
    )
    return document(f"{name} · fp8 inspect", body, style=_STYLE)


def _inline(drawing: str) -> str:
    """Return the SVG as an element of a page, its colours as variables."""
    svg = _METADATA.sub("", drawing[drawing.index("<svg") :])
    svg = svg.replace("<svg ", '<svg role="img" aria-label="Bytes by role, scales and signal to noise over depth" ', 1)
    return _TAG.sub(lambda tag: _recolor(tag[0]), svg).rstrip()


def _recolor(tag: str) -> str:
    for name, (color, _) in COLORS.items():
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
        subject = f"<bdi>{safe(finding.subject, _LONGEST_SUBJECT)}</bdi>{times}: "
    more = (("so", finding.consequence), ("fix", finding.remedy))
    lines = "".join(f'<br><span class="soft">{word}: {safe(text)}</span>' for word, text in more if text is not None)
    style = "failed" if finding.status == "failed" else "soft"
    cells = (f'<td class="{style}">{status}</td>', f"<td>{safe(finding.check)}</td>")
    return f"<tr>{''.join(cells)}<td>{subject}{safe(finding.found)}{lines}</td></tr>"
