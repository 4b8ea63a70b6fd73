"""What network file systems leave of a file that is removed while it is open: another name, until it is closed.

NFS calls it `.nfs…`, what runs in user space `.fuse_hidden…` (libfuse). Until it is gone its folder cannot go either,
so that the folder of a lock, which is removed while the lock is held, would stay behind for good.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

_GHOST: Final = re.compile(r"\.(nfs|fuse_hidden)[0-9a-fA-F]+")
_LOOKS: Final = 40
_SECONDS: Final = 0.05
"""Between two looks: in user space a file is closed a moment after whoever closes it goes on."""


@contextmanager
def open_without_ghosts(lock: IO[str], folder: Path) -> Iterator[None]:
    """Close a lock afterwards, and then remove the folder it lies in, where ghosts alone kept that.

    A folder with any other file in it stays as it is. Never raises for what it cannot remove.
    """
    kept = False
    try:
        with lock:
            try:
                yield
            finally:
                # While the lock is held: a folder that is not there any more is not ours, should it appear again.
                kept = _holds_ghosts_alone(folder)
    finally:
        if kept:
            _sweep(folder)


def _holds_ghosts_alone(folder: Path) -> bool:
    with suppress(OSError):
        return all(_GHOST.fullmatch(path.name) for path in folder.iterdir())
    return False


def _sweep(folder: Path) -> None:
    for _ in range(_LOOKS):
        with suppress(OSError):
            folder.rmdir()
        if not _holds_ghosts_alone(folder):
            return
        time.sleep(_SECONDS)
