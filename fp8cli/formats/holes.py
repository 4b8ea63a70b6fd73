"""Holes in files: bytes that nobody needs any more give their place on the disk back, and all others stay.

A file with holes is as long as before and reads as zeros there. Not every file system has them; whoever relies on
them asks `takes_holes` first.
"""

import ctypes
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

_KEEP_SIZE_AND_PUNCH: Final = 0x01 | 0x02
_PROBE_BYTES: Final = 2**20


def punch(descriptor: int, begin: int, end: int) -> bool:
    """Turn bytes [begin, end) of an open file into a hole. False: this file system, or this system, has none."""
    if end <= begin:
        return True
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    offset, length = ctypes.c_longlong(begin), ctypes.c_longlong(end - begin)
    return bool(libc.fallocate(descriptor, _KEEP_SIZE_AND_PUNCH, offset, length) == 0)


def takes_holes(folder: Path) -> bool:
    """Whether a hole in a file of this folder gives its place back. Tried out on a file that is gone at once."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\xff" * _PROBE_BYTES)
        file.flush()
        os.fsync(file.fileno())
        return punch(file.fileno(), 0, _PROBE_BYTES) and os.fstat(file.fileno()).st_blocks * 512 < _PROBE_BYTES // 2
