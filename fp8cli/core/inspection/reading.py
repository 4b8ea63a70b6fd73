"""Reading gigabytes of weights in small pieces: many workers, bounded memory, and every piece reported.

What is done with the pieces is the caller's. Nothing here writes.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from fp8cli.core.inspection.survey import StoredTensor
from fp8cli.errors import BadInput
from fp8cli.formats.ranges import RangeReader
from fp8cli.formats.safetensors import DTYPES

PIECE_BYTES: Final = 2**20
"""Large enough for a disk to run at full speed, small enough to stay in a core's cache."""


_UNSIGNED: Final[Mapping[int, Literal["B", "H", "I", "Q"]]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""Format of an unsigned number of so many bytes, for `memoryview.cast`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingBegins:
    """Told to `notify` once, before the first byte of a long reading."""

    what: str
    """What it is for, such as `verifying`."""
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BytesRead:
    """Told to `notify` after each piece, from any worker thread."""

    name: str
    """The tensor or file that is being read."""
    bytes: int


Notify = Callable[[ReadingBegins | BytesRead], None]
_Result = TypeVar("_Result")


def read_range(reader: RangeReader, file: str, begin: int, end: int) -> bytes:
    """Return the bytes [begin, end) of a file. Raises BadInput if it has become shorter than it was."""
    data = next(iter(reader.read_many([(file, begin, end)]))) if end > begin else b""
    if len(data) < end - begin:
        message = f"`{file}` became shorter while it was being read"
        raise BadInput(message, hint="is something else writing to it?")
    return data


def read_tensor(reader: RangeReader, tensor: StoredTensor) -> bytes:
    """Return all of a small tensor."""
    return read_range(reader, tensor.file, tensor.info.begin, tensor.info.begin + tensor.info.bytes)


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Shape of a tensor seen as rows of its last dimension: a scalar is [1, 1], a vector one row."""
    rows = 1
    for size in shape[:-1]:
        rows *= size
    return rows, shape[-1] if shape else 1


def row_tiles(tensor: StoredTensor, *, piece_bytes: int = PIECE_BYTES) -> Iterator[range]:
    """Cut a tensor, seen as a matrix, into ranges of rows of about `piece_bytes`."""
    rows, columns = as_matrix(tensor.info.shape)
    step = max(1, piece_bytes * 8 // max(columns * DTYPES[tensor.info.dtype].bits, 1))
    return (range(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def read_rows(reader: RangeReader, tensor: StoredTensor, rows: range) -> bytes:
    """Return some rows of a tensor, seen as a matrix, whose rows are whole bytes."""
    _, columns = as_matrix(tensor.info.shape)
    row_bytes = columns * DTYPES[tensor.info.dtype].bits // 8
    if tensor.stride is not None:
        return _read_transposed(reader, tensor, tensor.stride, rows, columns)
    return read_range(
        reader, tensor.file, tensor.info.begin + rows.start * row_bytes, tensor.info.begin + rows.stop * row_bytes
    )


def _read_transposed(reader: RangeReader, tensor: StoredTensor, stride: int, rows: range, columns: int) -> bytes:
    """Read a piece of each stored row, which is a column, and put them side by side."""
    width = DTYPES[tensor.info.dtype].bits // 8
    places = (tensor.info.begin + (column * stride + rows.start) * width for column in range(columns))
    ranges = [(tensor.file, begin, begin + len(rows) * width) for begin in places]
    numbers = _UNSIGNED[width]
    data = bytearray(len(rows) * columns * width)
    matrix = memoryview(data).cast(numbers)
    for column, piece in enumerate(reader.read_many(ranges)):
        if len(piece) < len(rows) * width:
            message = f"`{tensor.file}` became shorter while it was being read"
            raise BadInput(message, hint="is something else writing to it?")
        matrix[column::columns] = memoryview(piece).cast(numbers)
    return bytes(data)


def run_all(
    jobs: Sequence[Callable[[], _Result]], *, workers: int, stop: threading.Event | None = None
) -> list[_Result]:
    """Run all jobs on `workers` threads and return their results in order; the first error ends it.

    stop: set when it ends early, for jobs that take so long that they must look whether anyone still wants them.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="fp8-read") as pool:
        try:
            # Inside too: Ctrl-C while jobs are still being handed out must not wait for all of them.
            futures = [pool.submit(job) for job in jobs]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            if stop is not None:
                stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]
