"""Ctrl-C for a main thread that is falling asleep.

CPython looks for signals between instructions. One that comes when it has looked, and before it waits for a lock, is
found when the lock is had, and that may be in an hour: of a hundred interruptions of `fp8 verify` two were lost so. A
thread that hears of every signal wakes the main one with another signal, which does nothing itself.
"""

import os
import signal
import threading
import time
from typing import Final

_WAKES: Final = (0.05, 0.2, 0.5, 1.0)
"""Seconds from one nudge to the next: the first may come too early as well."""


def wake_on_signals() -> None:
    """See to it that a handler of SIGINT or SIGTERM runs soon, whatever the main thread waits for; call it there."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGURG, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reader,), name="fp8-signals", daemon=True).start()


def _listen(reader: int) -> None:
    while heard := os.read(reader, 1):
        if heard[0] in (signal.SIGINT, signal.SIGTERM):
            for seconds in _WAKES:
                time.sleep(seconds)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)
