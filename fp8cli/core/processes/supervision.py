"""The parent of one process: starts it, hears what it tells, and sees to it that nothing of it outlives the run.

It may be of another interpreter, run out of memory or crash inside a kernel; this side returns when its work is done,
or raises one error with the reason in it.
"""

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from fp8cli.core.processes.event_file import EventFile, Failed, Finished
from fp8cli.core.processes.launching import launch
from fp8cli.core.processes.logbook import Logbook
from fp8cli.core.processes.masking import mask_file, secrets_of
from fp8cli.core.processes.process_group import end, end_leftovers
from fp8cli.core.processes.root_cause import Cause
from fp8cli.errors import BadInput, CannotRun, Fp8Error, Interrupted

Event = TypeVar("Event")

_POLL_SECONDS: Final = 0.05
_LEAVE_SECONDS: Final = 20.0
_FOR_EVAL: Final = re.compile(r"--(?:backend|model-arg|dtype|batch-size|max-length|gpu-memory|tensor-parallel|runs)\b")
"""Options of `fp8 eval` that the tables of causes name."""


@dataclass(frozen=True, kw_only=True)
class Program(Generic[Event]):
    """A process of this tool's own: what it is, and how it is heard."""

    name: str
    """What it does, as messages have it: `calibration`."""
    module: str
    """Its `main` gets the folder."""
    events: str
    """Name of its file of events."""
    event_of: Callable[[object], Event | None]
    """See `event_file.parse`."""
    log: str
    """Name of its log."""
    results: tuple[str, ...]
    """Names of what it leaves in the folder; what lies there of earlier runs is taken away before it starts."""
    memory_hint: str
    """What helps when memory runs out."""
    environment: Mapping[str, str]
    """What it gets unless the user has set it."""


def run_program(
    program: Program[Event],
    folder: Path,
    *,
    python: Path,
    notify: Callable[[Event], None],
    stall_seconds: float,
    forced: Mapping[str, str],
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Let a program do the job that lies in `folder`; afterwards its results are there.

    The folder belongs to the caller alone; a process that an earlier, killed run left at work in it is ended.
    stall_seconds: after so long without an event or a line in the log it is taken for hung and ended. forced: its
    environment, whatever the user has set.

    Raises BadInput or CannotRun with the cause and the log's place, and Interrupted on Ctrl-C. However it ends, no
    process of it is left, and the log is.
    """
    end_leftovers(folder)
    for name in (program.events, *program.results):
        (folder / name).unlink(missing_ok=True)
    whole = {**program.environment, **environ, **forced}
    secrets = secrets_of(whole)
    log = folder / program.log
    try:
        process, logbook = launch(
            program.module,
            (),
            title=program.name,
            python=python,
            folder=folder,
            log=log,
            environ=whole,
            secrets=secrets,
        )
        try:
            events = EventFile(folder / program.events, program.event_of)
            _Watch(program=program, process=process, logbook=logbook).wait(events, notify, stall_seconds)
        finally:
            end((process,), folder)
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    finally:
        with suppress(FileNotFoundError):
            mask_file(log, secrets)


@dataclass(frozen=True, kw_only=True)
class _Watch(Generic[Event]):
    """The time from the start of a process to its end."""

    program: Program[Event]
    process: subprocess.Popen[bytes]
    logbook: Logbook

    def wait(self, events: EventFile[Event], notify: Callable[[Event], None], stall_seconds: float) -> None:
        heard_bytes, heard_at = -1, time.monotonic()
        finished_at: float | None = None
        while True:
            # In this order: what a process said before it ended is heard before its end is acted upon.
            code = self.process.poll()
            for event in events.read():
                match event:
                    case Failed():
                        raise self._error(self._explain(event))
                    case Finished():
                        finished_at = time.monotonic()
                    case _:
                        notify(event)
            if finished_at is not None and (code is not None or time.monotonic() - finished_at > _LEAVE_SECONDS):
                return
            if code is not None:
                raise self._error(self.logbook.explain_exit(code))
            heard = events.heard_bytes + self.logbook.bytes
            if heard != heard_bytes:
                heard_bytes, heard_at = heard, time.monotonic()
            elif time.monotonic() - heard_at > stall_seconds:
                message = f"nothing was heard of the {self.program.name} for {stall_seconds:,g} s, so it was ended"
                raise self._error(Cause(kind="other", message=message, hint=None))
            time.sleep(_POLL_SECONDS)

    def _explain(self, failed: Failed) -> Cause:
        if failed.kind == "data":
            # It looked at the user's rows itself, and no log knows better.
            return self.logbook.told_by(failed)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_LEAVE_SECONDS)
        return self.logbook.explain_failure(failed)

    def _error(self, cause: Cause) -> Fp8Error:
        return failure_of(self.program, cause, self.logbook.path)


def failure_of(program: Program[Event], cause: Cause, log: Path) -> Fp8Error:
    """Return the error that a program's end is to its user."""
    kind = BadInput if cause.kind in {"data", "model"} else CannotRun
    advice = program.memory_hint if cause.kind == "memory" else cause.hint
    if advice is not None and _FOR_EVAL.search(advice):
        advice = None
    said = "" if advice is None else f"{advice}; "
    return kind(cause.message, hint=f"{said}the whole log: {log}")
