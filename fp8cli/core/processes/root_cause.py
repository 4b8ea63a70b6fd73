"""From the end of a log to the one sentence that matters: what went wrong, and what to do about it.

Libraries raise errors about errors: vLLM's last words are that its engine failed, the reason stands pages above, in
the output of another process and behind a prefix. So the statements of the log are gone through backwards, past those
that are about another, to the first that the tables of failures know. One that they do not know is the cause itself,
unless it was raised while another was handled: then that one is looked at too. A log without an exception leaves the
way the process ended.
"""

import re
import signal as signals
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Final

from fp8cli.core.processes.failures_input import INPUT_FAILURES
from fp8cli.core.processes.failures_machine import CRASHES, MACHINE_FAILURES
from fp8cli.core.processes.masking import mask
from fp8cli.worker.protocol import FailureKind

MAX_MESSAGE: Final = 300
"""Characters of a cause."""

_MAX_LINES: Final = 12
"""Lines of one statement: transformers and vLLM spread theirs over several."""

_MAX_LINE: Final = 1_000
"""Characters of a line that are looked at; a prompt in an exception can be megabytes long."""

_ESCAPE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PREFIX: Final = re.compile(
    r"(?P<source>(?:\([\w.-]+ pid=\d+[^)]*\) ?)?(?:\[rank\d+\]: ?)?)"
    r"(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]+\] ?)?)?"
)
"""What vLLM puts before a line: the process, the rank, the level with the time and the place."""

_GRAVE: Final = frozenset({"", "ERROR", "CRITICAL"})
_TRACEBACK: Final = "Traceback (most recent call last):"
_CHAINED: Final = ("During handling of", "The above exception was")
_EXCEPTION: Final = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Enabled|Expired|Exit|Interrupt)(?::|$)")
_FATAL: Final = re.compile(
    r"Fatal Python error: |terminate called after throwing|(?:\S+: )?(?:Segmentation fault|Bus error|Killed$)"
    r"|malloc\(|free\(|double free|.*API request failed|.*died unexpectedly"
)
_ABOUT_ANOTHER: Final = re.compile(
    r"See (?:root cause|stack trace) |See stack trace|initialization failed due to an exception"
    r"|died unexpectedly|DistBackendError|BrokenPipeError|EOFError|KeyboardInterrupt|SystemExit"
    r"|^[\w.]*RetryError|ClientResponseError"
)
"""Statements that say only that something else went wrong."""
_VALIDATION: Final = re.compile(r"^[\w.]*ValidationError: .*?Value error, (?P<text>.*?)(?: \[type=|$)")


@dataclass(frozen=True, kw_only=True)
class _Statement:
    """What a log says went wrong."""

    text: str
    """On one line."""
    follows: bool
    """Raised while the statement before it, of the same process, was handled."""

    @property
    def is_about_another(self) -> bool:
        return _ABOUT_ANOTHER.search(self.text) is not None


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why a worker failed."""

    kind: FailureKind
    message: str
    """One sentence without a full stop, tokens masked."""
    hint: str | None


def explain(log: str, *, exit_code: int | None, signal: int | None, python: Path | None = None) -> Cause:
    """Return the cause of a failure.

    log: its end is enough. exit_code, signal: how the process ended, None where it did not end, or not that way; a
    signal that this tool sent itself is not to be named. python: the worker's interpreter, for the hints.
    """
    doctor = "fp8 doctor" if python is None else f"fp8 doctor --python {quote(str(python))}"
    statements = tuple(_statements(log))
    # The kernel says nothing to a log, so whatever stands there is not about it.
    told = None if signal == signals.SIGKILL else _explain_words(statements, doctor)
    if told is not None:
        return told
    if signal is not None and signal in CRASHES:
        kind, message, hint = CRASHES[signal]
        return Cause(kind=kind, message=message, hint=hint.format(doctor=doctor))
    own = [statement for statement in statements if not statement.is_about_another]
    if last := next(reversed(own or statements), None):
        found = _VALIDATION.search(last.text)
        return Cause(kind="other", message=sentence(last.text if found is None else found["text"]), hint=None)
    if signal is not None:
        return Cause(kind="other", message=f"the worker was ended by {_name_of(signal)}", hint=None)
    ending = "" if exit_code is None else f" with exit code {exit_code}"
    message = f"the worker ended{ending} before its work was done, and said nothing"
    return Cause(kind="other", message=message, hint=None)


def sentence(text: str) -> str:
    """Return a text as a message has it: on one line, without a full stop, tokens masked, not too long."""
    # Reasons that vLLM lists each end with a full stop, and it adds another.
    words = mask(re.sub(r"(?<!\.)\.\.(?= )", ";", " ".join(text.split()))).rstrip(".: ")
    return words if len(words) <= MAX_MESSAGE else f"{words[: MAX_MESSAGE - 1].rstrip()}…"


def _explain_words(statements: Sequence[_Statement], doctor: str) -> Cause | None:
    """Return what the tables know of the last statement, or of those it stems from; None if they know none."""
    for statement in reversed(statements):
        for row in (*INPUT_FAILURES, *MACHINE_FAILURES):
            if found := row.words.search(statement.text):
                values = {name: mask(value or "") for name, value in found.groupdict().items()}
                hint = row.hint.format(**values, doctor=doctor)
                return Cause(kind=row.kind, message=sentence(row.message.format(**values)), hint=hint)
        if not (statement.is_about_another or statement.follows):
            return None
    return None


def _name_of(signal: int) -> str:
    try:
        return signals.Signals(signal).name
    except ValueError:  # Real-time signals have no names.
        return f"signal {signal}"


def _statements(log: str) -> Iterator[_Statement]:
    """Yield what the log says went wrong, in the order in which the statements end."""
    open_lines: dict[str, list[str]] = {}
    in_traceback: set[str] = set()
    chained: set[str] = set()
    for source, level, text in _lines(log):
        lines = open_lines.get(source)
        starts = _starts(text, level, in_traceback=source in in_traceback)
        if lines is not None and not starts and len(lines) < _MAX_LINES and _goes_on(text, level):
            lines.append(text)
            continue
        if lines is not None:
            yield _close(open_lines, source, chained)
        if starts:
            open_lines[source] = [text]
            in_traceback.discard(source)
        elif text.startswith(_TRACEBACK):
            in_traceback.add(source)
        elif text.startswith(_CHAINED):
            chained.add(source)
    for source in tuple(open_lines):
        yield _close(open_lines, source, chained)


def _close(open_lines: dict[str, list[str]], source: str, chained: set[str]) -> _Statement:
    statement = _Statement(text=" ".join(open_lines.pop(source)), follows=source in chained)
    chained.discard(source)
    return statement


def _starts(text: str, level: str, *, in_traceback: bool) -> bool:
    """Whether a line says what went wrong: it looks like that, or it is the first below the frames of a traceback."""
    if _FATAL.match(text):
        return True
    if level not in _GRAVE or text.startswith(_TRACEBACK):
        return False
    return bool(_EXCEPTION.match(text)) or (in_traceback and text[:1].strip() != "")


def _goes_on(text: str, level: str) -> bool:
    return level in _GRAVE and text.strip() != "" and not text.startswith((_TRACEBACK, *_CHAINED))


def _lines(log: str) -> Iterator[tuple[str, str, str]]:
    """Yield the process, the level and the text of every line; both are empty for a line without them."""
    for line in _ESCAPE.sub("", log).splitlines():
        found = _PREFIX.match(line)
        assert found is not None  # noqa: S101 - every part of it is optional
        yield found["source"].strip(), found["level"] or "", line[found.end() : found.end() + _MAX_LINE]
