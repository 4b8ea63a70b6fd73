"""What a scheme does to the weights themselves, without data and without torch: signal and noise of each.

The compiled kernel rounds a weight as the engine will, tile by tile, and compares what it got with what was there;
nothing is written. Memory does not depend on the size of the model.
"""

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.inspection.reading import BytesRead, ReadingBegins, run_all
from fp8cli.core.inspection.scale_sweep import decode
from fp8cli.core.kernel import Distance, Kernel, Report, load
from fp8cli.core.quantizing.kernel_tiles import TILE_ELEMENTS, can_quantize
from fp8cli.core.quantizing.pieces import not_finite
from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.errors import CannotRun
from fp8cli.formats.safetensors import DTYPES
from fp8cli.formats.weight_files import read_exactly
from fp8cli.schemes import BLOCK, Scheme

Noise = tuple[float, float]
"""Sum of squares of a weight, and of what rounding changes in it."""

Notify = Callable[[ReadingBegins | BytesRead], None]

_WIDEST_SCALE: Final = 4


def measure_weights(plan: Plan, sources: Callable[[str], Path], *, workers: int, notify: Notify) -> Mapping[str, Noise]:
    """Round every weight that a plan quantizes, and return what that changed, by the names of the tensors.

    sources: from a source shard's name to its file. Raises CannotRun where the kernel cannot do it, BadInput for a
    weight with NaN or Inf.
    """
    quantized = [tensor for tensor in plan.tensors if tensor.action == "quantize"]
    kernel = load()
    if kernel is None or plan.scheme is None:
        message = "weights are compared by the compiled kernel, and it is not here"
        raise CannotRun(
            message, hint="name texts with --calibration-data; fp8 doctor says what is wrong with the kernel"
        )
    other = next((tensor for tensor in quantized if not can_quantize(tensor)), None)
    if other is not None:
        stored, computed = other.source.dtype, other.compute_dtype
        how = f"is {stored} and is quantized from {computed}" if other.stride is None else "is stored as its transpose"
        message = f"`{other.name}` {how}, which is not compared without data"
        hint = "name texts with --calibration-data, or leave out --dtype"
        raise CannotRun(message, hint=hint if other.stride is None else "leave out --keep-bf16")
    notify(ReadingBegins(what="measuring weights", bytes=sum(tensor.source.bytes for tensor in quantized)))
    jobs = [
        _Job(tensor=tensor, scheme=plan.scheme, file=sources(tensor.source_shard), kernel=kernel, notify=notify)
        for tensor in quantized
    ]
    found = run_all(jobs, workers=workers)
    return {tensor.name: noise for tensor, noise in zip(quantized, found, strict=True)}


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Measures one weight."""

    tensor: PlannedTensor
    scheme: Scheme
    file: Path
    kernel: Kernel
    notify: Notify

    def __call__(self) -> Noise:
        distance = Distance(0.0, 0.0, 0.0, 0, 0)
        with self.file.open("rb") as file:
            if self.scheme.weights == "tensor":
                self._whole(file.fileno(), distance)
            else:
                for rows in self._tiles():
                    self._tile(file.fileno(), rows, distance)
        return distance.signal, distance.noise

    def _tile(self, file: int, rows: range, distance: Distance) -> None:
        shape = len(rows), self.tensor.source.shape[1]
        weight = self._read(file, rows)
        codes, scales = _buffers(shape)
        report = self.kernel.quantize(self.scheme.weights, self.tensor.source.dtype, shape, weight, codes, scales)
        self._refuse(report, rows)
        high = BLOCK if self.scheme.weights == "block" else 1
        wide = BLOCK if self.scheme.weights == "block" else shape[1]
        self._compare(shape, weight, codes, scales, (high, wide), distance)

    def _whole(self, file: int, distance: Distance) -> None:
        """Read a weight with one scale twice: for its largest magnitude, and then for its codes."""
        largest = 0
        for rows in self._tiles():
            shape = len(rows), self.tensor.source.shape[1]
            bits, report = self.kernel.largest(self.tensor.source.dtype, shape, self._read(file, rows))
            self._refuse(report, rows)
            largest = max(largest, bits)
        for rows in self._tiles():
            shape = len(rows), self.tensor.source.shape[1]
            weight = self._read(file, rows)
            codes, scale = _buffers(shape)
            self.kernel.quantize_tensor(self.tensor.source.dtype, shape, largest, weight, codes, scale)
            self._compare(shape, weight, codes, scale, shape, distance)

    def _compare(
        self,
        shape: tuple[int, int],
        weight: mmap.mmap,
        codes: mmap.mmap,
        scales: mmap.mmap,
        block: tuple[int, int],
        distance: Distance,
    ) -> None:
        rows, columns = shape
        width = _width(self.tensor)
        dtype = self.tensor.source.dtype
        count = -(-rows // block[0]) * -(-columns // block[1])
        values = decode(dtype, scales[: count * width]).astype("<f4").tobytes()
        size = rows * columns
        self.kernel.compare(dtype, range(rows), columns, weight[: size * width], codes[:size], values, block, distance)
        self.notify(BytesRead(name=self.tensor.name, bytes=size * width))

    def _tiles(self) -> Sequence[range]:
        rows, columns = self.tensor.source.shape
        step = max(1, TILE_ELEMENTS // max(columns, 1))
        if self.scheme.weights == "block":
            step = max(BLOCK, step // BLOCK * BLOCK)
        return [range(begin, min(begin + step, rows)) for begin in range(0, rows if columns else 0, step)]

    def _read(self, file: int, rows: range) -> mmap.mmap:
        row_bytes = self.tensor.source.shape[1] * _width(self.tensor)
        buffer = mmap.mmap(-1, len(rows) * row_bytes)
        begin = self.tensor.source.begin + rows.start * row_bytes
        read_exactly(file, memoryview(buffer), begin, name=self.tensor.name)
        return buffer

    def _refuse(self, report: Report, rows: range) -> None:
        if report.bad_row >= 0:
            what = "NaN" if report.bad_is_nan else "Inf"
            raise not_finite(self.tensor.name, what, row=rows.start + report.bad_row, column=report.bad_column)


def _buffers(shape: tuple[int, int]) -> tuple[mmap.mmap, mmap.mmap]:
    """Return room for the codes of a tile and for its scales, of which there are no more than rows and columns."""
    rows, columns = shape
    return mmap.mmap(-1, rows * columns), mmap.mmap(-1, (rows + columns) * _WIDEST_SCALE)


def _width(tensor: PlannedTensor) -> int:
    return DTYPES[tensor.source.dtype].bits // 8
