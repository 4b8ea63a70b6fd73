"""The log of a process, as far as this run wrote it, and what it says of the way the process ended."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.processes.event_file import Failed
from fp8cli.core.processes.masking import mask
from fp8cli.core.processes.root_cause import Cause, explain, sentence

_BYTES: Final = 2**20
"""Of the end of a log that is looked at for the cause: the root of vLLM's troubles stands pages above the end."""


@dataclass(frozen=True, kw_only=True)
class Logbook:
    """A log and where this run begins in it."""

    path: Path
    start: int
    """Earlier runs may have written before it."""
    python: Path
    """The interpreter of the process."""
    secrets: tuple[str, ...]
    """Never shown."""

    @property
    def bytes(self) -> int:
        """Length of the log; it grows as long as the process does anything that can be seen."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def explain_exit(self, code: int) -> Cause:
        """Say why the process ended with a code of `subprocess` (negative: a signal) and without a last word."""
        return self._explain(*((code, None) if code >= 0 else (None, -code)))

    def told_by(self, failed: Failed) -> Cause:
        """Return what the process says of itself."""
        return Cause(kind=failed.kind, message=sentence(mask(failed.message, self.secrets)), hint=failed.hint)

    def explain_failure(self, failed: Failed) -> Cause:
        """Return what the process says of itself, unless its log says the same more exactly."""
        told = self.told_by(failed)
        if failed.hint is not None:
            return told
        found = self._explain(1, None)
        is_known = found.kind != "other" or found.hint is not None
        return found if is_known and failed.kind in {"other", found.kind} else told

    def _explain(self, exit_code: int | None, signal: int | None) -> Cause:
        return explain(mask(self._end(), self.secrets), exit_code=exit_code, signal=signal, python=self.python)

    def _end(self) -> str:
        try:
            with self.path.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(self.start, size - _BYTES))
                return stream.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
