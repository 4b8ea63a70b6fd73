"""What a worker says while it works, read from the file it appends to, a whole line at a time.

A line that is no event of `worker.protocol` says nothing: it may be torn, or of a newer version. What matters in the
end is the result, which is read as a whole.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from fp8cli.worker.protocol import FailureKind

_KINDS: Final[tuple[FailureKind, ...]] = get_args(FailureKind)


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


WorkerEvent = TasksCounted | ModelLoading | ModelLoaded | Running | Answered | FidelityProgress
"""What a caller is told."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The worker's last word, when all went well."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The worker's last word, when it knows what went wrong."""

    kind: FailureKind
    message: str
    hint: str | None


class Tail:
    """A file of events that grows."""

    def __init__(self, path: Path) -> None:
        """Begin before the first event. The file need not exist yet."""
        self._path = path
        self._offset = 0

    def read(self) -> tuple[WorkerEvent | Finished | Failed, ...]:
        """Return the events since the last call. A line without its end stays for the next one."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                news = stream.read()
        except FileNotFoundError:
            return ()
        whole = news[: news.rfind(b"\n") + 1]
        self._offset += len(whole)
        return tuple(event for line in whole.splitlines() if (event := parse(line)) is not None)

    @property
    def heard_bytes(self) -> int:
        """How much was read so far."""
        return self._offset


def parse(line: bytes) -> WorkerEvent | Finished | Failed | None:
    """Return the event of a line; None for `started`, which is for people who read the file, and for anything else."""
    try:
        return _event(json.loads(line))
    except (ValueError, RecursionError):
        return None


def _event(fields: object) -> WorkerEvent | Finished | Failed | None:
    match fields:
        case {"event": "tasks", "tasks": [*rows]}:
            return TasksCounted(tasks=tuple(map(_counted, rows)))
        case {"event": "loading"}:
            return ModelLoading()
        case {"event": "loaded", "seconds": int() | float() as seconds, "executed": str(executed)}:
            return ModelLoaded(seconds=seconds, executed=executed)
        case {"event": "running", "requests": int(requests), "known": int(known)}:
            return Running(requests=requests, known=known)
        case {"event": "answered", "count": int(count)}:
            return Answered(count=count)
        case {"event": "fidelity", "done": int(done), "total": int(total)}:
            return FidelityProgress(done=done, total=total)
        case {"event": "finished"}:
            return Finished()
        case {"event": "failed", "message": str(message), **rest}:
            kind, hint = rest.get("kind"), rest.get("hint")
            sort: FailureKind = next((each for each in _KINDS if each == kind), "other")
            return Failed(kind=sort, message=message, hint=hint if isinstance(hint, str) else None)
        case _:
            return None


def _counted(row: object) -> CountedTask:
    match row:
        case {"name": str(name), "items": int(items), "requests": int(requests)}:
            return CountedTask(name=name, items=items, requests=requests)
        case _:
            raise ValueError("not a task as worker.protocol has it")
