"""A file of events that another process appends to, and the two words that every such process may end with.

A line that is no event says nothing: it may be torn, or of a newer version. What matters in the end is the result.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar, get_args

from fp8cli.worker.protocol import FailureKind

Event = TypeVar("Event")

_KINDS: Final[tuple[FailureKind, ...]] = get_args(FailureKind)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The process's last word, when all went well."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The process's last word, when it knows what went wrong."""

    kind: FailureKind
    message: str
    hint: str | None


class EventFile(Generic[Event]):
    """A file of events that grows."""

    def __init__(self, path: Path, event_of: Callable[[object], Event | None]) -> None:
        """Begin before the first event. The file need not exist yet. event_of: see `parse`."""
        self._path = path
        self._event_of = event_of
        self.heard_bytes = 0
        """How much was read so far."""

    def read(self) -> tuple[Event | Finished | Failed, ...]:
        """Return the events since the last call. A line without its end stays for the next one."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self.heard_bytes)
                news = stream.read()
        except FileNotFoundError:
            return ()
        whole = news[: news.rfind(b"\n") + 1]
        self.heard_bytes += len(whole)
        return tuple(event for line in whole.splitlines() if (event := parse(line, self._event_of)) is not None)


def parse(line: bytes, event_of: Callable[[object], Event | None]) -> Event | Finished | Failed | None:
    """Return the event of a line, None if it is none. event_of: makes an event of JSON, or None, or a ValueError."""
    try:
        fields = json.loads(line)
        return _last_word(fields) or event_of(fields)
    except (ValueError, RecursionError):
        return None


def _last_word(fields: object) -> Finished | Failed | None:
    match fields:
        case {"event": "finished"}:
            return Finished()
        case {"event": "failed", "message": str(message), **rest}:
            kind, hint = rest.get("kind"), rest.get("hint")
            sort: FailureKind = next((each for each in _KINDS if each == kind), "other")
            return Failed(kind=sort, message=message, hint=hint if isinstance(hint, str) else None)
        case _:
            return None
