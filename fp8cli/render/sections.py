"""A report as sections of lines, tables and findings: the same for a terminal, a pipe and a Markdown file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.core.findings import Finding, Status
from fp8cli.errors import printable
from fp8cli.render.console import Output
from fp8cli.render.table import Table
from fp8cli.render.verdicts import SYMBOLS, entry, hanging, judged, more

SHOWN_PER_CHECK: Final = 12
"""Findings of one check that a screen lists; damage in every layer would fill it otherwise. The document has all."""

_RANK: Final = {"failed": 0, "warning": 1, "not checked": 2, "passed": 3}

_ADVISED: Final = frozenset({"failed", "warning"})
"""What has a consequence and a remedy to tell."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Verdicts, worst first. `all_passed` lists also those that passed, which are counted otherwise."""

    findings: Sequence[Finding]
    all_passed: bool


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line to copy, never broken."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A sentence led by the word of its verdict, and what else belongs to it: (what, text)."""

    status: Status
    word: str
    text: str
    more: tuple[tuple[str, str], ...] = ()


Part = str | Table | Findings | Command | Judged


@dataclass(frozen=True, kw_only=True)
class Section:
    """Some parts under a title; the first section of a report has none."""

    title: str | None
    parts: tuple[Part, ...]


def show_sections(sections: Iterable[Section], output: Output) -> None:
    """Print sections on a terminal or into a pipe."""
    for number, section in enumerate(sections):
        if number:
            output.line()
        if section.title is not None:
            output.line(section.title, style="bold")
        for part in section.parts:
            match part:
                case str():
                    output.line(part, style="bold" if not number and part is section.parts[0] else "")
                case Table():
                    output.table(part)
                case Command():
                    output.out.line(f"  {part.text}")
                case Findings():
                    _show_findings(part, output)
                case Judged():
                    judged(output, part.status, part.word, part.text)
                    for what, text in part.more:
                        hanging(output, "  ", f"{what}: ", text)


def _show_findings(part: Findings, output: Output) -> None:
    shown, hidden = _choose(part)
    width = max((len(finding.check) for finding in shown), default=0)
    for finding in shown:
        entry(output, finding.status, finding.check, _sentence(finding), width)
        if finding.status in _ADVISED:
            if finding.consequence is not None:
                more(output, "so", finding.consequence, whole=False)
            if finding.remedy is not None:
                more(output, "fix", finding.remedy, whole=False)
    for line in hidden:
        output.line(line)


def _choose(part: Findings) -> tuple[list[Finding], list[str]]:
    """Return the findings to list, and lines about those that are not."""
    ordered = sorted(part.findings, key=lambda finding: _RANK[finding.status])
    passed = [finding for finding in ordered if finding.status == "passed"]
    shown: list[Finding] = []
    lines: list[str] = []
    per_check: dict[tuple[str, str], int] = {}
    for finding in ordered if part.all_passed else ordered[: len(ordered) - len(passed)]:
        key = (finding.check, finding.status)
        per_check[key] = per_check.get(key, 0) + 1
        if per_check[key] <= SHOWN_PER_CHECK:
            shown.append(finding)
    for (check, status), count in per_check.items():
        if count > SHOWN_PER_CHECK:
            lines.append(f"{count - SHOWN_PER_CHECK:,} more `{check}` {status}; --json has them all")
    if passed and not part.all_passed:
        lines.append(f"{len(passed)} check{'s' if len(passed) > 1 else ''} passed; --details lists them")
    return shown, lines


def _sentence(finding: Finding) -> str:
    if finding.subject is None or f"`{finding.subject}`" in finding.found:
        return finding.found
    times = f" ×{finding.count:,}" if finding.count > 1 else ""
    return f"{finding.subject}{times}: {finding.found}"


def to_markdown(sections: Iterable[Section]) -> Iterator[str]:
    """Write sections as lines of Markdown."""
    for number, section in enumerate(sections):
        if section.title is not None:
            yield from (f"## {_escape(section.title)}", "")
        for part in section.parts:
            match part:
                case str():
                    yield f"# {_escape(part)}" if not number and part is section.parts[0] else _escape(part)
                    yield ""
                case Table():
                    yield from _markdown_table(part)
                case Command():
                    yield from ("```bash", printable(part.text), "```", "")
                case Findings():
                    yield from _markdown_findings(part)
                case Judged():
                    lead = f"**{SYMBOLS[part.status][0]} {_escape(part.word)}**"
                    yield f"{lead} {_escape(part.text)}"
                    yield ""
                    for what, text in part.more:
                        yield from (_escape(f"{what}: {text}"), "")


def _markdown_table(table: Table) -> Iterator[str]:
    yield _row(_escape(column.title) for column in table.columns)
    yield _row("---:" if column.right else "---" for column in table.columns)
    yield from (_row(map(_escape, row)) for row in table.rows)
    if table.total is not None:
        yield _row(f"**{_escape(cell)}**" if cell else "" for cell in table.total)
    yield ""


def _markdown_findings(part: Findings) -> Iterator[str]:
    shown, hidden = _choose(part)
    if shown:
        yield _row(("", "check", "what", "consequence", "remedy"))
        yield _row(("---",) * 5)
    for finding in shown:
        advice = (finding.consequence or "", finding.remedy or "") if finding.status in _ADVISED else ("", "")
        verdict = f"{SYMBOLS[finding.status][0]} {finding.status}"
        yield _row(map(_escape, (verdict, finding.check, _sentence(finding), *advice)))
    for line in hidden:
        yield from ("", _escape(line))
    yield ""


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Escape what Markdown, or HTML inside it, would take for more than text; in a name backticks may stand too."""
    plain = printable(text).replace("`", "")
    escaped = "".join(f"\\{ch}" if ch in "\\|<>[]*_~#&" else ch for ch in plain)
    # GitHub makes links of what looks like an address.
    return escaped.replace("://", ":\\/\\/")
