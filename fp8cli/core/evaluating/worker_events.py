"""What a worker says while it works, as `worker.protocol` has it; what matters in the end is the result."""

from dataclasses import dataclass
from pathlib import Path

from fp8cli.core.processes import event_file
from fp8cli.core.processes.event_file import EventFile, Failed, Finished


@dataclass(frozen=True, kw_only=True)
class CountedTask:
    """One task, as the worker counted it before the model was loaded."""

    name: str
    items: int
    requests: int


@dataclass(frozen=True, kw_only=True)
class TasksCounted:
    """What is to be done. Said once, whatever the number of workers."""

    tasks: tuple[CountedTask, ...]


@dataclass(frozen=True, kw_only=True)
class ModelLoading:
    """The checkpoint is being loaded."""


@dataclass(frozen=True, kw_only=True)
class ModelLoaded:
    """Every worker has loaded the checkpoint."""

    seconds: float
    """That the slowest took."""
    executed: str
    """How its linear layers are multiplied, see `RunRecord.executed_as`."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """Requests are being answered."""

    requests: int
    """In all."""
    known: int
    """Of these, answered by an earlier run that was cut off."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Answers since the last of these."""

    count: int


@dataclass(frozen=True, kw_only=True)
class FidelityProgress:
    """Next-token distributions that are kept so far."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Observing:
    """Texts that a simulation takes its scales from, so far."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Modifying:
    """Parts of the model that llm-compressor has prepared for a simulation, so far."""

    done: int
    total: int


WorkerEvent = TasksCounted | ModelLoading | Observing | Modifying | ModelLoaded | Running | Answered | FidelityProgress
"""What a caller is told."""


class Tail(EventFile[WorkerEvent]):
    """The growing file of a worker's events."""

    def __init__(self, path: Path) -> None:
        """Begin before the first event. The file need not exist yet."""
        super().__init__(path, _event)


def parse(line: bytes) -> WorkerEvent | Finished | Failed | None:
    """Return the event of a line; None for `started`, which is for people who read the file, and for anything else."""
    return event_file.parse(line, _event)


def _event(fields: object) -> WorkerEvent | None:
    match fields:
        case {"event": "tasks", "tasks": [*rows]}:
            return TasksCounted(tasks=tuple(map(_counted, rows)))
        case {"event": "loading"}:
            return ModelLoading()
        case {"event": "observing", "done": int(done), "total": int(total)}:
            return Observing(done=done, total=total)
        case {"event": "modifying", "done": int(done), "total": int(total)}:
            return Modifying(done=done, total=total)
        case {"event": "loaded", "seconds": int() | float() as seconds, "executed": str(executed)}:
            return ModelLoaded(seconds=seconds, executed=executed)
        case {"event": "running", "requests": int(requests), "known": int(known)}:
            return Running(requests=requests, known=known)
        case {"event": "answered", "count": int(count)}:
            return Answered(count=count)
        case {"event": "fidelity", "done": int(done), "total": int(total)}:
            return FidelityProgress(done=done, total=total)
        case _:
            return None


def _counted(row: object) -> CountedTask:
    match row:
        case {"name": str(name), "items": int(items), "requests": int(requests)}:
            return CountedTask(name=name, items=items, requests=requests)
        case _:
            raise ValueError("not a task as worker.protocol has it")
