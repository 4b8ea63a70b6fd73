"""What is to happen first when the user interrupts, or the system ends, work that would not hear of it by itself."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def first_on_stop(stop: Callable[[], None]) -> Iterator[None]:
    """On SIGINT and SIGTERM call `stop`, and then whoever heard them before.

    `stop` runs in the main thread, in the middle of whatever that does: it must wait for no lock. In any other thread
    nothing is changed, since signals are not heard there.
    """

    def act(number: int, frame: FrameType | None) -> None:
        stop()
        before[number](number, frame)

    before: dict[int, Callable[[int, FrameType | None], object]] = {}
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(each)):
                before[each] = handler
                signal.signal(each, act)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
