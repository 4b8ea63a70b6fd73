"""The one error family: what happened, what to type next, and the exit code.

    Fp8Error
    ├── UsageError          2    the command line asks for something that makes no sense
    ├── BadInput            3    a checkpoint, config or file is not what it must be
    ├── CannotRun           3    this machine, disk or network does not allow it
    ├── NotComparable       5    two evaluations differ in more than the model
    └── Interrupted       130    Ctrl-C or SIGTERM; what is done is kept

Verdicts (exit codes 1 and 4) are results, not errors: commands return them in their reports.
"""

from enum import IntEnum
from typing import ClassVar, Final, Self

MAX_SHOWN: Final = 1_000
"""Characters of a message or hint that are shown; a name in a broken file can be megabytes long."""


def printable(text: str) -> str:
    r"""Return `text` safe for a terminal: on one line, and every control, format or lone-surrogate character escaped.

    Names come from strangers' files. Raw, an escape sequence could recolour or rewrite the screen, a newline could
    forge a second message, and half a surrogate pair (a file name that is not UTF-8) could not be printed at all.
    """
    if text.isprintable():
        return text
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode("ascii") for ch in text)


def _shorten(text: str) -> str:
    # The middle goes: a message says what at its beginning and how many at its end.
    if len(text) <= MAX_SHOWN:
        return text
    half = (MAX_SHOWN - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def showable(text: str) -> str:
    """Return `text` as a message may show it: printable, and not longer than MAX_SHOWN characters before escaping."""
    return printable(_shorten(text))


class ExitCode(IntEnum):
    """Every exit code of the tool; README's table is generated from here."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """Keep the sentence that explains the code beside its number."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    DONE = (0, "done")
    NEGATIVE = (1, "it ran, and the verdict is negative (corrupt checkpoint, failed check or gate)")
    USAGE = (2, "usage: an unknown command, option or value")
    COULD_NOT_RUN = (3, "could not run: bad input, environment, disk or network")
    INCONCLUSIVE = (4, "inconclusive: not enough evidence for a verdict")
    NOT_COMPARABLE = (5, "the runs cannot be compared")
    INTERRUPTED = (130, "interrupted by Ctrl-C or SIGTERM")


class Fp8Error(Exception):
    """Something the user can act on. `message` is one sentence without a full stop; `hint` names a command."""

    exit_code: ClassVar[ExitCode] = ExitCode.COULD_NOT_RUN

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Remember the message and the hint, made safe to show, for the one place that prints them."""
        self.message = showable(message)
        self.hint = None if hint is None else showable(hint)
        super().__init__(self.message)


class UsageError(Fp8Error):
    """The options contradict each other, or name something that does not exist."""

    exit_code = ExitCode.USAGE


class BadInput(Fp8Error):
    """A file or folder given by the user is broken, or is not what the command needs."""


class CannotRun(Fp8Error):
    """The machine, the disk, the network or an installed package does not allow it."""


class NotComparable(Fp8Error):
    """Two evaluations differ in something that changes numbers, and that nobody allowed."""

    exit_code = ExitCode.NOT_COMPARABLE


class Interrupted(Fp8Error):
    """The user stopped the run. `hint` is what precedes the command, which only the command line knows."""

    exit_code = ExitCode.INTERRUPTED
