"""Where the bytes of the source come from, piece by piece: files that are here, or what is fetched as it is needed.

The engine reads from open files at the offsets that headers give. A supply names such a file for every source shard,
and is told which bytes of it are wanted before they are read, and when nobody needs them any more. Files that are
here need neither; for a source that is elsewhere the file is a window, full of holes but for what was fetched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fp8cli.formats.ranges import Range
from fp8cli.formats.weight_files import file_mode


class Supply(Protocol):
    """What the engine reads. Any thread may call it."""

    def path(self, shard: str) -> Path:
        """Return a file that holds the wanted bytes of a source shard, each at its own place."""

    def mode(self, shard: str) -> int:
        """Return the mode for the output shard that follows it; the umask applies."""

    def fetch(self, ranges: Sequence[Range]) -> None:
        """See to it that these bytes are there, however long it takes. Raises Fp8Error if they cannot be had."""

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

    def fetch(self, ranges: Sequence[Range]) -> None:
        """Nothing to do."""

    def release(self, ranges: Sequence[Range]) -> None:
        """Nothing to do."""
