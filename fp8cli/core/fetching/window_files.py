"""The files of the window: as long as the shards they stand for, and empty but for what is needed just now.

    .NAME.fp8-partial/window/SHARD

A file system gives the bytes of a hole back to the disk at once (fallocate with PUNCH_HOLE: ext4, xfs, btrfs, tmpfs
and others). Nothing in here outlives a run.
"""

import ctypes
import os
import shutil
import threading
from pathlib import Path

from fp8cli.errors import CannotRun
from fp8cli.formats.holes import punch, takes_holes
from fp8cli.formats.patience import Stopped


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
        if not takes_holes(folder):
            message = f"the file system of `{folder}` cannot make holes in files, which streaming needs"
            hint = "choose an output on ext4, xfs, btrfs or tmpfs with -o, or fetch the source first"
            raise CannotRun(message, hint=hint)

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

    def read(self, shard: str, at: int, size: int) -> bytes:
        """Return bytes that are there."""
        return os.pread(self._descriptor(shard), size, at)

    def give_back(self, shard: str, begin: int, end: int) -> None:
        """Let the disk have these bytes back, whole pages at least."""
        if not punch(self._descriptor(shard), begin, end):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

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
