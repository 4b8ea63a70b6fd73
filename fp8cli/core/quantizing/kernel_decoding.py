"""One worker's hands for codes, without torch: read a tile of codes and its scale, decode it with the compiled kernel.

Changes of dtype that are no more than a change of width are done here too: scales make them when they go from one
dialect to another. core.quantizing.tiles does the same with torch, and what is left.
"""

import math
import mmap
import struct
from typing import Final

from fp8cli.core import kernel
from fp8cli.core.kernel import Kernel
from fp8cli.core.quantizing.decoding import Decoding
from fp8cli.core.quantizing.pieces import too_large, undecodable
from fp8cli.core.quantizing.plan import PlannedTensor
from fp8cli.errors import Fp8Error
from fp8cli.formats.safetensors import DTYPES
from fp8cli.formats.weight_files import Readable, read_exactly, write_exactly

TILE_ELEMENTS: Final = 2**18
"""A tile of codes and its numbers (0.75 MB for BF16) stay in a core's cache."""

_CASTS: Final = frozenset({("BF16", "F32"), ("F8_E8M0", "F32"), ("F32", "BF16")})


def can_decode(tensor: PlannedTensor) -> bool:
    """Whether the kernel can read the codes of a tensor."""
    return tensor.decoding is not None and tensor.decoding.scale.dtype in kernel.WIDENED


def can_cast(tensor: PlannedTensor) -> bool:
    """Whether the kernel can change the dtype of a tensor that is to be stored in another one."""
    return tensor.weight is not None and (tensor.source.dtype, tensor.weight.dtype) in _CASTS


def tile_elements(memory_bytes: int, widest: int) -> int:
    """Elements per tile: what suits the cache, but no more than the memory allows and no fewer than `widest`."""
    # A code, a number of at most 4 bytes, and as much for scales as they can ever take.
    return max(widest, min(TILE_ELEMENTS, memory_bytes // 13))


class Decoder:
    """Decodes tiles and changes dtypes, one at a time, in buffers it keeps. For use by a single thread."""

    def __init__(self, kernel: Kernel, *, tile_elements: int) -> None:
        """Take the kernel, and how many elements one tile may have."""
        self._kernel = kernel
        self._tile_elements = tile_elements
        self._codes, self._stored, self._scale, self._numbers = (mmap.mmap(-1, mmap.PAGESIZE) for _ in range(4))

    def dequantize(self, tensor: PlannedTensor, rows: range, source: Readable, target: int, scales: Readable) -> None:
        """Turn the codes of some rows into numbers. `source`, `target`, `scales`: open files.

        Raises BadInput for a number that is not finite, or becomes so in the dtype that it is stored in.
        """
        assert tensor.weight is not None  # noqa: S101 - the plan gives every dequantized tensor a weight
        columns, dtype = tensor.source.shape[1], tensor.weight.dtype
        width = DTYPES[dtype].bits // 8
        step = max(1, self._tile_elements // max(columns, 1))
        for begin in range(rows.start, rows.stop, step):
            tile = range(begin, min(begin + step, rows.stop))
            size = len(tile) * columns * width
            self._numbers = at_least(self._numbers, size)
            self.decode(tensor, tile, source, scales, dtype=dtype, out=self._numbers)
            write_exactly(target, memoryview(self._numbers)[:size], tensor.weight.begin + begin * columns * width)

    def decode(
        self, tensor: PlannedTensor, rows: range, source: Readable, scales: Readable, *, dtype: str, out: mmap.mmap
    ) -> None:
        """Write the numbers that the codes of some rows stand for to `out`, as `dtype`, one of kernel.DTYPES.

        Raises BadInput for a number that is not finite.
        """
        decoding = tensor.decoding
        assert decoding is not None  # noqa: S101 - `can_decode` was asked before
        columns = tensor.source.shape[1]
        size = len(rows) * columns
        self._codes = at_least(self._codes, size)
        read_exactly(
            source, memoryview(self._codes)[:size], tensor.source.begin + rows.start * columns, name=tensor.name
        )
        self._read_scale(decoding, rows, columns, scales)
        block = decoding.block
        report = self._kernel.decode(
            dtype,
            (len(rows), columns),
            self._codes,
            self._scale,
            block=block,
            skip=rows.start % block[0],
            out=out,
        )
        if report.bad_row >= 0:
            raise self._fault(tensor, decoding, rows, (report.bad_row, report.bad_column), dtype)

    def cast(self, tensor: PlannedTensor, elements: range, source: Readable, target: int) -> None:
        """Convert some elements of a tensor to the dtype it is stored in."""
        assert tensor.weight is not None  # noqa: S101 - `can_cast` was asked before
        before, after = tensor.source.dtype, tensor.weight.dtype
        width, new_width = (DTYPES[dtype].bits // 8 for dtype in (before, after))
        for begin in range(elements.start, elements.stop, self._tile_elements):
            count = min(self._tile_elements, elements.stop - begin)
            self._stored = at_least(self._stored, count * width)
            self._numbers = at_least(self._numbers, count * new_width)
            place = memoryview(self._stored)[: count * width]
            read_exactly(source, place, tensor.source.begin + begin * width, name=tensor.name)
            if after == "F32":
                self._kernel.widen(before, count, self._stored, self._numbers)
            else:
                self._kernel.narrow(count, self._stored, self._numbers)
            written = memoryview(self._numbers)[: count * new_width]
            write_exactly(target, written, tensor.weight.begin + begin * new_width)

    def _read_scale(self, decoding: Decoding, rows: range, columns: int, scales: Readable) -> None:
        """Read the values for some rows of codes, as float32."""
        offset, size = decoding.place(rows, columns)
        dtype = decoding.scale.dtype
        count = size * 8 // DTYPES[dtype].bits
        self._stored, self._scale = at_least(self._stored, size), at_least(self._scale, count * 4)
        read_exactly(scales, memoryview(self._stored)[:size], offset, name=decoding.scale.name)
        self._kernel.widen(dtype, count, self._stored, self._scale)

    def _fault(
        self, tensor: PlannedTensor, decoding: Decoding, rows: range, place: tuple[int, int], dtype: str
    ) -> Fp8Error:
        """Say which number is none, or became none when it was rounded to `dtype`."""
        row, column = place
        columns, (high, wide) = tensor.source.shape[1], decoding.block
        band = (rows.start % high + row) // high
        scale = struct.unpack_from("<f", self._scale, 4 * (band * decoding.across(columns) + column // wide))[0]
        number = e4m3_value(self._codes[row * columns + column]) * scale
        if abs(number) <= _LARGEST_FLOAT32:
            name = DTYPES[dtype].torch_name
            return too_large(tensor.name, number, name, row=rows.start + row, column=column)
        what = "NaN" if math.isnan(number) else "Inf"
        return undecodable(tensor.name, what, row=rows.start + row, column=column)


_LARGEST_FLOAT32: Final = float.fromhex("0x1.fffffep127")


def e4m3_value(code: int) -> float:
    """Return the number that one E4M3 code stands for."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 0xF, code & 0x7
    if code & 0x7F == 0x7F:
        return math.nan
    return sign * (math.ldexp(mantissa, -9) if exponent == 0 else math.ldexp(8 + mantissa, exponent - 10))


def at_least(buffer: mmap.mmap, size: int) -> mmap.mmap:
    """Return the buffer if it holds `size` bytes, else a new one."""
    return buffer if len(buffer) >= size else mmap.mmap(-1, size)
