"""Moving bytes between weight files: open files by shard, copies inside the kernel, modes of what is written."""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol, TypeVar

from fp8cli.errors import BadInput, CannotRun

_COPY_BYTES: Final = 8 * 2**20
_CANNOT_COPY_IN_KERNEL: Final = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


class Scattered(Protocol):
    """A weight file that lies here in parts, of which those that are needed are there. For one thread."""

    def extents(self, begin: int, end: int) -> Iterable[tuple[int, int, int]]:
        """Yield where bytes [begin, end) are, in their order: open file, first byte in it, number of bytes.

        Each is open until the next is asked for.
        """

    def close(self) -> None:
        """Close what is open."""


Readable = int | Scattered
"""What weights are read from: an open file, or several that stand for one."""

_File = TypeVar("_File", bound=Readable)


class OpenFiles:
    """The source and target file a worker is in. Pieces come shard by shard, so one of each is enough.

    The scale of codes may lie in a shard of its own.
    """

    def __init__(self, sources: Callable[[str], Path | Scattered], target_folder: Path) -> None:
        self._sources = sources
        self._target_folder = target_folder
        self._open: dict[str, tuple[str, Readable]] = {}

    def source(self, shard: str) -> Readable:
        """Open file of a source shard, for reading."""
        return self._get("source", shard, self._open_source)

    def scales(self, shard: str) -> Readable:
        """Open file of a source shard that holds scales, for reading."""
        return self._get("scales", shard, self._open_source)

    def target(self, shard: str) -> int:
        """Open file of an output shard, for writing."""
        return self._get("target", shard, lambda name: os.open(self._target_folder / name, os.O_RDWR))

    def _open_source(self, shard: str) -> Readable:
        found = self._sources(shard)
        return os.open(found, os.O_RDONLY) if isinstance(found, Path) else found

    def _get(self, side: str, shard: str, open_it: Callable[[str], _File]) -> _File:
        held = self._open.get(side)
        if held is not None:
            if held[0] == shard:
                return held[1]  # type: ignore[return-value]  # each side has files of one kind
            _close(held[1])
            del self._open[side]
        try:
            opened = open_it(shard)
        except FileNotFoundError as problem:
            message = f"`{shard}` vanished while it was being worked on"
            raise CannotRun(message, hint="run the same command again") from problem
        self._open[side] = (shard, opened)
        return opened

    def close(self) -> None:
        """Close what is open."""
        for _, opened in self._open.values():
            _close(opened)
        self._open.clear()


def read_exactly(source: Readable, into: memoryview, offset: int, *, name: str) -> None:
    """Fill `into` from a file at `offset`. Raises BadInput if the file has become shorter. `name`: the tensor."""
    if not isinstance(source, int):
        begin = 0
        for descriptor, at, size in source.extents(offset, offset + len(into)):
            read_exactly(descriptor, into[begin : begin + size], at, name=name)
            begin += size
        return
    position = 0
    while position < len(into):
        got = os.preadv(source, [into[position:]], offset + position)
        if got == 0:
            message = f"the file that holds `{name}` became shorter while it was being read"
            raise BadInput(message, hint="is something else writing to the source?")
        position += got


def write_exactly(target: int, data: memoryview, offset: int) -> None:
    """Write all of `data` to a file at `offset`."""
    position = 0
    while position < len(data):
        position += os.pwrite(target, data[position:], offset + position)


def copy_range(source: Readable, target: int, read_at: int, write_at: int, size: int) -> None:
    """Copy bytes from file to file inside the kernel where it can, through a small buffer where it cannot."""
    if not isinstance(source, int):
        for descriptor, at, count in source.extents(read_at, read_at + size):
            copy_range(descriptor, target, at, write_at, count)
            write_at += count
        return
    while size > 0 and hasattr(os, "copy_file_range"):
        try:
            copied = os.copy_file_range(source, target, size, read_at, write_at)
        except OSError as problem:
            if problem.errno in _CANNOT_COPY_IN_KERNEL:
                break
            raise
        if copied == 0:
            break
        size, read_at, write_at = size - copied, read_at + copied, write_at + copied
    while size > 0:
        data = os.pread(source, min(size, _COPY_BYTES), read_at)
        if not data:
            message = "a source file became shorter while it was being read"
            raise BadInput(message, hint="is something else writing to the source?")
        written = os.pwrite(target, data, write_at)
        size, read_at, write_at = size - written, read_at + written, write_at + written


def same_bytes(first: Path, second: Path, at: int, other_at: int, size: int) -> bool:
    """Whether `size` bytes of one file, from `at`, are those of another, from `other_at`."""
    with first.open("rb") as one, second.open("rb") as other:
        one.seek(at)
        other.seek(other_at)
        while size > 0:
            step = min(size, _COPY_BYTES)
            if one.read(step) != other.read(step):
                return False
            size -= step
    return True


def file_mode(source: Path) -> int:
    """Mode for an output shard: the source's, to which the umask applies.

    A source that only its owner may read gets no special treatment: safetensors from 0.8 writes every file so,
    by accident, and a server under another user could then not load the result.
    """
    mode = source.stat().st_mode & 0o666
    return 0o666 if mode == 0o600 else mode | 0o600


def _close(opened: Readable) -> None:
    if isinstance(opened, int):
        os.close(opened)
    else:
        opened.close()
