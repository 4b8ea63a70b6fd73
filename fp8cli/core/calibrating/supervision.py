"""The parent of a calibrator: starts it, hears what it tells, and sees to it that nothing of it outlives the run.

As with an evaluation's workers (`core.evaluating.supervising`), it may be of another interpreter, run out of memory or
crash inside a kernel; this side returns when its work is done, or raises one error with the reason in it.
"""

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fp8cli.calibrator.protocol import BOOTSTRAP, EVENTS, FACTS, LOG, SCALES, CalibrationJob, write_job
from fp8cli.core.calibrating.calibration_events import CalibrationEvent, calibration_event
from fp8cli.core.evaluating.event_file import EventFile, Failed, Finished
from fp8cli.core.evaluating.masking import mask, mask_file, secrets_of
from fp8cli.core.evaluating.process_group import end, end_leftovers, start
from fp8cli.core.evaluating.root_cause import Cause, explain, sentence
from fp8cli.errors import BadInput, CannotRun, Fp8Error, Interrupted

PACKAGE: Final = Path(__file__).parents[2]
"""The folder of this package: all that a calibrator of another interpreter sees of it."""

_POLL_SECONDS: Final = 0.05
_LEAVE_SECONDS: Final = 20.0
_LOG_BYTES: Final = 2**20
"""Of the end of the log that is looked at for the cause."""

_ENVIRONMENT: Final[Mapping[str, str]] = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONSAFEPATH": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What it gets unless the user has set it; why, says `core.evaluating.supervising`."""

_EAGER: Final[Mapping[str, str]] = {"CT_ENFORCE_EAGER": "1"}
"""Always: on newer GPUs compressed-tensors would round with another kernel."""

_MEMORY_HINT: Final = "take shorter texts, --max-seq-length 1024, or calibrate where there is more memory"
_FOR_EVAL: Final = re.compile(r"--(?:backend|model-arg|dtype|batch-size|max-length|gpu-memory|tensor-parallel|runs)\b")
"""Options of `fp8 eval` that the tables of causes name."""


def run_calibrator(
    job: CalibrationJob,
    folder: Path,
    *,
    python: Path,
    notify: Callable[[CalibrationEvent], None],
    stall_seconds: float,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Let a calibrator do the job in `folder`; afterwards the scales and the facts are there.

    The folder belongs to the caller alone; a calibrator that an earlier, killed run left at work in it is ended.
    stall_seconds: after so long without an event or a line in the log it is taken for hung and ended.

    Raises BadInput or CannotRun with the cause and the log's place, and Interrupted on Ctrl-C. However it ends, no
    process of it is left, and the log is.
    """
    end_leftovers(folder)
    for name in (FACTS, SCALES, EVENTS):
        (folder / name).unlink(missing_ok=True)
    write_job(job, folder)
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if job.device == "cpu" else {}
    whole = {**_ENVIRONMENT, **environ, **_EAGER, **hidden}
    log = folder / LOG
    secrets = secrets_of(whole)
    try:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"----- calibrator, {datetime.now(UTC).isoformat(timespec='seconds')} -----\n")
        log_start = log.stat().st_size
        process = _start(python, folder, log, whole)
        try:
            _Watch(process=process, folder=folder, log_start=log_start, python=python, secrets=secrets).wait(
                notify, stall_seconds
            )
        finally:
            end((process,), folder)
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    finally:
        with suppress(FileNotFoundError):
            mask_file(log, secrets)


def _start(python: Path, folder: Path, log: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    words = [str(python), "-c", BOOTSTRAP, str(PACKAGE), str(folder.absolute())]
    try:
        return start(words, environ=environ, folder=folder, log=log)
    except OSError as refusal:
        message = f"`{python}` cannot be run: {refusal.strerror or refusal}"
        raise CannotRun(message, hint="name another interpreter with --python") from refusal


@dataclass(frozen=True, kw_only=True)
class _Watch:
    """The time from the start of a calibrator to its end."""

    process: subprocess.Popen[bytes]
    folder: Path
    log_start: int
    """Where this run begins in the log, which may hold earlier ones."""
    python: Path
    secrets: tuple[str, ...]

    def wait(self, notify: Callable[[CalibrationEvent], None], stall_seconds: float) -> None:
        events: EventFile[CalibrationEvent] = EventFile(self.folder / EVENTS, calibration_event)
        heard_bytes, heard_at = -1, time.monotonic()
        finished_at: float | None = None
        while True:
            # In this order: what a process said before it ended is heard before its end is acted upon.
            code = self.process.poll()
            for event in events.read():
                match event:
                    case Failed():
                        raise self._failure(self._better(event))
                    case Finished():
                        finished_at = time.monotonic()
                    case _:
                        notify(event)
            if finished_at is not None and (code is not None or time.monotonic() - finished_at > _LEAVE_SECONDS):
                return
            if code is not None:
                raise self._failure(self._explain(*((code, None) if code >= 0 else (None, -code))))
            heard = events.heard_bytes + (self.folder / LOG).stat().st_size
            if heard != heard_bytes:
                heard_bytes, heard_at = heard, time.monotonic()
            elif time.monotonic() - heard_at > stall_seconds:
                message = f"nothing was heard of the calibration for {stall_seconds:,g} s, so it was ended"
                raise self._failure(Cause(kind="other", message=message, hint=None))
            time.sleep(_POLL_SECONDS)

    def _failure(self, cause: Cause) -> Fp8Error:
        kind = BadInput if cause.kind in {"data", "model"} else CannotRun
        advice = _MEMORY_HINT if cause.kind == "memory" else cause.hint
        if advice is not None and _FOR_EVAL.search(advice):
            advice = None
        said = "" if advice is None else f"{advice}; "
        return kind(cause.message, hint=f"{said}the whole log: {self.folder / LOG}")

    def _better(self, failed: Failed) -> Cause:
        """Return what it says of itself, unless its log says the same more exactly."""
        told = Cause(kind=failed.kind, message=sentence(mask(failed.message, self.secrets)), hint=failed.hint)
        if failed.hint is not None or failed.kind == "data":
            return told
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_LEAVE_SECONDS)
        found = self._explain(1, None)
        is_known = found.kind != "other" or found.hint is not None
        return found if is_known and failed.kind in {"other", found.kind} else told

    def _explain(self, exit_code: int | None, signal: int | None) -> Cause:
        with (self.folder / LOG).open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(self.log_start, size - _LOG_BYTES))
            log = stream.read().decode("utf-8", errors="replace")
        return explain(mask(log, self.secrets), exit_code=exit_code, signal=signal, python=self.python)
