"""One thing that libraries say when an evaluation fails, and what it means: the rows of two tables for `root_cause`."""

import re
from dataclasses import dataclass

from fp8cli.worker.protocol import FailureKind


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Words of a library, and the sentence for them. Named groups of the words stand in the sentence and the hint."""

    words: re.Pattern[str]
    """Searched for in one statement of a log, its lines joined by blanks."""
    kind: FailureKind
    message: str
    hint: str
    """`{doctor}` in it is the command that examines the worker's interpreter."""


def pattern(words: str, kind: FailureKind, message: str, hint: str) -> Pattern:
    """Return a row of a table; `words` is a regular expression."""
    return Pattern(words=re.compile(words), kind=kind, message=message, hint=hint)
