"""A long run in steps, each a bar over its things: on a terminal drawn, elsewhere a line now and then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from fp8cli.render.console import Output

_SECONDS_BETWEEN_LINES: Final = 5.0


class Steps:
    """A long run in steps: notes between them, and in each a bar over its things, or that it goes on."""

    def __init__(self, output: Output) -> None:
        """Draw on stderr, in the form it can take."""
        self._output = output
        self._bar: Progress | None = None
        self._what = ""
        self._done = self._total = self._known = 0
        self._begun = self._spoke = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Keep the bar on the screen while the run lasts, and take it away afterwards."""
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        """Take away what is drawn."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _note(self, text: str) -> None:
        # A line in the middle of a live display would be drawn over.
        waiting_for = self._what if self._bar is not None and not self._total else None
        self.stop()
        self._output.note(text)
        if waiting_for is not None:
            self._start(waiting_for, None)

    def _start(self, what: str, total: int | None, known: int = 0) -> None:
        """Begin to count `what`; without a total there is only that it goes on."""
        self.stop()
        self._what, self._total, self._known, self._done = what, total or 0, known, known
        self._begun = self._spoke = time.monotonic()
        if self._output.quiet:
            return
        if not self._output.err.terminal:
            self._output.note(what if total is None else f"{known:,}/{total:,} {what}")
            return
        counted = (BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *(() if total is None else counted),
            console=self._output.err.console(),
            transient=True,
        )
        self._bar.add_task(what, total=total, completed=known)
        self._bar.start()

    def _move_to(self, done: int) -> None:
        self._done = done
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)
        elif not self._output.quiet and not self._output.err.terminal:
            self._speak()

    def _speak(self) -> None:
        now = time.monotonic()
        if now - self._spoke < _SECONDS_BETWEEN_LINES:
            return
        self._spoke = now
        rate = (self._done - self._known) / (now - self._begun)
        left = f", {(self._total - self._done) / rate:.0f} s left" if rate > 0 else ""
        self._output.note(f"{self._done:,}/{self._total:,} {self._what}{left}")
