"""What a node has sent of a file, noted where every machine sees it: so that nobody sends a part twice.

A worker outlives its node by seconds, and a node that hangs comes back: by then another one may have sent the file, and
what it held is given up. So the last attempt claims the file, and whoever finds another's claim after he has read a
part does not send it: what he read while the claim was his was still there.

Each attempt has a file of its own, because not every shared file system lets two machines add to one. A line for each
part, written and closed before the next; a torn last line, left by a kill in the middle of a write, is ignored.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fp8cli.errors import CannotRun
from fp8cli.formats.destinations import Upload

FOLDER: Final = "sent"


@dataclass(frozen=True, kw_only=True)
class NotedPart:
    """A part that is there."""

    upload: str
    number: int
    tag: str


@dataclass
class NodeNotes:
    """The notes of one attempt at a file; see `formats.destinations.Notes`. Any thread may call it."""

    folder: Path
    file: str
    upload: Upload | None
    _path: Path = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Choose a name that no other attempt has, and claim the file."""
        self._path = self.folder / f"{_stem(self.file)}-{os.urandom(8).hex()}"
        claim = self.folder / f"claim-of-{self._path.name}"
        claim.write_text(self._path.name, encoding="utf-8")
        claim.replace(self._claim)

    @property
    def _claim(self) -> Path:
        return self.folder / f"{_stem(self.file)}.claim"

    def about_to_send(self) -> None:
        """Raise CannotRun where another attempt has claimed the file."""
        if self._claim.read_text("utf-8") != self._path.name:
            message = f"another node sends `{self.file}` by now"
            raise CannotRun(message)

    def begun(self, upload: Upload) -> None:
        """Take note under which name the parts go from now on: the place had forgotten the one before."""
        self.upload = upload

    def part(self, number: int, tag: str) -> None:
        """Note that a part is there."""
        assert self.upload is not None  # noqa: S101 - what has parts was begun
        line = {"upload": self.upload.id, "part": number, "tag": tag}
        with self._lock, self._path.open("a", encoding="utf-8") as notes:
            notes.write(json.dumps(line) + "\n")

    def sent(self, count: int, *, before: bool = False) -> None:
        """Nothing to do: who waits counts the parts."""


def read_notes(folder: Path, file: str) -> tuple[NotedPart, ...]:
    """Return the parts that attempts at a file have noted, each once."""
    found: dict[tuple[str, int], NotedPart] = {}
    for path in sorted(folder.glob(f"{_stem(file)}-*")):
        with suppress(OSError):
            for line in path.read_text("utf-8", errors="replace").splitlines():
                with suppress(ValueError, TypeError, KeyError):
                    said = json.loads(line)
                    part = NotedPart(upload=str(said["upload"]), number=int(said["part"]), tag=str(said["tag"]))
                    found[part.upload, part.number] = part
    return tuple(found.values())


def with_notes(upload: Upload | None, parts: tuple[NotedPart, ...]) -> Upload | None:
    """Return what is known of an upload with what was noted of it."""
    if upload is None:
        return None
    noted: Mapping[int, str] = {part.number: part.tag for part in parts if part.upload == upload.id}
    return replace(upload, parts={**upload.parts, **noted})


def _stem(file: str) -> str:
    return hashlib.sha256(file.encode()).hexdigest()[:24]
