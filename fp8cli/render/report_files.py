"""Files that a report is also written to: refused before any work is done, and written whole or not at all."""

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from fp8cli.errors import CannotRun, UsageError


@dataclass(frozen=True, kw_only=True)
class ReportFile:
    """A file that an option of the command line names."""

    path: Path
    option: str
    """Such as `--plot`."""
    what: str
    """What is in it, with its article: `the drawing`."""
    example: str
    """A name for it."""

    def check(self) -> None:
        """Refuse what `write` could not write.

        Raises UsageError for a folder under that name, or a parent that is none; CannotRun if the parent cannot be
        written.
        """
        folder = self._target().parent
        if self.path.is_dir():
            message = f"`{self.path}` is a folder, and {self.what} is a file"
            raise UsageError(message, hint=f"name a file in it: {self.option} {self.path / self.example}")
        if not folder.is_dir():
            message = f"`{self.path}` cannot be written: there is no folder `{folder}`"
            raise UsageError(message, hint="make the folder first, or name a file in one that exists")
        try:
            with TemporaryFile(dir=folder):
                pass
        except OSError as problem:
            raise self._unwritable(problem) from problem

    def write(self, content: bytes) -> None:
        """Write it; what was there is replaced in one step. Raises CannotRun, and then nothing of it is left."""
        target = self._target()
        growing = target.with_name(f".{secrets.token_hex(8)}.fp8-partial")
        try:
            try:
                # Created by hand: tempfile would make it private, and the umask shall decide.
                descriptor = os.open(growing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                growing.replace(target)
            except BaseException:
                with suppress(OSError):
                    growing.unlink()
                raise
        except OSError as problem:
            raise self._unwritable(problem) from problem

    def _target(self) -> Path:
        """The file itself where `path` is a link to it, so that the link stays one."""
        return Path(os.path.realpath(self.path))

    def _unwritable(self, problem: OSError) -> CannotRun:
        message = f"`{self.path}` cannot be written: {problem.strerror or problem}"
        return CannotRun(message, hint=f"make room or choose another place with {self.option}")
