"""One worker's hands without torch: read a tile of a tensor, quantize it with the compiled kernel, write it.

The twin of core.quantizing.tiles, which does with torch what the kernel cannot: other dtypes, and GPUs.
"""

import math
import mmap
from typing import Final

from fp8cli.core import kernel
from fp8cli.core.kernel import Kernel
from fp8cli.core.quantizing.pieces import not_finite
from fp8cli.core.quantizing.plan import PlannedTensor
from fp8cli.formats.safetensors import DTYPES
from fp8cli.formats.staging import Harm
from fp8cli.formats.weight_files import read_exactly, write_exactly
from fp8cli.schemes import BLOCK, Scheme

TILE_ELEMENTS: Final = 2**18
"""A tile and its codes (0.75 MB for BF16) stay in a core's cache."""


def can_quantize(tensor: PlannedTensor) -> bool:
    """Whether the kernel can do it: a weight that is quantized from the very dtype it is stored in."""
    source = tensor.source.dtype
    return tensor.action == "quantize" and source == tensor.compute_dtype and source in kernel.DTYPES


def tile_elements(memory_bytes: int, widest: int) -> int:
    """Elements per tile: what suits the cache, but no more than the memory allows and no fewer than `widest`."""
    # Source of at most 4 bytes, codes of 1, and as much for scales as they can ever take.
    return max(widest, min(TILE_ELEMENTS, memory_bytes // 9))


class KernelWorker:
    """Quantizes tiles, one at a time, in buffers it keeps. For use by a single thread."""

    def __init__(self, kernel: Kernel, *, scheme: Scheme, tile_elements: int) -> None:
        """Take what shares a scale (rows or blocks), and how many elements one tile may have."""
        self._kernel = kernel
        self._scheme = scheme
        self._tile_elements = tile_elements
        self._weight, self._codes, self._scales = (mmap.mmap(-1, mmap.PAGESIZE) for _ in range(3))

    def quantize(self, tensor: PlannedTensor, rows: range, source: int, target: int) -> Harm:
        """Quantize some rows of a tensor. `source`, `target`: open files. For blocks, `rows` begins at one.

        Returns how many scales do harm (see `fp8.harmed_by_scale`), and the row of the first. Raises BadInput on
        NaN or Inf.
        """
        assert tensor.scale is not None  # noqa: S101 - the plan gives every quantized tensor one
        columns = tensor.source.shape[1]
        step = max(1, self._tile_elements // max(columns, 1))
        if self._scheme.weights == "block":
            step = max(BLOCK, step // BLOCK * BLOCK)
        count, first = 0, -1
        scales = bytearray()
        for begin in range(rows.start, rows.stop, step):
            harmed, row = self._quantize_tile(
                tensor, range(begin, min(begin + step, rows.stop)), source, target, scales
            )
            first = begin + row if harmed and not count else first
            count += harmed
        write_exactly(target, memoryview(scales), tensor.scale.begin + self._scale_bytes(tensor, rows.start))
        return count, first

    def _quantize_tile(self, tensor: PlannedTensor, rows: range, source: int, target: int, scales: bytearray) -> Harm:
        """Write the codes of some rows and append their scales, which are written together: they are few bytes."""
        assert tensor.weight is not None  # noqa: S101 - see above
        columns = tensor.source.shape[1]
        width = _width(tensor)
        scale_bytes = self._scale_bytes(tensor, len(rows))
        self._weight = _at_least(self._weight, len(rows) * columns * width)
        self._codes = _at_least(self._codes, len(rows) * columns)
        self._scales = _at_least(self._scales, scale_bytes)
        weight = memoryview(self._weight)[: len(rows) * columns * width]
        read_exactly(source, weight, tensor.source.begin + rows.start * columns * width, name=tensor.name)
        report = self._kernel.quantize(
            self._scheme.weights, tensor.source.dtype, (len(rows), columns), self._weight, self._codes, self._scales
        )
        if report.bad_row >= 0:
            what = "NaN" if report.bad_is_nan else "Inf"
            raise not_finite(tensor.name, what, row=rows.start + report.bad_row, column=report.bad_column)
        codes = memoryview(self._codes)[: len(rows) * columns]
        write_exactly(target, codes, tensor.weight.begin + rows.start * columns)
        scales += self._scales[:scale_bytes]
        return report.harmed, report.first_harmed

    def _scale_bytes(self, tensor: PlannedTensor, rows: int) -> int:
        """Bytes of the scales of so many rows, which have the dtype of the weight."""
        return math.prod(self._scheme.scale_shape(rows, tensor.source.shape[1])) * _width(tensor)


def _width(tensor: PlannedTensor) -> int:
    return DTYPES[tensor.source.dtype].bits // 8


def _at_least(buffer: mmap.mmap, size: int) -> mmap.mmap:
    """Return the buffer if it holds `size` bytes, else a new one."""
    return buffer if len(buffer) >= size else mmap.mmap(-1, size)
