"""What the workers of a streamed run did with their time."""

import threading
import time


class Clock:
    """What the workers of a run did with their time."""

    def __init__(self) -> None:
        self.waited = self.worked = self.computed = 0.0
        self._lock = threading.Lock()
        self._local = threading.local()

    def waits(self, seconds: float) -> None:
        """Count time in which a worker waited."""
        with self._lock:
            self.waited += seconds

    def works(self) -> None:
        """Take note that this thread begins to work."""
        self._local.begun = time.monotonic(), time.thread_time()

    def rests(self) -> None:
        """Take note that it has finished."""
        wall, processor = self._local.begun
        with self._lock:
            self.worked += time.monotonic() - wall
            self.computed += time.thread_time() - processor
