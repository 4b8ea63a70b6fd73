"""The files of the window: one for each block that is needed just now, gone as soon as nobody needs it.

    .NAME.fp8-partial/window/NUMBER

A file holds the pages of its block and nothing else, so that any file system gives the place back: none has to make
holes. A block that comes again gets another file. Nothing in here outlives a run.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from fp8cli.core.fetching.blocks import Block, Blocks
from fp8cli.formats.patience import Stopped

Write = Callable[[int, bytes], None]
"""Writes bytes to where they are in their shard."""


@dataclass(frozen=True, kw_only=True)
class BlockFile:
    """The file of one block."""

    path: Path
    begin: int
    """The byte of the shard that is its first."""


class WindowFiles:
    """A folder of small files. Threads may use it at once, each its own block."""

    def __init__(self, folder: Path) -> None:
        """Make the folder anew. Raises OSError where none can be made."""
        self._folder = folder
        self._files: dict[Block, BlockFile] = {}
        self._numbers = count()
        self._closed = False
        self._lock = threading.Lock()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def begin(self, block: Block, pages: tuple[int, int]) -> None:
        """Let a block have its file. pages: where in its shard its pages are."""
        with self._lock:
            self._refuse_if_closed()
            path = self._folder / str(next(self._numbers))
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            self._files[block] = BlockFile(path=path, begin=pages[0])

    def file(self, block: Block) -> BlockFile:
        """Return the file of a block. Raises Stopped once the window is closed."""
        with self._lock:
            self._refuse_if_closed()
            return self._files[block]

    @contextmanager
    def writing(self, block: Block) -> Iterator[Write]:
        """Open the file of a block for what arrives of it."""
        file = self.file(block)
        descriptor = os.open(file.path, os.O_WRONLY)

        def write(at: int, data: bytes) -> None:
            if self._closed:
                raise Stopped
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], at - file.begin + written)

        try:
            yield write
        finally:
            os.close(descriptor)

    def give_back(self, block: Block) -> None:
        """Let the disk have a block back."""
        with self._lock:
            self._refuse_if_closed()
            path = self._files.pop(block).path
        # A worker may have it open still, and would keep its place.
        os.truncate(path, 0)
        path.unlink()

    def close(self) -> None:
        """Remove all of it."""
        with self._lock:
            self._closed = True
            self._files.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Stopped


class WindowShard:
    """A shard as a worker reads it in the window (`weight_files.Scattered`): one file is open at a time."""

    def __init__(self, files: WindowFiles, blocks: Blocks, shard: str) -> None:
        """Open nothing yet."""
        self._files, self._blocks, self._shard = files, blocks, shard
        self._open: tuple[Path, int] | None = None

    def extents(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield where bytes [begin, end) are; see `weight_files.Scattered`."""
        for block in self._blocks.of(((self._shard, begin, end),)):
            file = self._files.file(block)
            first, last = self._blocks.span(block)
            first, last = max(begin, first), min(end, last)
            yield self._descriptor(file.path), first - file.begin, last - first

    def close(self) -> None:
        """Close the file that is open."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _descriptor(self, path: Path) -> int:
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = path, os.open(path, os.O_RDONLY)
        return self._open[1]
