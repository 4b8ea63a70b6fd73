"""Reading over a network that stumbles: asked again, after the pause that helps, from the byte where it broke off.

What is worth asking again, and how long a server wants to be left alone, only those know who know its errors: they
tell by `Knows`. All connections of a run share one `Patience`, so that a server that has had enough of one of them is
left alone by all.
"""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Protocol, TypeVar

from fp8cli.errors import CannotRun, Fp8Error

PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before each time that is asked again without anything having come."""

FEW: Final = (1.0, 2.0)
"""The same for what comes first, when it is not known yet whether there is anyone to answer."""

LONGEST_PAUSE: Final = 600.0
"""A server that wants to be left alone for longer is not waited for."""

_Answer = TypeVar("_Answer")


class Knows(Protocol):
    """Who can tell what an error of a store means."""

    def is_passing(self, problem: BaseException) -> bool:
        """Whether asking again may help."""

    def pause_asked(self, problem: BaseException) -> float | None:
        """For how many seconds the server wants to be left alone; None if it does not say."""

    def explain(self, problem: BaseException) -> Fp8Error:
        """Return what to tell the user."""


class Stopped(Exception):
    """Nobody wants the bytes any more."""


class Patience:
    """When to ask again. Threads may share it."""

    def __init__(
        self, knows: Knows, stopped: threading.Event | None = None, *, pauses: Sequence[float] | None = None
    ) -> None:
        """Take whom to ask about errors; once `stopped` is set nothing is waited for. pauses: instead of PAUSES."""
        self._knows = knows
        self._pauses = PAUSES if pauses is None else pauses
        self._stopped = stopped or threading.Event()
        self._not_before = 0.0
        self._lock = threading.Lock()
        self.asked_again = 0
        """How often something was asked again."""

    def ask(self, question: Callable[[], _Answer]) -> _Answer:
        """Return the answer. Raises Fp8Error once it makes no sense to ask again, Stopped if nobody wants it."""
        for pause in (*self._pauses, None):
            self._wait_for_the_others()
            try:
                return question()
            except Exception as problem:  # noqa: BLE001 - sorted out by who knows
                self._consider(problem, pause)
        raise AssertionError  # The last pause is none, and considering it raises.

    def read(
        self,
        stream: Callable[[int], Generator[bytes]],
        begin: int,
        end: int,
        take: Callable[[int, bytes], None],
    ) -> int:
        """Hand every byte of [begin, end) to `take(at, bytes)`, in their order; return how many were to be had.

        stream: yields the bytes from where it is told on. Fewer bytes than wanted means that, however often it was
        asked, no more came. Raises as `ask` does, and what `take` raises.
        """
        at, attempt = begin, 0
        while at < end and attempt <= len(self._pauses):
            pause = self._pauses[attempt] if attempt < len(self._pauses) else None
            attempt += 1
            self._wait_for_the_others()
            with closing(_told_apart(stream(at))) as chunks:
                for chunk in chunks:
                    if isinstance(chunk, Exception):
                        self._consider(chunk, pause)
                        break
                    if self._stopped.is_set():
                        raise Stopped
                    chunk = chunk[: end - at]  # noqa: PLW2901 - a server may send more than was asked for
                    if chunk:
                        take(at, chunk)
                        at, attempt = at + len(chunk), 0
                    if at == end:
                        break
                else:
                    if at < end and pause is not None:
                        self._rest(pause)
        return at - begin

    def _wait_for_the_others(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            if self._stopped.wait(left):
                raise Stopped
        if self._stopped.is_set():
            raise Stopped

    def _consider(self, problem: Exception, pause: float | None) -> None:
        """Wait before a thing is asked again, or raise if there is no sense in it."""
        if isinstance(problem, Stopped | Fp8Error):
            raise problem
        if pause is None or not self._knows.is_passing(problem):
            raise self._knows.explain(problem) from problem
        asked = self._knows.pause_asked(problem)
        if asked is None:
            self._rest(pause)
            return
        if asked > LONGEST_PAUSE:
            told = self._knows.explain(problem)
            message = f"{told.message}, and asks to be left alone for {asked:,.0f} seconds"
            raise CannotRun(message, hint="run the same command again then: it goes on") from problem
        with self._lock:
            self.asked_again += 1
            self._not_before = max(self._not_before, time.monotonic() + asked)

    def _rest(self, seconds: float) -> None:
        with self._lock:
            self.asked_again += 1
        if self._stopped.wait(seconds):
            raise Stopped


def seconds_of(retry_after: str | None) -> float | None:
    """Return the seconds that a `Retry-After` header names, as a number or as a date; None for neither."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


def _told_apart(chunks: Generator[bytes]) -> Generator[bytes | Exception]:
    """Yield chunks, and at last what was raised: it shall not be mixed up with what their taker raises."""
    try:
        yield from chunks
    except Exception as problem:  # noqa: BLE001 - sorted out by who knows
        yield problem
