"""The files of the window: as long as the shards they stand for, and empty but for what is needed just now.

    .NAME.fp8-partial/window/SHARD

A file system gives the bytes of a hole back to the disk at once (fallocate with PUNCH_HOLE: ext4, xfs, btrfs, tmpfs
and others). Nothing in here outlives a run.
"""

import ctypes
import errno
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Final

from fp8cli.errors import CannotRun
from fp8cli.formats.patience import Stopped

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_PROBE_BYTES: Final = 2**20


class WindowFiles:
    """A folder of sparse files. Threads may use it at once, each its own bytes."""

    def __init__(self, folder: Path) -> None:
        """Make the folder anew. Raises CannotRun where files cannot have holes, OSError where none can be written."""
        self._folder = folder
        self._open: dict[str, int] = {}
        self._closed = False
        self._lock = threading.Lock()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _try_to_punch(folder / "probe")

    def path(self, shard: str) -> Path:
        """Return the file that stands for a shard."""
        return self._folder / shard

    def begin(self, shard: str) -> None:
        """Let a shard have its file."""
        self._descriptor(shard)

    def write(self, shard: str, at: int, data: bytes) -> None:
        """Write bytes to their place."""
        descriptor = self._descriptor(shard)
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], at + written)

    def give_back(self, shard: str, begin: int, end: int) -> None:
        """Let the disk have these bytes back, whole pages at least."""
        _punch(self._descriptor(shard), begin, end - begin)

    def remove(self, shard: str) -> None:
        """Remove a file that nobody opens again."""
        with self._lock:
            if (descriptor := self._open.pop(shard, None)) is not None:
                os.close(descriptor)
        self.path(shard).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all of it."""
        with self._lock:
            self._closed = True
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _descriptor(self, shard: str) -> int:
        with self._lock:
            if self._closed:
                raise Stopped
            if shard not in self._open:
                path = self.path(shard)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._open[shard] = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            return self._open[shard]


def _punch(descriptor: int, begin: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    offset = ctypes.c_int64
    if libc.fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset(begin), offset(size)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _try_to_punch(probe: Path) -> None:
    """Write a file and make a hole of it. Raises CannotRun if the disk does not get the bytes back."""
    descriptor = os.open(probe, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, b"\1" * _PROBE_BYTES, 0)
        os.fsync(descriptor)
        if sys.platform != "linux":
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        _punch(descriptor, 0, _PROBE_BYTES)
        if os.fstat(descriptor).st_blocks * 512 > _PROBE_BYTES // 2:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    except OSError as problem:
        if problem.errno not in {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
            raise
        message = f"the file system of `{probe.parent}` cannot make holes in files, which streaming needs"
        hint = "choose an output on ext4, xfs, btrfs or tmpfs with -o, or fetch the source first"
        raise CannotRun(message, hint=hint) from problem
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)
