"""A source that is elsewhere, as the engine reads it: fetched ahead into a window, worked on, and given back.

What is in the window, and when it may go: see window_line. What is hashed of it: see window_hashing.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from fp8cli.core.fetching.blocks import REQUEST_BYTES, Blocks, in_order
from fp8cli.core.fetching.streaming import StreamFacts
from fp8cli.core.fetching.window_files import WindowFiles, WindowShard
from fp8cli.core.fetching.window_hashing import ShardToHash, WindowHashing
from fp8cli.core.fetching.window_line import WindowLine
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.ranges import Range
from fp8cli.formats.sources import Elsewhere
from fp8cli.formats.staging import Piece, disk_errors, scratch_errors

_MODE: Final = 0o666
"""Of the output's files: what lies elsewhere has no mode."""

_SECONDS_TO_HANG_UP: Final = 1.0


@dataclass
class WindowSupply:
    """A supply for one run. `close` takes the window away; what is in it is worth nothing to another run."""

    place: Elsewhere
    folder: Path
    """Where the window lies."""
    out: Path
    """What messages call the output."""
    connections: int
    window_bytes: int
    hashing: Mapping[str, ShardToHash] = field(default_factory=dict)
    """Shards whose SHA-256 is wanted."""
    block_bytes: int = REQUEST_BYTES
    scratch: Path | None = None
    """The folder for temporary files in which the window lies; None: it lies beside the output."""
    _files: WindowFiles = field(init=False)
    _line: WindowLine | None = None
    _hashes: WindowHashing | None = None

    def __post_init__(self) -> None:
        """Make the window."""
        with self._errors():
            self._files = WindowFiles(self.folder)

    def path(self, shard: str) -> WindowShard:
        """Return the shard, as it lies in the window."""
        return WindowShard(self._files, self._lined_up().blocks, shard)

    def mode(self, shard: str) -> int:
        """Return the mode of any file."""
        del shard
        return _MODE

    def line_up(self, plan: Plan, pieces: Sequence[Piece]) -> WindowLine:
        """Begin to fetch what these pieces need."""
        blocks = Blocks(plan, pieces, block_bytes=self.block_bytes)
        self._line = WindowLine(
            self.place,
            self._errors,
            self.connections,
            self.window_bytes,
            self._files,
            plan,
            deque(in_order(plan, pieces)),
            blocks,
        )
        self._hashes = WindowHashing(self._line, self.hashing)
        with self._errors():
            self._line.begin()
        self._hashes.begin()
        return self._line

    def fetch(self, ranges: Sequence[Range]) -> None:
        """Nothing to do: what is taken from the line is there. The clock of the worker starts."""
        del ranges
        self._lined_up().clock.works()

    def release(self, ranges: Sequence[Range]) -> None:
        """Give back what nobody needs any more."""
        line = self._lined_up()
        line.clock.rests()
        with self._errors():
            line.release(ranges)

    def facts(self) -> StreamFacts | None:
        """Return what was measured; None before there was anything to do."""
        if self._line is None or self._hashes is None:
            return None
        return replace(self._line.facts(), bytes_for_hashes=self._hashes.fetched)

    def hashes(self) -> Mapping[str, str]:
        """Wait for the SHA-256 of the shards, and return them; of those that nobody has read here there is none.

        Raises BadInput for a shard that is not what the server says, Fp8Error if its bytes cannot be had.
        """
        return {} if self._hashes is None else self._hashes.wait()

    def close(self) -> None:
        """Hang up, and remove the window."""
        if self._line is not None:
            self._line.hang_up()
            self._line.join()
        if self._hashes is not None:
            self._hashes.join(_SECONDS_TO_HANG_UP)
        self._files.close()

    @property
    def _errors(self) -> Callable[[], AbstractContextManager[None]]:
        return partial(disk_errors, self.out) if self.scratch is None else partial(scratch_errors, self.scratch)

    def _lined_up(self) -> WindowLine:
        assert self._line is not None  # noqa: S101 - a piece is taken from the line before it is read
        return self._line
