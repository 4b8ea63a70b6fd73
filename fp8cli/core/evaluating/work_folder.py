"""Where a run grows until it is whole: RUNS/.work/KEY/, held by one process at a time, gone on with after a kill.

    lock            held (flock) by the one run that may work here; a dead process holds nothing
    started.json    the id of the run, and what was lowered since because memory ran out
    the rest        see worker.protocol

The key is that of all settings: a run with others grows elsewhere, so its answers can never be mixed in.
"""

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from fp8cli.core.evaluating.runs import WORK
from fp8cli.errors import CannotRun
from fp8cli.formats.run_record import write_whole
from fp8cli.formats.typed_json import from_json
from fp8cli.worker.protocol import FIDELITY, RESULT

_STARTED: Final = "started.json"
_LOCK: Final = "lock"
_KEPT: Final = 20
"""Signs of the key in the folder's name: 80 bits."""

_NO_SPACE: Final = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file-size limit is reached",
}


@dataclass(frozen=True, kw_only=True)
class Started:
    """A run that was begun."""

    id: str
    """The date in the names of its files, as lm-eval writes it, in UTC."""
    created: str
    """The same in ISO 8601."""
    batch_size: int | None = None
    """What memory has room for, where it was lowered."""
    gpu_memory: float | None = None


@dataclass(kw_only=True)
class Work:
    """A run's folder, held by this process. Made by `hold`; valid only inside it."""

    folder: Path
    started: Started
    resumed: bool
    """Whether an earlier process left answers."""

    def remember(self, started: Started) -> None:
        """Note what was lowered, for whoever goes on."""
        self.started = started
        write_whole(self.folder / _STARTED, json.dumps(asdict(started)).encode())

    def clear_results(self) -> None:
        """Remove what only a whole run has; answers and logs stay."""
        (self.folder / RESULT).unlink(missing_ok=True)
        shutil.rmtree(self.folder / FIDELITY, ignore_errors=True)
        for path in (*self.folder.glob("samples_*.jsonl"), *self.folder.glob("events-*.jsonl")):
            path.unlink()


@contextmanager
def hold(runs: Path, key: str, *, anew: bool) -> Iterator[Work]:
    """Hold the folder of the run with this key, and go on with what lies there; `anew` throws it away.

    Raises CannotRun if another process holds it, or the folder cannot be written.
    """
    folder = runs / WORK / key[:_KEPT]
    with runs_errors(runs):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a")
    with lock:
        _take(lock, folder)
        with runs_errors(runs):
            if anew:
                _empty(folder)
            started = _read(folder)
            resumed = started is not None and any(path.stat().st_size for path in folder.glob("answers-*.jsonl"))
            if started is None:
                _empty(folder)
                started = _start()
            work = Work(folder=folder, started=started, resumed=resumed)
            work.remember(started)
            work.clear_results()
        yield work


def discard(work: Work) -> None:
    """Remove the folder of a run that is published."""
    shutil.rmtree(work.folder, ignore_errors=True)


@contextmanager
def runs_errors(runs: Path) -> Iterator[None]:
    """Turn a full disk, a quota or a read-only place into one sentence; what was answered stays for a later run."""
    try:
        yield
    except OSError as problem:
        reason = _NO_SPACE.get(problem.errno or 0)
        if reason is not None:
            hint = "make room and run the same command again: answers that are there are kept"
            raise CannotRun(f"{reason}: `{runs}` could not be written", hint=hint) from problem
        message = f"`{problem.filename or runs}` cannot be written: {problem.strerror or problem}"
        raise CannotRun(message, hint="choose another runs folder with --runs") from problem


def _take(lock: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        message = f"another process is at this very evaluation, in `{folder}`"
        raise CannotRun(message, hint="wait for it: the same command is then answered from its record") from None
    except OSError as problem:
        message = f"`{folder}` does not support file locks: {problem.strerror}"
        raise CannotRun(message, hint="choose a runs folder on another file system with --runs") from problem
    if not folder.is_dir() or not (folder / _LOCK).exists():
        # Whoever held it has just published and removed it.
        raise CannotRun("another process has just finished this evaluation", hint="run the same command again")


def _start() -> Started:
    now = datetime.now(UTC)
    return Started(id=now.strftime("%Y-%m-%dT%H-%M-%S.%f"), created=now.isoformat())


def _read(folder: Path) -> Started | None:
    """Return what an earlier process began; None if there is nothing, or nothing that can be read."""
    try:
        return from_json(Started, json.loads((folder / _STARTED).read_text("utf-8")))
    except (OSError, ValueError):
        return None


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
