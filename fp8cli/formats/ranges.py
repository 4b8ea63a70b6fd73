"""Pieces of weight files by byte range, wherever the files lie: a folder, a file by itself, the Hub, a store.

Scales are thousands of small pieces, so near ranges are merged into one read: on a disk that saves system calls,
elsewhere requests, of which several are under way at a time, asked again as formats.hub and formats.patience do. What
is asked for is held in batches of BATCH_BYTES, so memory does not grow with the number of ranges.

A file that ends before a range does gives the bytes that are there, fewer than asked: whoever asks for pieces of a
damaged file must look at their length.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from fp8cli.formats.complaints import Fault
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.remote_folder import RemoteFolder
from fp8cli.formats.remote_headers import CONNECTIONS
from fp8cli.formats.sources import Source

BATCH_BYTES: Final = 64 * 2**20
SPAN_BYTES: Final = 8 * 2**20
"""A merged read grows no longer than this; a single range may be."""
LOCAL_GAP_BYTES: Final = 16 * 2**10
HUB_GAP_BYTES: Final = 64 * 2**10
"""Reading on over a gap this wide takes 5 ms at 100 Mbit/s, about what one more of eight requests at a time does."""

Range = tuple[str, int, int]
"""(file, first byte, one past the last), counted from the start of the file."""


class RangeReader(Protocol):
    """Reads byte ranges of weight files."""

    def read_many(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Yield the bytes of each range, in the order asked. Raises BadInput or CannotRun if a file cannot be read."""


@dataclass(frozen=True, slots=True)
class Span:
    """One read that serves several ranges; `members` are their places among those that were asked for."""

    file: str
    begin: int
    end: int
    members: tuple[int, ...]


@dataclass(frozen=True)
class LocalRanges:
    """Files on this machine. `resolve` returns the path of a name, or refuses it."""

    resolve: Callable[[str], Path]

    def read_many(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Yield the bytes of each range."""
        return _read_in_batches(ranges, LOCAL_GAP_BYTES, self._read)

    def _read(self, spans: Sequence[Span]) -> Iterator[bytes]:
        held: str | None = None
        descriptor = -1
        try:
            for span in spans:
                if span.file != held:
                    if held is not None:
                        os.close(descriptor)
                        held = None
                    descriptor = os.open(self.resolve(span.file), os.O_RDONLY)
                    held = span.file
                yield _pread(descriptor, span.begin, span.end)
        except OSError as problem:
            message = f"`{spans[0].file if held is None else held}` cannot be read: {problem.strerror or problem}"
            raise Fault("file.readable", message) from problem
        finally:
            if held is not None:
                os.close(descriptor)


@dataclass(frozen=True)
class FetchedRanges:
    """Files on the Hub or in a store, by range requests."""

    place: HubRepo | RemoteFolder

    def read_many(self, ranges: Sequence[Range]) -> Iterator[bytes]:
        """Yield the bytes of each range."""
        return _read_in_batches(ranges, HUB_GAP_BYTES, self._read)

    def _read(self, spans: Sequence[Span]) -> Iterator[bytes]:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            yield from pool.map(self._fetch, spans)

    def _fetch(self, span: Span) -> bytes:
        end = min(span.end, self.place.files().get(span.file, 0))
        return self.place.fetch(span.file, span.begin, end) if span.begin < end else b""


def open_ranges(source: Source) -> RangeReader:
    """Return the reader of a source. Nothing is opened yet."""
    if isinstance(source, HubRepo):
        return FetchedRanges(source) if source.cached is None else LocalRanges(source.cached.resolve)
    if isinstance(source, RemoteFolder):
        return FetchedRanges(source)
    return LocalRanges(source.resolve)


def merge_ranges(ranges: Sequence[Range], gap_bytes: int) -> tuple[Span, ...]:
    """Merge ranges of the same file that overlap or lie at most `gap_bytes` apart; spans come in file order."""
    spans: list[Span] = []
    members: list[int] = []
    file, begin, end = "", 0, 0
    for number in sorted(range(len(ranges)), key=ranges.__getitem__):
        its_file, its_begin, its_end = ranges[number]
        if not members or its_file != file or its_begin > end + gap_bytes or its_end - begin > SPAN_BYTES:
            if members:
                spans.append(Span(file, begin, end, tuple(members)))
            members, file, begin, end = [], its_file, its_begin, its_end
        members.append(number)
        end = max(end, its_end)
    return (*spans, Span(file, begin, end, tuple(members))) if members else ()


def _read_in_batches(
    ranges: Sequence[Range], gap_bytes: int, read: Callable[[Sequence[Span]], Iterable[bytes]]
) -> Iterator[bytes]:
    for batch in _batches(ranges):
        pieces = [b""] * len(batch)
        spans = merge_ranges(batch, gap_bytes)
        for span, data in zip(spans, read(spans), strict=True):
            for number in span.members:
                _, begin, end = batch[number]
                pieces[number] = data[begin - span.begin : end - span.begin]
        yield from pieces


def _batches(ranges: Sequence[Range]) -> Iterator[Sequence[Range]]:
    begin, size = 0, 0
    for number, (_, first, end) in enumerate(ranges):
        size += end - first
        if size > BATCH_BYTES and number > begin:
            yield ranges[begin:number]
            begin, size = number, end - first
    if begin < len(ranges):
        yield ranges[begin:]


def _pread(descriptor: int, begin: int, end: int) -> bytes:
    pieces: list[bytes] = []
    while begin < end and (piece := os.pread(descriptor, end - begin, begin)):
        pieces.append(piece)
        begin += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
