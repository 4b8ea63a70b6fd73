"""The bytes of one file from its first to its last, wherever it lies: here, or where ranges are asked for."""

from collections.abc import Iterator
from typing import Final

from fp8cli.core.hashing import pieces_of
from fp8cli.errors import BadInput
from fp8cli.formats.checkpoint import LocalFile, LocalFolder
from fp8cli.formats.sources import Source

RANGE_BYTES: Final = 16 * 2**20
"""Of one request: a second of 130 Mbit/s, so that what breaks off costs little to ask again."""


def stream(source: Source, name: str, size: int) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a file, each piece valid until the next one. size: as the listing has it.

    Raises BadInput for a file that cannot be read, CannotRun as the source's `fetch` does.
    """
    if not isinstance(source, LocalFolder | LocalFile):
        return (source.fetch(name, begin, min(begin + RANGE_BYTES, size)) for begin in range(0, size, RANGE_BYTES))
    return _read(source, name)


def _read(source: LocalFolder | LocalFile, name: str) -> Iterator[memoryview]:
    try:
        yield from pieces_of(source.resolve(name))
    except OSError as problem:
        message = f"`{name}` cannot be read: {problem.strerror or problem}"
        raise BadInput(message) from problem
