"""What was sent, kept beside the journal of a run: so that one that was killed sends nothing twice, and no hole.

A line for each thing that happened, appended; a torn last line, left by a kill in the middle of a write, is ignored.
That a file is there as a whole reaches the disk before any of its bytes here is given up.
"""

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fp8cli.formats.destinations import Sent, Upload

LEDGER: Final = "delivery"
"""The file's name in the staging folder."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of one file."""

    upload: Upload | None = None
    sha256: str | None = None
    """Set when all of it is there."""
    punched: bool = False
    """Whether its weights are, or may be, gone here."""
    lost: bool = False
    """Whether its weights have to be made again: they are gone here, and the place has forgotten them."""


@dataclass
class Ledger:
    """The ledger of one destination. Any thread may write."""

    path: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    committing: bool = False
    """Whether a run has begun to make things visible."""
    version: str | None = None
    """The commit that stood there when the first run began."""
    address: str | None = None
    """Where all of it was sent."""
    run: str | None = None
    """What was being made, as a digest."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """Read what earlier runs wrote, if anything."""
        ledger = cls(path)
        with suppress(FileNotFoundError):
            for line in path.read_text("utf-8", errors="replace").splitlines():
                with suppress(ValueError, TypeError, KeyError):  # Empty, or torn by a kill.
                    ledger._replay(json.loads(line))
        return ledger

    def open(self, address: str, run: str) -> None:
        """Note whose ledger it is, before anything else."""
        self._write({"address": address, "run": run}, lasting=True)

    def begun(self, name: str, upload: Upload) -> None:
        """Note that the place has begun to take a file; what it had of it before is forgotten."""
        begun = {"id": upload.id, "part_bytes": upload.part_bytes}
        self._write({"file": name, "begun": begun}, lasting=True)

    def part(self, name: str, number: int, tag: str) -> None:
        """Note that it has a part of it."""
        self._write({"file": name, "part": number, "tag": tag})

    def whole(self, sent: Sent, *, punched: bool) -> None:
        """Note that it has all of it. punched: its weights are about to be given up here."""
        upload = {"id": sent.upload.id, "part_bytes": sent.upload.part_bytes}
        upload |= {"parts": {str(number): tag for number, tag in sent.upload.parts.items()}}
        line = {"file": sent.name, "whole": upload, "sha256": sent.sha256, "punched": punched}
        self._write(line, lasting=True)

    def forgotten(self, name: str) -> None:
        """Note that it has nothing of it any more."""
        self._write({"file": name, "forgotten": True}, lasting=True)

    def made_again(self, name: str) -> None:
        """Note that weights which had been given up are here once more."""
        self._write({"file": name, "made_again": True}, lasting=True)

    def found(self, version: str) -> None:
        """Note the commit that the place is at."""
        self._write({"version": version}, lasting=True)

    def commit_begins(self) -> None:
        """Note that things become visible from now on."""
        self._write({"committing": True}, lasting=True)

    def forget_all(self) -> None:
        """Begin with an empty ledger."""
        self.path.unlink(missing_ok=True)
        self.entries.clear()
        self.committing, self.version, self.address, self.run = False, None, None, None

    def uploads(self) -> dict[str, Upload]:
        """Everything that is there and not visible, as far as it is known."""
        return {name: entry.upload for name, entry in self.entries.items() if entry.upload is not None}

    def _write(self, line: Mapping[str, object], *, lasting: bool = False) -> None:
        with self._lock:
            self._replay(line)
            with self.path.open("a", encoding="utf-8") as file:
                # The newline in front ends a torn line, so that this one stands by itself.
                file.write("\n" + json.dumps(line) + "\n")
                file.flush()
                if lasting:
                    os.fsync(file.fileno())

    def _replay(self, line: Mapping[str, object]) -> None:
        match line:
            case {"file": str(name), "begun": {"id": str(number), "part_bytes": int(size)}}:
                self._change(name, upload=Upload(id=number, part_bytes=size), sha256=None)
            case {"file": str(name), "part": int(number), "tag": str(tag)}:
                upload = self.entries[name].upload
                if upload is not None:
                    self._change(name, upload=replace(upload, parts={**upload.parts, number: tag}))
            case {"file": str(name), "whole": {"id": str(number), "part_bytes": int(size), "parts": dict(parts)}}:
                tags = {int(part): str(tag) for part, tag in parts.items()}
                upload = Upload(id=number, part_bytes=size, parts=tags)
                self._change(name, upload=upload, sha256=str(line["sha256"]), punched=bool(line["punched"]))
            case {"file": str(name), "forgotten": True}:
                punched = self.entries[name].punched
                self._change(name, upload=None, sha256=None, lost=punched or self.entries[name].lost)
            case {"file": str(name), "made_again": True}:
                self._change(name, punched=False, lost=False)
            case {"address": str(address), "run": str(run)}:
                self.address, self.run = address, run
            case {"committing": True}:
                self.committing = True
            case {"version": str(version)}:
                self.version = version

    def _change(self, name: str, **fields: object) -> None:
        self.entries[name] = replace(self.entries.get(name, Entry()), **fields)  # type: ignore[arg-type]  # as above
