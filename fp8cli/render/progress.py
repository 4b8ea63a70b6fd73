"""How far a long run is: a bar on a terminal, one line now and then elsewhere, nothing when quiet."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fp8cli.commands.quantize import Started
from fp8cli.core.engine import Progress as Piece
from fp8cli.render.console import Output

_SECONDS_BETWEEN_LINES: Final = 5.0
_GB: Final = 10**9


class QuantizeBar:
    """What the progress of `fp8 quantize` looks like. Hand it `notify` as the command's hook."""

    def __init__(self, output: Output) -> None:
        """Draw on stderr, in the form it can take."""
        self._output = output
        self._tensors = self._tensors_done = self._bytes = self._bytes_done = self._bytes_resumed = 0
        self._begun = self._spoke = time.monotonic()
        self._bar: Progress | None = None

    @contextmanager
    def running(self) -> Iterator["QuantizeBar"]:
        """Keep the bar on the screen while the run lasts, and take it away afterwards."""
        try:
            yield self
        finally:
            if self._bar is not None:
                self._bar.stop()

    def notify(self, event: Started | Piece) -> None:
        """Take an event of `commands.quantize`."""
        match event:
            case Started():
                self._start(event.tensors, event.bytes_read)
            case Piece():
                self._advance(event)

    def _start(self, tensors: int, bytes_total: int) -> None:
        self._tensors, self._bytes = tensors, bytes_total
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
        self._bar.add_task(f"0/{tensors} tensors", total=bytes_total)
        self._bar.start()

    def _advance(self, piece: Piece) -> None:
        self._bytes_done += piece.bytes_read
        self._bytes_resumed += piece.bytes_read if piece.resumed else 0
        self._tensors_done += piece.tensor_finished
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(
                task, advance=piece.bytes_read, description=f"{self._tensors_done}/{self._tensors} tensors"
            )
        elif not self._output.quiet and not self._output.err.terminal:
            self._speak()

    def _speak(self) -> None:
        now = time.monotonic()
        if now - self._spoke < _SECONDS_BETWEEN_LINES:
            return
        self._spoke = now
        rate = (self._bytes_done - self._bytes_resumed) / (now - self._begun)
        left = (self._bytes - self._bytes_done) / rate if rate else 0
        self._output.note(
            f"{self._tensors_done}/{self._tensors} tensors, "
            f"{self._bytes_done / _GB:.1f} of {self._bytes / _GB:.1f} GB, {rate / _GB:.2f} GB/s, {left:.0f} s left"
        )
