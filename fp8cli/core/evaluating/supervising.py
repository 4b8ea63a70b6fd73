"""The parent of the workers: starts them, hears what they tell, and sees to it that none outlives the evaluation.

A worker is a process with a folder: `worker.protocol` says which files stand for what. It may be of another
interpreter, run out of memory, crash inside a kernel, or never come back from one; whatever it does, this side either
returns its result or raises one error with the reason in it, and nothing is left running.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fp8cli.core.evaluating.gpu_shares import shares
from fp8cli.core.evaluating.worker_events import (
    Answered,
    ModelLoaded,
    ModelLoading,
    Running,
    Tail,
    TasksCounted,
    WorkerEvent,
)
from fp8cli.core.processes.event_file import Failed, Finished
from fp8cli.core.processes.launching import launch
from fp8cli.core.processes.logbook import Logbook
from fp8cli.core.processes.masking import mask_file, secrets_of
from fp8cli.core.processes.process_group import end, end_leftovers
from fp8cli.core.processes.root_cause import Cause
from fp8cli.errors import CannotRun, Interrupted
from fp8cli.worker.protocol import RESULT, Job, events_file, log_file, write_job

_POLL_SECONDS: Final = 0.1
_LEAVE_SECONDS: Final = 20.0
"""After its last word a worker may take so long to leave: vLLM puts its engine away, which now and then hangs."""

_TRACEBACK_SECONDS: Final = 5.0
"""After saying that it failed a worker still writes to its log why."""


class WorkerFailed(CannotRun):
    """A worker did not do its work."""

    def __init__(self, cause: Cause, log: Path) -> None:
        """Say why, and where the whole story is."""
        self.cause = cause
        self.log = log
        advice = "" if cause.hint is None else f"{cause.hint}; "
        super().__init__(cause.message, hint=f"{advice}the whole log: {log}")


@dataclass(kw_only=True)
class _Worker:
    """One worker and what is known of it."""

    process: subprocess.Popen[bytes]
    tail: Tail
    logbook: Logbook
    loaded: ModelLoaded | None = None
    running: Running | None = None
    last_word: Finished | Failed | None = None
    last_word_at: float = 0.0

    @property
    def heard_bytes(self) -> int:
        """All that was heard of it so far; it grows as long as the worker does anything that can be seen."""
        return self.tail.heard_bytes + self.logbook.bytes


def run_workers(
    job: Job,
    folder: Path,
    *,
    python: Path,
    notify: Callable[[WorkerEvent], None],
    stall_seconds: float,
    environ: Mapping[str, str] = os.environ,
) -> Mapping[str, object]:
    """Run the workers of a job in `folder` and return what they wrote into result.json.

    The folder belongs to the caller alone; answers in it are gone on from, and a worker that an earlier, killed run
    left in it is ended. python: the workers' interpreter. stall_seconds: after so long without an event or a line in a
    log, the workers are taken for hung and ended. A job that stops after its tasks are counted has no result: {}.

    Raises WorkerFailed with the cause, CannotRun where no worker can be started, and Interrupted on Ctrl-C. However it
    ends, no process of it is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end_leftovers(folder)
    for name in (RESULT, *map(events_file, range(job.world))):
        (folder / name).unlink(missing_ok=True)
    write_job(job, folder)
    secrets = secrets_of({**environ, **job.environment})
    logs = tuple(folder / log_file(rank) for rank in range(job.world))
    try:
        with _masked_afterwards(logs, secrets), _started(job, folder, logs, python, environ, secrets) as workers:
            _Watch(workers=workers, notify=notify, stall_seconds=stall_seconds).run()
            return {} if job.stop_after is not None else _read_result(folder, logs[0])
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None


@contextmanager
def _masked_afterwards(logs: Sequence[Path], secrets: Sequence[str]) -> Iterator[None]:
    try:
        yield
    finally:
        for log in logs:
            with suppress(FileNotFoundError):
                mask_file(log, secrets)


@contextmanager
def _started(
    job: Job, folder: Path, logs: Sequence[Path], python: Path, environ: Mapping[str, str], secrets: tuple[str, ...]
) -> Iterator[tuple[_Worker, ...]]:
    """Start the workers, and end every one of them with all it started when the work on them is over."""
    workers: list[_Worker] = []
    common = {**environ, **job.environment}
    try:
        for rank, (log, own) in enumerate(zip(logs, shares(job, common), strict=True)):
            process, logbook = launch(
                "fp8cli.worker.main",
                (rank,),
                title=f"worker {rank}",
                python=python,
                folder=folder,
                log=log,
                environ={**common, **own},
                secrets=secrets,
            )
            workers.append(_Worker(process=process, tail=Tail(folder / events_file(rank)), logbook=logbook))
        yield tuple(workers)
    finally:
        end([worker.process for worker in workers], folder)


@dataclass(kw_only=True)
class _Watch:
    """The time from the start of the workers to the end of the last."""

    workers: tuple[_Worker, ...]
    notify: Callable[[WorkerEvent], None]
    stall_seconds: float
    _said: set[type[WorkerEvent]] = field(default_factory=set)
    _answers: int = 0
    """Told by workers before the last of them had said how much there is to do."""

    def run(self) -> None:
        """Wait for all workers. Raises WorkerFailed as soon as one fails, or when nothing was heard for too long."""
        heard_bytes, heard_at = -1, time.monotonic()
        while True:
            # In this order: what a process said before it ended is heard before its end is acted upon.
            ended = [worker.process.poll() is not None for worker in self.workers]
            for worker in self.workers:
                self._hear(worker)
            for worker, is_over in zip(self.workers, ended, strict=True):
                self._judge(worker, is_over=is_over)
            if all(_is_done(worker) for worker in self.workers):
                return
            heard = sum(worker.heard_bytes for worker in self.workers)
            if heard != heard_bytes:
                heard_bytes, heard_at = heard, time.monotonic()
            elif time.monotonic() - heard_at > self.stall_seconds:
                self._give_up()
            time.sleep(_POLL_SECONDS)

    def _hear(self, worker: _Worker) -> None:
        answers = 0
        for event in worker.tail.read():
            match event:
                case Finished() | Failed():
                    worker.last_word, worker.last_word_at = event, time.monotonic()
                case Answered(count=count):
                    answers += count
                case ModelLoaded():
                    worker.loaded = event
                    self._tell_loaded()
                case Running():
                    worker.running = event
                    self._tell_running()
                case TasksCounted() | ModelLoading():
                    # Every worker says so, and it is the same news.
                    if type(event) not in self._said:
                        self._said.add(type(event))
                        self.notify(event)
                case _:
                    self.notify(event)
        self._answers += answers
        if self._answers and all(each.running is not None for each in self.workers):
            self.notify(Answered(count=self._answers))
            self._answers = 0

    def _tell_loaded(self) -> None:
        loaded = [worker.loaded for worker in self.workers if worker.loaded is not None]
        if len(loaded) == len(self.workers):
            self.notify(ModelLoaded(seconds=max(each.seconds for each in loaded), executed=loaded[0].executed))

    def _tell_running(self) -> None:
        running = [worker.running for worker in self.workers if worker.running is not None]
        if len(running) == len(self.workers):
            requests, known = (sum(each.requests for each in running), sum(each.known for each in running))
            self.notify(Running(requests=requests, known=known))

    def _judge(self, worker: _Worker, *, is_over: bool) -> None:
        code = worker.process.returncode if is_over else None
        match worker.last_word:
            case Failed() as failed:
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(_TRACEBACK_SECONDS)
                raise WorkerFailed(worker.logbook.explain_failure(failed), worker.logbook.path)
            case Finished():
                return
            case None if code is not None:
                raise WorkerFailed(worker.logbook.explain_exit(code), worker.logbook.path)
            case None:
                return

    def _give_up(self) -> None:
        message = f"nothing was heard of the worker for {self.stall_seconds:,g} s, so it was ended"
        silent = next(worker for worker in self.workers if not _is_done(worker))
        hint = "if it only needs longer: --stall-timeout SECONDS"
        raise WorkerFailed(Cause(kind="other", message=message, hint=hint), silent.logbook.path)


def _is_done(worker: _Worker) -> bool:
    """Whether a worker has said that it finished, and left or had the time to."""
    if not isinstance(worker.last_word, Finished):
        return False
    return worker.process.poll() is not None or time.monotonic() - worker.last_word_at > _LEAVE_SECONDS


def _read_result(folder: Path, log: Path) -> Mapping[str, object]:
    """Read result.json. Raises WorkerFailed if it is not there or is not what `worker.protocol` says."""
    try:
        result = json.loads((folder / RESULT).read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is no JSON"
        cause = Cause(kind="other", message=f"the worker's result cannot be read: {reason}", hint=None)
        raise WorkerFailed(cause, log) from problem
    match result:
        case {"results": {}, "facts": {}}:
            return dict(result)
        case _:
            cause = Cause(kind="other", message="the worker's result lacks `results` or `facts`", hint=None)
            raise WorkerFailed(cause, log)
