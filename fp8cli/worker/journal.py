"""The answers of a model, kept as they come, so that a worker that is killed is gone on from.

A line each, `{"key": …, "answer": …}`, in `answers-RANK.jsonl`. The key is of the method and its arguments alone: the
folder belongs to one job, and the parent sees to it that another checkpoint or setting gets another folder. Lines are
written a batch at a time, so that a later worker sends the same batches as one that was never killed: in 16 bits the
shape of a batch decides the last digits.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fp8cli.worker import protocol

SECONDS_BETWEEN_SYNCS: Final = 1.0
"""How much of the work a power failure may cost; a killed process loses one batch."""


class Journal:
    """Every answer known to a worker: its own, and those in the other journals of the folder."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Read all journals of the folder, and open this worker's own to go on with it."""
        self._folder = folder
        self._own = folder / protocol.answers_file(rank)
        self._read_up_to: dict[Path, int] = {}
        self._answers: dict[str, Any] = {}
        self._unwritten: list[bytes] = []
        self._synced = time.monotonic()
        self.refresh()
        self._file = os.open(self._own, os.O_WRONLY | os.O_CREAT, 0o644)
        # A line cut short when an earlier worker was killed is written over.
        os.ftruncate(self._file, self._read_up_to.get(self._own, 0))
        os.lseek(self._file, 0, os.SEEK_END)

    @property
    def answers(self) -> Mapping[str, Any]:
        """Answers by key, as JSON has them."""
        return self._answers

    def refresh(self) -> None:
        """Read what was added to the journals of the folder; a last line that is not whole is left for later."""
        for path in sorted(self._folder.glob(protocol.answers_file("*"))):
            start = self._read_up_to.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                whole = file.read()
            whole = whole[: whole.rfind(b"\n") + 1]
            self._read_up_to[path] = start + len(whole)
            for line in whole.splitlines():
                self._remember(line)

    def add(self, key: str, answer: Any) -> bool:
        """Keep an answer, to be written with its batch; return whether it is a new one."""
        if key in self._answers:
            return False
        self._answers[key] = answer
        self._unwritten.append(json.dumps({"key": key, "answer": answer}).encode() + b"\n")
        return True

    def write(self) -> None:
        """Write the answers of a batch, whole, and make the disk keep them about once a second."""
        if not self._unwritten:
            return
        rest = memoryview(b"".join(self._unwritten))
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._unwritten.clear()
        self._read_up_to[self._own] = os.lseek(self._file, 0, os.SEEK_CUR)
        if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def _remember(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            self._answers.setdefault(entry["key"], entry["answer"])
        except (ValueError, KeyError, TypeError):
            return  # a line that is not ours answers nothing: its request is asked again
