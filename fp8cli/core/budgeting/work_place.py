"""The folder in which a choice within a budget is worked out: one run's alone, and what it found kept under a key.

It lies beside the output in the making, and goes with it when that is published; a dry run has one of its own.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import IO, Any, Final

from fp8cli.errors import CannotRun, Fp8Error, Interrupted
from fp8cli.formats.staging import disk_errors, partial_folder
from fp8cli.measurer.protocol import LOG

BUDGET: Final = "budget"
"""Name of the folder."""

FOUND: Final = "found.json"
"""What was found, and the key of what it was found for."""


@dataclass(frozen=True, kw_only=True)
class WorkPlace:
    """The folder of one choice."""

    folder: Path

    def known(self, key: str) -> Mapping[str, Any] | None:
        """Return what an unfinished run has found for the same key; None if there is nothing."""
        try:
            kept = json.loads((self.folder / FOUND).read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(kept, dict) or kept.get("key") != key:
            return None
        found: Mapping[str, Any] = kept["found"]
        return found

    def keep(self, key: str, found: Mapping[str, Any]) -> None:
        """Write what was found, whole or not at all."""
        fresh = self.folder / f"{FOUND}.new"
        fresh.write_text(json.dumps({"key": key, "found": found}), encoding="utf-8")
        fresh.replace(self.folder / FOUND)

    def leave_nothing(self) -> None:
        """Remove the folder, and that around it unless something else of an unfinished run lies there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()


@contextmanager
def open_work_place(out: Path, *, restart: bool, dry_run: bool) -> Iterator[WorkPlace]:
    """Open the folder for a choice of what stays in 16 bits in `out`.

    restart: forget what an unfinished run found. dry_run: keep nothing. Raises CannotRun where another run works there.
    What fails leaves the log of a process, if it had one; what is interrupted leaves nothing.
    """
    place = WorkPlace(folder=(Path(mkdtemp(prefix="fp8-")) if dry_run else partial_folder(out)) / BUDGET)
    with disk_errors(out):
        place.folder.mkdir(parents=True, exist_ok=True)
        lock = (place.folder / "lock").open("w")
    with lock:
        _take(lock, out)
        if restart:
            (place.folder / FOUND).unlink(missing_ok=True)
        try:
            yield place
        except (Interrupted, KeyboardInterrupt):
            place.leave_nothing()
            raise
        except Fp8Error:
            if not (place.folder / LOG).exists():
                place.leave_nothing()
            raise
        if dry_run:
            place.leave_nothing()


def _take(lock: IO[str], out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        message = f"another run is measuring what stays in 16 bits in `{out}`"
        raise CannotRun(message, hint="wait for it, or choose another place with -o") from None
    except OSError as problem:
        message = f"`{out.parent}` does not support file locks: {problem.strerror}"
        raise CannotRun(message, hint="choose an output on another file system with -o") from problem
