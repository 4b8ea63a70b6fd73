"""Where the bytes of the source come from, piece by piece: files that are here, or what is fetched as it is needed.

The engine reads from open files at the offsets that headers give. A supply names such a file for every source shard,
lines up the pieces of work in the order in which their bytes can be had, and is told when nobody needs these bytes
any more. Files that are here need none of it; a source that is elsewhere has a window, in which lies what was fetched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.work_queue import WorkQueue
from fp8cli.formats.ranges import Range
from fp8cli.formats.staging import Piece
from fp8cli.formats.weight_files import Scattered, file_mode


class Line(Protocol):
    """Pieces of work that wait to be done. Any number of threads may take."""

    def take(self, shard: str | None) -> Piece | None:
        """Return the next piece for a worker that was in `shard`, however long it takes, or None when all are taken.

        Raises Fp8Error if the bytes of a piece cannot be had.
        """

    def stop(self) -> None:
        """Let nobody wait any more, and fetch nothing."""


class Supply(Protocol):
    """What the engine reads. Any thread may call it."""

    def path(self, shard: str) -> Path | Scattered:
        """Return what holds the wanted bytes of a source shard, each at its own place."""

    def mode(self, shard: str) -> int:
        """Return the mode for the output shard that follows it; the umask applies."""

    def line_up(self, plan: Plan, pieces: Sequence[Piece]) -> Line:
        """Return the pieces of one run of a crew, to be taken in whichever order suits."""

    def fetch(self, ranges: Sequence[Range]) -> None:
        """See to it that these bytes, of a piece that was taken, are there. Raises Fp8Error if they cannot be had."""

    def release(self, ranges: Sequence[Range]) -> None:
        """Take note that whoever fetched these bytes has read them."""


@dataclass(frozen=True)
class LocalSupply:
    """A source whose files are here. `resolve` returns the file of a shard, or refuses it."""

    resolve: Callable[[str], Path]

    def path(self, shard: str) -> Path:
        """Return the shard itself."""
        return self.resolve(shard)

    def mode(self, shard: str) -> int:
        """Return the shard's own mode."""
        return file_mode(self.resolve(shard))

    def line_up(self, plan: Plan, pieces: Sequence[Piece]) -> Line:
        """Return them by output file: see core.quantizing.work_queue."""
        return WorkQueue(plan, pieces)

    def fetch(self, ranges: Sequence[Range]) -> None:
        """Nothing to do."""

    def release(self, ranges: Sequence[Range]) -> None:
        """Nothing to do."""
