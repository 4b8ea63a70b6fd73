"""Processes that are ended with everything they started: children, grandchildren, and those that left the group.

Each stands in a session of its own, so that Ctrl-C in a terminal reaches this process alone, which then ends them in
order. All that it starts inherits the same mark in its environment; on Linux a process is found by that mark even when
it has made a session of its own and lost its parent. Elsewhere the process group has to do.

The pipe on stdin is held open by this process and closed by the kernel if it dies, however it dies: a worker watches
for that and ends itself.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

MARK: Final = "FP8_WORK_FOLDER"
"""The environment variable that holds the mark: the folder that a process works in."""

GRACE_SECONDS: Final = 5.0
"""Between asking processes to end and ending them: vLLM takes a second or two to put its engine away."""

_KILL_SECONDS: Final = 10.0
"""A process that outlives SIGKILL for so long hangs in the kernel; nothing more can be done about it."""
_PAUSE_SECONDS: Final = 0.02
_PROCESSES: Final = Path("/proc")


def start(
    words: Sequence[str], *, environ: Mapping[str, str], folder: Path, log: Path, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; what it prints is appended to `log`.

    folder: its mark. pass_fds: open files that it gets too. Raises OSError if the program cannot be started.
    """
    with log.open("ab") as stream:
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**environ, MARK: _mark_of(folder)},
            start_new_session=True,
            pass_fds=pass_fds,
        )


def end(processes: Sequence[subprocess.Popen[bytes]], folder: Path, *, grace_seconds: float = GRACE_SECONDS) -> None:
    """End the processes and everything with the mark of `folder`: SIGTERM, a grace, SIGKILL. None of them is left.

    Ctrl-C during the grace cuts it short.
    """
    try:
        _signal_all(processes, folder, signal.SIGTERM)
        _wait(processes, folder, grace_seconds)
    except KeyboardInterrupt:
        pass
    finally:
        deadline = time.monotonic() + _KILL_SECONDS
        while _is_any_left(processes, folder) and time.monotonic() < deadline:
            # Again and again: between looking and killing, a process may have started another.
            _signal_all(processes, folder, signal.SIGKILL)
            _wait(processes, folder, 10 * _PAUSE_SECONDS)
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()


def end_leftovers(folder: Path) -> None:
    """End what a run that was killed left at work in `folder`. The caller must hold the folder for itself alone."""
    if any(_marked(folder)):
        end((), folder)


def _mark_of(folder: Path) -> str:
    return str(folder.resolve())


def _signal_all(processes: Sequence[subprocess.Popen[bytes]], folder: Path, number: signal.Signals) -> None:
    for process in processes:
        # While one of a group is alive its number is not given to another; a group that is gone is not there.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
    groups = {process.pid for process in processes}
    for pid in _marked(folder):
        with suppress(ProcessLookupError, PermissionError):
            # Once is enough: a second SIGTERM would interrupt what the first set off.
            if os.getpgid(pid) not in groups:
                os.kill(pid, number)


def _wait(processes: Sequence[subprocess.Popen[bytes]], folder: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _is_any_left(processes, folder) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)


def _is_any_left(processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> bool:
    # Every one is polled, because that is also how a process that ended is taken leave of.
    running = [process for process in processes if process.poll() is None]
    return bool(running) or any(_marked(folder))


def _marked(folder: Path) -> Iterator[int]:
    """Yield the processes with the mark of a folder, this one never among them. None where there is no /proc."""
    entry = f"{MARK}={_mark_of(folder)}".encode(errors="surrogateescape")
    try:
        places = tuple(_PROCESSES.iterdir())
    except OSError:
        return
    for place in places:
        if not place.name.isdecimal() or int(place.name) == os.getpid():
            continue
        # Gone meanwhile, or of another user. A process that ended and waits to be taken leave of has none.
        with suppress(OSError):
            if entry in (place / "environ").read_bytes().split(b"\0"):
                yield int(place.name)
