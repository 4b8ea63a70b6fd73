"""One worker's hands without torch: read a tile of a tensor, quantize it with the compiled kernel, write it.

The twin of core.quantizing.tiles, which does with torch what the kernel cannot: other dtypes, and GPUs.
"""

import math
import mmap
from typing import Final

from fp8cli.core import kernel
from fp8cli.core.kernel import Kernel, Report
from fp8cli.core.quantizing.kernel_decoding import Decoder, at_least, can_decode
from fp8cli.core.quantizing.pieces import not_finite
from fp8cli.core.quantizing.plan import PlannedTensor
from fp8cli.formats.safetensors import DTYPES
from fp8cli.formats.staging import Harm
from fp8cli.formats.weight_files import Readable, read_exactly, write_exactly
from fp8cli.schemes import BLOCK, Scheme

TILE_ELEMENTS: Final = 2**18
"""A tile and its codes (0.75 MB for BF16) stay in a core's cache."""


def can_quantize(tensor: PlannedTensor) -> bool:
    """Whether the kernel can do it: rows that are quantized from the very dtype they are stored in, or from codes."""
    match tensor.action:
        case "quantize":
            source = tensor.source.dtype
            return tensor.stride is None and source == tensor.compute_dtype and source in kernel.DTYPES
        case "requantize":
            return can_decode(tensor)
        case _:
            return False


def tile_elements(memory_bytes: int, widest: int) -> int:
    """Elements per tile: what suits the cache, but no more than the memory allows and no fewer than `widest`."""
    # Source of at most 4 bytes, codes of 1, and as much for scales as they can ever take.
    return max(widest, min(TILE_ELEMENTS, memory_bytes // 9))


_Files = tuple[Readable, Readable | None]
"""The open file of a weight, and that of the scale of what is codes already."""


class KernelWorker:
    """Quantizes tiles, one at a time, in buffers it keeps. For use by a single thread."""

    def __init__(self, kernel: Kernel, *, scheme: Scheme, tile_elements: int) -> None:
        """Take what shares a scale (rows, blocks or the whole tensor), and how many elements one tile may have."""
        self._kernel = kernel
        self._scheme = scheme
        self._tile_elements = tile_elements
        self._decoder = Decoder(kernel, tile_elements=tile_elements)
        self._weight, self._codes, self._scales = (mmap.mmap(-1, mmap.PAGESIZE) for _ in range(3))

    def quantize(
        self, tensor: PlannedTensor, rows: range, source: Readable, target: int, scales: Readable | None = None
    ) -> Harm:
        """Quantize some rows of a tensor. `source`, `target`: open files. For blocks, `rows` begins at one.

        `scales`: the file with the scale of what is codes already; they are decoded first. For one scale per tensor
        `rows` must be all of them. Returns how many scales do harm (see
        `fp8.harmed_by_scale`), and the row of the first. Raises BadInput on NaN or Inf.
        """
        assert tensor.scale is not None  # noqa: S101 - the plan gives every quantized tensor one
        if self._scheme.weights == "tensor":
            return self._quantize_whole(tensor, rows, (source, scales), target)
        count, first = 0, -1
        found = bytearray()
        for tile in self._tiles(tensor, rows):
            harmed, row = self._quantize_tile(tensor, tile, (source, scales), target, found)
            first = tile.start + row if harmed and not count else first
            count += harmed
        write_exactly(target, memoryview(found), tensor.scale.begin + self._scale_bytes(tensor, rows.start))
        return count, first

    def _quantize_tile(self, tensor: PlannedTensor, rows: range, files: _Files, target: int, found: bytearray) -> Harm:
        """Write the codes of some rows and append their scales, which are written together: they are few bytes."""
        shape = self._read(tensor, rows, files)
        scale_bytes = self._scale_bytes(tensor, len(rows))
        self._codes = at_least(self._codes, math.prod(shape))
        self._scales = at_least(self._scales, scale_bytes)
        report = self._kernel.quantize(
            self._scheme.weights, tensor.compute_dtype, shape, self._weight, self._codes, self._scales
        )
        _refuse_not_finite(tensor, rows, report)
        self._write_codes(tensor, rows, target)
        found += self._scales[:scale_bytes]
        return report.harmed, report.first_harmed

    def _quantize_whole(self, tensor: PlannedTensor, rows: range, files: _Files, target: int) -> Harm:
        """Read a tensor twice: for its largest magnitude, which gives the one scale, and then for its codes."""
        assert tensor.scale is not None  # noqa: S101 - see above
        tiles = self._tiles(tensor, rows)
        dtype, largest, harmed = tensor.compute_dtype, 0, 0
        for tile in tiles:
            shape = self._read(tensor, tile, files)
            bits, report = self._kernel.largest(dtype, shape, self._weight)
            _refuse_not_finite(tensor, tile, report)
            largest = max(largest, bits)
        for tile in tiles:
            # A tensor of one tile is still there from the first reading.
            shape = self._read(tensor, tile, files) if len(tiles) > 1 else (len(tile), tensor.source.shape[1])
            self._codes = at_least(self._codes, math.prod(shape))
            report = self._kernel.quantize_tensor(dtype, shape, largest, self._weight, self._codes, self._scales)
            self._write_codes(tensor, tile, target)
            harmed = report.harmed
        write_exactly(target, memoryview(self._scales)[: _width(tensor)], tensor.scale.begin)
        return (len(rows), 0) if harmed else (0, -1)

    def _tiles(self, tensor: PlannedTensor, rows: range) -> list[range]:
        """Cut rows into tiles; for blocks, along them. There is always one, be it of no rows."""
        step = max(1, self._tile_elements // max(tensor.source.shape[1], 1))
        if self._scheme.weights == "block":
            step = max(BLOCK, step // BLOCK * BLOCK)
        begins = range(rows.start, rows.stop, step) or [rows.start]
        return [range(begin, min(begin + step, rows.stop)) for begin in begins]

    def _read(self, tensor: PlannedTensor, rows: range, files: _Files) -> tuple[int, int]:
        """Read some rows into the buffer for weights, decoded if they are codes; return their shape."""
        source, scales = files
        columns, width = tensor.source.shape[1], _width(tensor)
        size = len(rows) * columns * width
        self._weight = at_least(self._weight, size)
        if scales is not None:
            self._decoder.decode(tensor, rows, source, scales, dtype=tensor.compute_dtype, out=self._weight)
            return len(rows), columns
        begin = tensor.source.begin + rows.start * columns * width
        read_exactly(source, memoryview(self._weight)[:size], begin, name=tensor.name)
        return len(rows), columns

    def _write_codes(self, tensor: PlannedTensor, rows: range, target: int) -> None:
        assert tensor.weight is not None  # noqa: S101 - see above
        columns = tensor.source.shape[1]
        codes = memoryview(self._codes)[: len(rows) * columns]
        write_exactly(target, codes, tensor.weight.begin + rows.start * columns)

    def _scale_bytes(self, tensor: PlannedTensor, rows: int) -> int:
        """Bytes of the scales of so many rows, which have the dtype of the weight."""
        return math.prod(self._scheme.scale_shape(rows, tensor.source.shape[1])) * _width(tensor)


def _refuse_not_finite(tensor: PlannedTensor, rows: range, report: Report) -> None:
    if report.bad_row >= 0:
        what = "NaN" if report.bad_is_nan else "Inf"
        raise not_finite(tensor.name, what, row=rows.start + report.bad_row, column=report.bad_column)


def _width(tensor: PlannedTensor) -> int:
    return DTYPES[tensor.compute_dtype].bits // 8
