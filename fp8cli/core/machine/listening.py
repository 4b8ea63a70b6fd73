"""Hearing a program out, but not for ever and not without end: so much time, so many bytes, then it is ended.

The program and everything it started stand in one process group, so that no grandchild holds the pipe open after
the time is up.
"""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

MOST_BYTES: Final = 16 * 2**20
"""Output beyond this is no answer: 1,000 distributions with all their requirements take 1 MB."""

_PIECE: Final = 2**16


class Silent(Exception):
    """The program gave no whole answer; the message says why, as a clause about `it`."""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a program wrote to stdout before it ended, and how it ended."""

    code: int
    out: str


def listen(words: Sequence[str], *, environ: Mapping[str, str], seconds: float) -> Heard:
    """Run a program and return what it writes to stdout.

    Raises Silent if it takes longer than `seconds` or writes more than MOST_BYTES, OSError if it cannot be started.
    """
    end = time.monotonic() + seconds
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environ),
        start_new_session=True,
    )
    with process:
        try:
            out = _read(process, end)
            code = process.wait(max(0.0, end - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            message = f"it did not answer within {seconds:g} s"
            raise Silent(message) from None
        finally:
            if process.returncode is None:  # Not waited for yet, so the number is still its own.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
    return Heard(code=code, out=out.decode("utf-8", errors="replace"))


def _read(process: subprocess.Popen[bytes], end: float) -> bytes:
    """Read stdout until it is closed. Raises TimeoutError at `end`."""
    heard = bytearray()
    assert process.stdout is not None  # noqa: S101 - told to mypy: it was asked for above
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = end - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), _PIECE)
            if not piece:
                return bytes(heard)
            heard += piece
            if len(heard) > MOST_BYTES:
                message = f"it wrote more than {MOST_BYTES // 2**20} MiB and no answer"
                raise Silent(message)
