"""The one error family: what happened, what to type next, and the exit code.

    Fp8Error
    ├── UsageError          2    the command line asks for something that makes no sense
    ├── BadInput            3    a checkpoint, config or file is not what it must be
    ├── CannotRun           3    this machine, disk or network does not allow it
    └── Interrupted       130    Ctrl-C or SIGTERM; what is done is kept

Verdicts (exit codes 1, 4 and 5) are results, not errors: commands return them in their reports.
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Every exit code of the tool; README's table is generated from here."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> "ExitCode":
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
        """Remember the message and the hint for the one place that prints them."""
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(Fp8Error):
    """The options contradict each other, or name something that does not exist."""

    exit_code = ExitCode.USAGE


class BadInput(Fp8Error):
    """A file or folder given by the user is broken, or is not what the command needs."""


class CannotRun(Fp8Error):
    """The machine, the disk, the network or an installed package does not allow it."""


class Interrupted(Fp8Error):
    """The user stopped the run."""

    exit_code = ExitCode.INTERRUPTED
