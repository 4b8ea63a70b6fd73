"""The plan cut into pieces of work: what one worker does without stopping, and what the journal counts in.

A piece is a range of rows to quantize or dequantize, of elements to convert, or of bytes to copy. Pieces share
nothing, so any worker may do any of them in any order, and doing one twice does no harm. A weight that is quantized
with a single scale is a single piece, because its first code depends on its last element; it is still read tile by
tile.
"""

from collections.abc import Iterator

from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.errors import BadInput
from fp8cli.formats.ranges import Range
from fp8cli.formats.safetensors import DTYPES
from fp8cli.formats.staging import Piece
from fp8cli.schemes import BLOCK


def cut(plan: Plan, piece_bytes: int) -> list[Piece]:
    """Cut the plan into pieces of about `piece_bytes` of source, copies first."""
    copies: list[Piece] = []
    conversions: list[Piece] = []
    for number, tensor in enumerate(plan.tensors):
        match tensor.action:
            case "drop":
                continue
            case "copy":
                copies += _ranges(number, tensor.source.bytes, piece_bytes)
            case "cast":
                width = DTYPES[tensor.source.dtype].bits // 8
                conversions += _ranges(number, tensor.source.elements, max(1, piece_bytes // width))
            case "dequantize":
                conversions += _ranges(number, tensor.source.shape[0], _rows_in(piece_bytes, tensor))
            case "quantize" | "requantize" if plan.scheme is not None and plan.scheme.weights == "tensor":
                conversions.append((number, 0, tensor.source.shape[0]))
            case "quantize" | "requantize":
                step = _rows_in(piece_bytes, tensor)
                if plan.scheme is not None and plan.scheme.weights == "block":
                    step = -(-step // BLOCK) * BLOCK
                conversions += _ranges(number, tensor.source.shape[0], step)
    return copies + conversions


def source_bytes(tensor: PlannedTensor, piece: Piece) -> int:
    """Bytes of source data in a piece."""
    _, begin, end = piece
    match tensor.action:
        case "quantize" | "requantize" | "dequantize":
            return (end - begin) * tensor.source.shape[1] * DTYPES[tensor.source.dtype].bits // 8
        case "cast":
            return (end - begin) * DTYPES[tensor.source.dtype].bits // 8
        case _:
            return end - begin


def source_ranges(tensor: PlannedTensor, piece: Piece) -> tuple[Range, ...]:
    """Return which bytes of the source a piece reads: its own, and the scales of codes."""
    _, begin, end = piece
    shard, info = tensor.source_shard, tensor.source
    if tensor.stride is not None:
        # Rows of a transpose lie all over it: from the first element of its first row to the last of its last.
        width = DTYPES[info.dtype].bits // 8
        reach = (info.shape[1] - 1) * tensor.stride
        return ((shard, info.begin + begin * width, info.begin + (reach + end) * width),)
    match tensor.action:
        case "quantize" | "requantize" | "dequantize":
            width = info.shape[1] * DTYPES[info.dtype].bits // 8
        case "cast":
            width = DTYPES[info.dtype].bits // 8
        case _:
            width = 1
    own = (shard, info.begin + begin * width, info.begin + end * width)
    if tensor.decoding is None:
        return (own,)
    scale = tensor.decoding.scale
    return (own, (tensor.decoding.shard, scale.begin, scale.end))


def not_finite(tensor: str, what: str, *, row: int, column: int) -> BadInput:
    """Return the error for a weight that holds `what` (NaN or Inf), for which no scale is defined."""
    message = f"`{tensor}` holds {what} at row {row}, column {column}"
    hint = f"the source is damaged there; repair it, or keep that tensor as it is with --ignore {tensor}"
    return BadInput(message, hint=hint)


def undecodable(tensor: str, what: str, *, row: int, column: int) -> BadInput:
    """Return the error for codes that stand for `what` (NaN or Inf): a NaN code, or a scale that is none."""
    message = f"`{tensor}` stands for {what} at row {row}, column {column}: a code or its scale is damaged"
    return BadInput(message, hint="fp8 inspect CKPT --verify shows all that is damaged; fetch the checkpoint again")


def too_large(tensor: str, number: float, dtype: str, *, row: int, column: int) -> BadInput:
    """Return the error for a number that its new dtype cannot hold."""
    message = f"`{tensor}` holds {number:.6g} at row {row}, column {column}, beyond the largest number of {dtype}"
    return BadInput(message, hint="use --dtype bfloat16, which reaches as far as float32")


def _rows_in(piece_bytes: int, tensor: PlannedTensor) -> int:
    """How many rows make a piece, one at least."""
    row_bytes = tensor.source.shape[1] * DTYPES[tensor.source.dtype].bits // 8
    return max(1, piece_bytes // max(row_bytes, 1))


def _ranges(number: int, length: int, step: int) -> Iterator[Piece]:
    return ((number, begin, min(begin + step, length)) for begin in range(0, length, step))
