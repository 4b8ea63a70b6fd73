"""How a verdict looks: symbol, word, name and sentence, each also for a stream without colour or without ✓.

A sentence that does not fit a terminal goes on below its own beginning; a command to copy stays whole. A pipe gets
the same lines, none of them broken.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

from fp8cli.core.findings import Finding, Status
from fp8cli.errors import printable
from fp8cli.render.console import Output
from fp8cli.render.units import count

SYMBOLS: Final[Mapping[Status, tuple[str, str]]] = {
    "passed": ("✓", "ok"),
    "warning": ("!", "!"),
    "failed": ("✗", "FAIL"),
    "not checked": ("-", "-"),
}
"""For a stream that has every character, and for one that has not."""

_STYLES: Final[Mapping[Status, str]] = {
    "passed": "green",
    "warning": "yellow",
    "failed": "bold red",
    "not checked": "dim",
}
_WORD: Final = max(map(len, SYMBOLS))
_LEAST_ROOM: Final = 30
"""A narrower column of words cannot be read; the terminal may fold the lines instead."""


def verdict_line(verdict: str, findings: Sequence[Finding]) -> str:
    """The verdict on a whole, and how many checks had which outcome."""
    statuses = [finding.status for finding in findings]
    counts = ((statuses.count(status), status) for status in ("failed", "warning", "not checked", "passed"))
    words = ", ".join(f"{count(number)} {_outcome(status, number)}" for number, status in counts if number)
    return f"{verdict}: {words}" if words else verdict


def _outcome(status: str, number: int) -> str:
    return "warnings" if status == "warning" and number > 1 else status


def entry(output: Output, status: Status, name: str, text: str, width: int) -> None:
    """Write one verdict; `width`: of the column of names."""
    symbol = SYMBOLS[status][0 if output.out.unicode else 1]
    label = f"{symbol:{1 if output.out.unicode else 4}} {status:{_WORD}}  "
    hanging(output, label, f"{name:{width}}  ", text, style=_STYLES[status])


def judged(output: Output, status: Status, word: str, text: str) -> None:
    """Write a verdict that has a word of its own, such as `REGRESSION`."""
    hanging(output, f"{SYMBOLS[status][0 if output.out.unicode else 1]} {word}  ", "", text, style=_STYLES[status])


def more(output: Output, what: str, text: str, *, whole: bool) -> None:
    """Write a line that belongs to the verdict above; `whole`: it is a command, never to be broken."""
    indent = " " * ((1 if output.out.unicode else 4) + 1 + _WORD + 2)
    if whole:
        output.out.line(f"{indent}{what}: {text}")
    else:
        hanging(output, indent, f"{what}: ", text)


def hanging(output: Output, label: str, lead: str, text: str, *, style: str = "") -> None:
    """Write label, lead and text; on a terminal what does not fit goes on below the text's own beginning."""
    room = output.out.width - len(label) - len(lead)
    # Escapes are longer than what they stand for, so they come first.
    text = printable(text)
    lines = textwrap.wrap(text, room, break_on_hyphens=False) if output.out.terminal and room >= _LEAST_ROOM else [text]
    output.out.line(f"{lead}{next(iter(lines), '')}", label=label, style=style)
    for line in lines[1:]:
        output.out.line(f"{' ' * (len(label) + len(lead))}{line}")
