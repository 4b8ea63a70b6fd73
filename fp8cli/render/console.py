"""Where words reach the user: results to stdout, talk to stderr, each in the form its reader can take.

A terminal gets boxes, colour and its own width. A pipe gets every character and none of the art: no colour, no
box, no cut names, one row a line. An encoding without ✓ and × gets `ok` and `x`, and never an error. Names come
from strangers' files, so control characters are shown as escapes and Rich's markup is never interpreted. A
reader that goes away (`| head`) ends the output and not the run. Rich is loaded where a terminal needs it, see
`screen.py`.
"""

import codecs
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TextIO

from fp8cli.errors import ExitCode, Fp8Error, printable
from fp8cli.render.document import error_document, result_document, to_text
from fp8cli.render.table import Table, divide, to_lines

if TYPE_CHECKING:
    from rich.console import Console

_DEFAULT_WIDTH: Final = 80

# For a stdout that cannot say them. What is not listed here becomes an escape such as \u4e2d.
_IN_ASCII: Final = str.maketrans(
    {
        "×": "x",
        "·": "-",
        "…": "...",
        "–": "-",
        "—": "-",
        "−": "-",
        "→": "->",
        "↑": "^",
        "↓": "v",
        "Δ": "change",
        "≤": "<=",
        "≥": ">=",
        "≈": "~",
        "±": "+-",
        "µ": "u",
        "✓": "ok",
        "✗": "FAIL",
    }
)


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One stream and what its reader can take. Everything that is written passes `write`."""

    stream: TextIO
    terminal: bool
    """Someone is looking: boxes, and lines no longer than `width`."""
    width: int
    """Cells in a line of the terminal; a pipe has no limit."""
    color: bool
    unicode: bool

    @classmethod
    def of(cls, stream: TextIO, *, color: bool | None = None) -> "Channel":
        """Look at a stream and the environment. `color` True or False overrules NO_COLOR, TERM and the pipe."""
        terminal = stream.isatty()
        if color is None:
            color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in {"dumb", "unknown"}
        return cls(
            stream=stream, terminal=terminal, width=_width(stream), color=color, unicode=_is_unicode(stream.encoding)
        )

    def line(self, text: str = "", *, label: str = "", style: str = "", wrap: bool = False) -> None:
        """Write one line, led by `label` in `style` (without a label the text has the style).

        With `wrap` the line is broken between words at a terminal's edge; a command to copy must not be.
        """
        text, label = printable(text), printable(label)
        if not self.terminal and not self.color:
            self.write(f"{label}{text}\n")
            return
        from fp8cli.render import screen  # noqa: PLC0415

        parts = ((label, style), (text, "")) if label else ((text, style),)
        self.write(screen.draw_line(*parts, width=self.width, color=self.color, wrap=wrap and self.terminal))

    def table(self, table: Table) -> None:
        """Write a table, boxed and fitted on a terminal, bare and whole elsewhere."""
        # Now and not only in `write`: `ok` is wider than ✓, and the layout must know.
        safe = table.map(lambda text: self._sayable(printable(text)))
        if self.terminal:
            from fp8cli.render import screen  # noqa: PLC0415

            for part in divide(safe, self.width):
                self.write(screen.draw_table(part, width=self.width, color=self.color, unicode=self.unicode))
        else:
            self.write("".join(f"{row}\n" for row in to_lines(safe)))

    def write(self, text: str) -> None:
        """Write text as it is, but for characters that the encoding lacks. Flushed: a lost reader shows here."""
        try:
            self.stream.write(self._sayable(text))
            self.stream.flush()
        except BrokenPipeError:
            _silence(self.stream)

    def console(self) -> "Console":
        """Return a Rich console on the stream itself, for a live display such as a progress bar."""
        from fp8cli.render import screen  # noqa: PLC0415

        return screen.make_console(self.stream, width=self.width, terminal=self.terminal, color=self.color)

    def _sayable(self, text: str) -> str:
        if not self.unicode:
            text = text.translate(_IN_ASCII)
        encoding = self.stream.encoding or ("utf-8" if self.unicode else "ascii")
        return text.encode(encoding, "backslashreplace").decode(encoding)


@dataclass(frozen=True, kw_only=True)
class Output:
    """The two channels and the user's wishes. `json`: stdout holds one document. `quiet`: no notes on stderr."""

    out: Channel
    err: Channel
    json: bool = False
    quiet: bool = False

    @classmethod
    def standard(cls, *, json: bool = False, quiet: bool = False, color: bool | None = None) -> "Output":
        """Open stdout and stderr as they are now."""
        return cls(
            out=Channel.of(sys.stdout, color=color), err=Channel.of(sys.stderr, color=color), json=json, quiet=quiet
        )

    def line(self, text: str = "", *, style: str = "") -> None:
        """Write a line of the result."""
        self.out.line(text, style=style, wrap=True)

    def table(self, table: Table) -> None:
        """Write a table of the result."""
        self.out.table(table)

    def document(self, command: str, result: object, *, exit_code: ExitCode = ExitCode.DONE) -> None:
        """Write a report as the JSON document of `command`."""
        self._document(result_document(command, result, exit_code=exit_code))

    def note(self, text: str) -> None:
        """Say something in passing, on stderr; not with `quiet`."""
        if not self.quiet:
            self.err.line(text)

    def warning(self, text: str) -> None:
        """Say something the user should act on, on stderr, with `quiet` too."""
        self.err.line(text, label="warning: ", style="bold yellow")

    def error(self, error: Fp8Error, *, command: str | None = None) -> None:
        """Say what stopped the run and what to do; with `json` stdout gets the document too."""
        if self.json:
            self._document(error_document(command, error))
        self.err.line(error.message, label="error: ", style="bold red")
        if error.hint is not None:
            self.err.line()
            self.err.line(error.hint, label="hint: ", style="bold")

    def _document(self, document: Mapping[str, object]) -> None:
        self.out.write(f"{to_text(document)}\n")


def _width(stream: TextIO) -> int:
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _DEFAULT_WIDTH
    except OSError:
        return _DEFAULT_WIDTH


def _is_unicode(encoding: str | None) -> bool:
    """Whether an encoding has every character; a stream that names none, such as StringIO, has."""
    return encoding is None or codecs.lookup(encoding).name.startswith("utf")


def _silence(stream: TextIO) -> None:
    """Send the rest of the stream nowhere, also what Python flushes at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
