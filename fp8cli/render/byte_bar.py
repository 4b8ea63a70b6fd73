"""A bar over bytes: on a terminal drawn, elsewhere a line now and then, nothing when quiet."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fp8cli.render.console import Output

_SECONDS_BETWEEN_LINES: Final = 5.0
_GB: Final = 10**9


class ByteBar:
    """A long run over bytes, counted in things (tensors, files) too. Safe to advance from several threads."""

    def __init__(self, output: Output) -> None:
        """Draw on stderr, in the form it can take."""
        self._output = output
        self._things = "tensors"
        self._total = self._done = self._bytes = self._bytes_done = self._bytes_free = 0
        self._begun = self._spoke = time.monotonic()
        self._bar: Progress | None = None
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Keep the bar on the screen while the run lasts, and take it away afterwards."""
        try:
            yield self
        finally:
            self._stop()

    def _start(self, bytes_total: int, *, total: int = 0, things: str = "tensors") -> None:
        """Begin to count anew; `total` 0 counts bytes only, and calls them by `things`."""
        self._stop()
        self._total, self._bytes, self._things = total, bytes_total, things
        self._done = self._bytes_done = self._bytes_free = 0
        self._begun = self._spoke = time.monotonic()
        if self._output.quiet or not self._output.err.terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=self._output.err.console(),
            transient=True,
        )
        self._bar.add_task(self._counted(), total=bytes_total)
        self._bar.start()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _advance(self, size: int, *, finished: bool = False, free: bool = False) -> None:
        """Count bytes, and a thing that they finish; `free` bytes cost no time and say nothing about the speed."""
        with self._lock:
            self._bytes_done += size
            self._bytes_free += size if free else 0
            self._done += finished
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], advance=size, description=self._counted())
            elif not self._output.quiet and not self._output.err.terminal:
                self._speak()

    def _counted(self) -> str:
        return f"{self._done}/{self._total} {self._things}" if self._total else self._things

    def _speak(self) -> None:
        now = time.monotonic()
        if now - self._spoke < _SECONDS_BETWEEN_LINES:
            return
        self._spoke = now
        rate = (self._bytes_done - self._bytes_free) / (now - self._begun)
        left = (self._bytes - self._bytes_done) / rate if rate else 0
        self._output.note(
            f"{self._counted()}, {self._bytes_done / _GB:.1f} of {self._bytes / _GB:.1f} GB, "
            f"{rate / _GB:.2f} GB/s, {left:.0f} s left"
        )
