"""The end of a worker whose parent is gone: standard input is a pipe that the parent holds open and never writes to.

A parent that is killed cannot end its workers, and an evaluation nobody waits for must not keep a GPU busy. The pipe
closes with the parent, however it dies.
"""

import os
import signal
import threading
from typing import Final

STANDARD_INPUT: Final = 0
A_WORD: Final = 4096


def watch_parent() -> None:
    """End this worker, and every process it started, as soon as standard input is closed."""
    threading.Thread(target=_wait_for_the_end, name="parent watch", daemon=True).start()


def _wait_for_the_end() -> None:
    while os.read(STANDARD_INPUT, A_WORD):
        pass
    # A worker leads a process group of its own, so that the group is it and its children; where it does not, the
    # group is somebody else's.
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)
