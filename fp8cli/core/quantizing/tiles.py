"""One worker's hands with torch: read a tile of a tensor, convert it, write it where the plan says.

For GPUs, for changes of dtype, for codes, and where there is no compiled kernel; kernel_tiles.py is the twin with it.
A tile is a range of rows (for quantizing and dequantizing) or of elements (for a change of dtype), small enough that a
few of them fit the memory cap and, on a CPU, the cache. Tiles share nothing, so any number of workers may run.
"""

import math
import mmap
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from fp8cli.core.quantizing import fp8
from fp8cli.core.quantizing.decoding import Decoding
from fp8cli.core.quantizing.pieces import not_finite, too_large, undecodable
from fp8cli.core.quantizing.plan import PlannedTensor
from fp8cli.core.quantizing.resources import SCRATCH_BYTES_PER_ELEMENT
from fp8cli.errors import CannotRun
from fp8cli.formats.safetensors import DTYPES, TensorInfo
from fp8cli.formats.staging import Harm
from fp8cli.formats.weight_files import Readable, read_exactly, write_exactly
from fp8cli.schemes import BLOCK, WeightGranularity

CPU_TILE_ELEMENTS: Final = 2**19
"""A tile and its intermediate results (about 3 MB) stay in a core's cache."""

CUDA_TILE_ELEMENTS: Final = 2**22
"""Large enough that copies to and from the GPU run at full speed."""

_TORCH: Final[Mapping[str, torch.dtype]] = {
    tag: getattr(torch, DTYPES[tag].torch_name) for tag in ("F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E8M0")
} | {"U8": torch.float8_e8m0fnu}
"""By safetensors tags; U8 is read as a scale alone, and there means powers of two (MX formats)."""


def tile_elements(device: str, memory_bytes: int, widest: int) -> int:
    """Elements per tile: what suits the device, but no more than the memory allows and no fewer than `widest`."""
    suits = CUDA_TILE_ELEMENTS if device.startswith("cuda") else CPU_TILE_ELEMENTS
    return max(widest, min(suits, memory_bytes // SCRATCH_BYTES_PER_ELEMENT))


_Files = tuple[Readable, Readable | None]
"""The open file of a weight, and that of the scale of what is codes already."""


class TileWorker:
    """Converts tiles, one at a time, in buffers it keeps. For use by a single thread."""

    def __init__(self, *, granularity: WeightGranularity, device: str, tile_elements: int) -> None:
        """Take what shares a scale, the device (`cpu`, `cuda:0`), and how many elements one tile may have."""
        self._granularity = granularity
        self._blocks = granularity == "block"
        # Parallelism is across tiles; threads inside an operation would only fight over the same cores.
        torch.set_num_threads(1)
        self._device = torch.device(device)
        self._tile_elements = tile_elements
        self._buffer, self._scale_buffer = (mmap.mmap(-1, mmap.PAGESIZE) for _ in range(2))
        # Its own stream, so that one worker's copies overlap another's arithmetic.
        cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if cuda else None  # type: ignore[no-untyped-call]

    def quantize(
        self, tensor: PlannedTensor, rows: range, source: Readable, target: int, scales: Readable | None = None
    ) -> Harm:
        """Quantize some rows of a tensor. `source`, `target`: open files. For blocks, `rows` begins at one.

        `scales`: the file with the scale of what is codes already; they are decoded first. For one scale per tensor
        `rows` must be all of them. Returns how many rows their scale harms (see `fp8.harmed_by_scale`), and the
        first. Raises BadInput on NaN or Inf.
        """
        columns = tensor.source.shape[1]
        step = max(1, self._tile_elements // max(columns, 1))
        if self._granularity == "tensor":
            return self._quantize_whole(tensor, rows, step, (source, scales), target)
        if self._blocks:
            step = max(BLOCK, step // BLOCK * BLOCK)
        count, first = 0, -1
        for begin in range(rows.start, rows.stop, step):
            end = min(begin + step, rows.stop)
            harmed = self._quantize_tile(tensor, begin, end, (source, scales), target)
            if harmed:
                first = harmed[0] if first < 0 else first
                count += len(harmed)
        return count, first

    def dequantize(self, tensor: PlannedTensor, rows: range, source: Readable, target: int, scales: Readable) -> None:
        """Turn the codes of some rows into numbers. `source`, `target`, `scales`: open files.

        Raises BadInput for a number that is not finite, or becomes so in the dtype that it is stored in.
        """
        assert tensor.weight is not None  # noqa: S101 - the plan gives every dequantized tensor a weight
        columns = tensor.source.shape[1]
        dtype = _TORCH[tensor.weight.dtype]
        step = max(1, self._tile_elements // max(columns, 1))
        for begin in range(rows.start, rows.stop, step):
            end = min(begin + step, rows.stop)
            with torch.cuda.stream(self._stream):
                numbers = self._load(tensor, begin, end, (source, scales))
                tile = numbers.to(dtype)
                if not bool(torch.isfinite(tile).all()):
                    _refuse_overflow(tensor, numbers, tile, begin)
                _write(tile.cpu(), target, tensor.weight.begin + begin * columns * tile.element_size())

    def cast(self, tensor: PlannedTensor, elements: range, source: Readable, target: int) -> None:
        """Convert some elements of a tensor to the dtype it is stored in."""
        assert tensor.weight is not None  # noqa: S101 - the plan gives every cast a weight
        dtype = _TORCH[tensor.weight.dtype]
        for begin in range(elements.start, elements.stop, self._tile_elements):
            end = min(begin + self._tile_elements, elements.stop)
            tile = self._read(tensor.source, begin, end, source, name=tensor.name).to(dtype)
            _write(tile, target, tensor.weight.begin + begin * tile.element_size())

    def _quantize_tile(self, tensor: PlannedTensor, begin: int, end: int, files: _Files, target: int) -> list[int]:
        """Quantize rows begin…end; return the rows (or first rows of blocks) that their scale harms."""
        assert tensor.weight is not None  # noqa: S101 - the plan gives every quantized tensor both
        assert tensor.scale is not None  # noqa: S101
        columns = tensor.source.shape[1]
        with torch.cuda.stream(self._stream):
            weight = self._load(tensor, begin, end, files)
            blocks = self._blocks
            amax = fp8.amax_per_block(weight) if blocks else fp8.amax_per_row(weight)
            ordinary = fp8.is_ordinary(amax)
            if not ordinary and not bool(torch.isfinite(amax).all()):
                _refuse_not_finite(tensor, weight, begin)
            scale = fp8.scale_from_amax(amax)
            codes = (fp8.encode_blocks if blocks else fp8.encode_rows)(weight, scale)
            first_scale = begin // BLOCK if blocks else begin
            scale_row_bytes = scale.shape[1] * scale.element_size()
            _write(codes.cpu(), target, tensor.weight.begin + begin * columns)
            _write(scale.cpu(), target, tensor.scale.begin + first_scale * scale_row_bytes)
            if ordinary:
                return []
            rows: list[int] = fp8.harmed_by_scale(amax, scale).nonzero()[:, 0].tolist()
            return [begin + row * (BLOCK if blocks else 1) for row in rows]

    def _quantize_whole(self, tensor: PlannedTensor, rows: range, step: int, files: _Files, target: int) -> Harm:
        """Read a tensor twice: for its largest magnitude, which gives the one scale, and then for its codes."""
        assert tensor.weight is not None  # noqa: S101 - see above
        assert tensor.scale is not None  # noqa: S101
        tiles = [(begin, min(begin + step, rows.stop)) for begin in range(rows.start, rows.stop, step)]
        with torch.cuda.stream(self._stream):
            amax = torch.zeros(1, dtype=_TORCH[tensor.compute_dtype], device=self._device)
            for begin, end in tiles:
                weight = self._load(tensor, begin, end, files)
                amax = torch.maximum(amax, fp8.amax_of_all(weight))
                if not bool(torch.isfinite(amax)):
                    _refuse_not_finite(tensor, weight, begin)
            scale = fp8.scale_from_amax(amax)
            for begin, end in tiles:
                codes = fp8.encode_rows(self._load(tensor, begin, end, files), scale)
                _write(codes.cpu(), target, tensor.weight.begin + begin * tensor.source.shape[1])
            _write(scale.cpu(), target, tensor.scale.begin)
            harmed = bool(fp8.harmed_by_scale(amax, scale))
        return (len(rows), 0) if harmed else (0, -1)

    def _load(self, tensor: PlannedTensor, begin: int, end: int, files: _Files) -> Tensor:
        """Read rows begin…end of a weight onto the device, in the dtype to compute in; codes are decoded."""
        source, scales = files
        columns = tensor.source.shape[1]
        if tensor.decoding is not None and scales is not None:
            codes = self._read(tensor.source, begin * columns, end * columns, source, name=tensor.name).to(self._device)
            scale = self._read_scale(tensor.decoding, range(begin, end), columns, scales).to(self._device)
            block = tensor.decoding.block
            return fp8.decode(codes.view(end - begin, columns), scale, block=block, skip=begin % block[0])
        if tensor.stride is not None:
            stored = self._gather(tensor, tensor.stride, begin, end, source)
            return stored.to(self._device).to(_TORCH[tensor.compute_dtype]).t().contiguous()
        flat = self._read(tensor.source, begin * columns, end * columns, source, name=tensor.name)
        return flat.to(self._device).to(_TORCH[tensor.compute_dtype]).view(end - begin, columns)

    def _read_scale(self, decoding: Decoding, rows: range, columns: int, scales: Readable) -> Tensor:
        """Read the values for some rows of codes; return them as float32, [bands of blocks, blocks across]."""
        offset, size = decoding.place(rows, columns)
        if len(self._scale_buffer) < size:
            self._scale_buffer = mmap.mmap(-1, size)
        read_exactly(scales, memoryview(self._scale_buffer)[:size], offset, name=decoding.scale.name)
        dtype = _TORCH[decoding.scale.dtype]
        values = torch.frombuffer(self._scale_buffer, dtype=dtype, count=size // dtype.itemsize)
        return values.float().view(-1, decoding.across(columns))

    def _read(self, info: TensorInfo, begin: int, end: int, source: Readable, *, name: str) -> Tensor:
        """Read elements begin…end of a tensor into the reused buffer and return them, flat."""
        dtype = _TORCH[info.dtype]
        size = (end - begin) * dtype.itemsize
        if size == 0:
            return torch.empty(0, dtype=dtype)
        self._make_room(size)
        read_exactly(source, memoryview(self._buffer)[:size], info.begin + begin * dtype.itemsize, name=name)
        return torch.frombuffer(self._buffer, dtype=dtype, count=end - begin)

    def _gather(self, tensor: PlannedTensor, stride: int, begin: int, end: int, source: Readable) -> Tensor:
        """Read rows begin…end of a weight that is stored as its transpose, piece by piece: [columns, rows]."""
        dtype, columns = _TORCH[tensor.source.dtype], tensor.source.shape[1]
        size = (end - begin) * dtype.itemsize
        self._make_room(size * columns)
        with memoryview(self._buffer) as room:
            for column in range(columns):
                at = tensor.source.begin + (column * stride + begin) * dtype.itemsize
                read_exactly(source, room[column * size : (column + 1) * size], at, name=tensor.name)
        return torch.frombuffer(self._buffer, dtype=dtype, count=columns * (end - begin)).view(columns, end - begin)

    def _make_room(self, size: int) -> None:
        if len(self._buffer) < size:
            self._buffer = mmap.mmap(-1, size)


def check_device(device: str) -> str:
    """Return the device to use: `auto` is the first GPU if there is one. Raises CannotRun if it is not there."""
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        wanted = int(device.removeprefix("cuda").removeprefix(":") or 0)
        found = torch.cuda.device_count()
        if wanted >= found:
            message = f"`{device}` is not here: torch {torch.__version__} sees {found} CUDA devices"
            raise CannotRun(message, hint="use --device cpu: the bytes are the same")
        return f"cuda:{wanted}"
    return device


def _write(tile: Tensor, target: int, offset: int) -> None:
    if tile.numel():
        write_exactly(target, tile.contiguous().view(torch.uint8).numpy().data.cast("B"), offset)


def _refuse_overflow(tensor: PlannedTensor, numbers: Tensor, tile: Tensor, first_row: int) -> None:
    """Say which number is none, or became none when it was rounded to the dtype of `tile`."""
    row, column = (~torch.isfinite(tile)).nonzero()[0].tolist()
    number = float(numbers[row, column])
    if math.isfinite(number):
        name = str(tile.dtype).removeprefix("torch.")
        raise too_large(tensor.name, number, name, row=first_row + row, column=column)
    what = "NaN" if math.isnan(number) else "Inf"
    raise undecodable(tensor.name, what, row=first_row + row, column=column)


def _refuse_not_finite(tensor: PlannedTensor, weight: Tensor, first_row: int) -> None:
    row, column = (~torch.isfinite(weight)).nonzero()[0].tolist()
    what = "NaN" if bool(weight[row, column].isnan()) else "Inf"
    if tensor.decoding is not None:
        raise undecodable(tensor.name, what, row=first_row + row, column=column)
    raise not_finite(tensor.name, what, row=first_row + row, column=column)
