"""What went wrong in a worker, as one sentence and the kind of thing it is. What only the log knows is `other`."""

import errno
from typing import Final

from fp8cli.worker.protocol import FailureKind

MAX_CHARACTERS: Final = 400
"""Some libraries put a whole page into an exception."""

OUT_OF_MEMORY: Final = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")

SERVER_ERRORS: Final = ("aiohttp", "requests", "urllib3")
"""Packages that lm-eval speaks to a server with."""


class Failure(Exception):
    """A reason to stop that is known for what it is."""

    def __init__(self, *, kind: FailureKind, message: str, hint: str | None = None) -> None:
        """Keep the sentence, what kind of thing it is, and what to type next."""
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint


def sentence(error: BaseException) -> str:
    """Return an exception as `Type: the first line of its text`, without a full stop."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    return text.rstrip(".")[:MAX_CHARACTERS]


def describe(error: BaseException) -> Failure:
    """Return what an exception means."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY):
        return Failure(kind="memory", message=f"memory ran out ({sentence(error)})")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Failure(kind="other", message=f"the disk is full ({sentence(error)})")
    if isinstance(error, ImportError):
        return Failure(kind="packages", message=f"a package is missing or does not fit ({sentence(error)})")
    if type(error).__module__.partition(".")[0] in SERVER_ERRORS:
        return Failure(kind="server", message=f"the server did not answer as it should ({sentence(error)})")
    return Failure(kind="other", message=sentence(error))
