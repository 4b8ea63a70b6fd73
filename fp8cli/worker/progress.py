"""What a worker tells its parent: events, one JSON object a line, each written at once and whole."""

import json
import os
import time
from pathlib import Path
from typing import Any, Final

from fp8cli.worker import protocol

SECONDS_BETWEEN_COUNTS: Final = 0.2
"""Nobody reads a bar that moves more often."""


class Progress:
    """The file of a worker's events."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Open the file; what an earlier worker wrote stays."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(folder / protocol.events_file(rank), flags, 0o644)
        self._answered = 0
        self._told = 0.0

    def tell(self, event: str, **facts: Any) -> None:
        """Append one event."""
        os.write(self._file, (json.dumps({"event": event, **facts}) + "\n").encode())

    def answered(self, count: int) -> None:
        """Count answers of the model; they are told a few times a second."""
        self._answered += count
        if time.monotonic() - self._told >= SECONDS_BETWEEN_COUNTS:
            self.tell_answered()

    def tell_answered(self) -> None:
        """Tell the answers that were counted since the last time."""
        if self._answered:
            self.tell("answered", count=self._answered)
        self._answered = 0
        self._told = time.monotonic()
