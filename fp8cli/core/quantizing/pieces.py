"""The plan cut into pieces of work: what one worker does without stopping, and what the journal counts in.

A piece is a range of rows to quantize, of elements to convert, or of bytes to copy. Pieces share nothing, so any
worker may do any of them in any order, and doing one twice does no harm. A weight with a single scale is a single
piece, because its first code depends on its last element; it is still read tile by tile.
"""

from collections.abc import Iterator

from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.errors import BadInput
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
            case "quantize" if plan.scheme is not None and plan.scheme.weights == "tensor":
                conversions.append((number, 0, tensor.source.shape[0]))
            case "quantize":
                rows, columns = tensor.source.shape
                row_bytes = columns * DTYPES[tensor.source.dtype].bits // 8
                step = max(1, piece_bytes // max(row_bytes, 1))
                if plan.scheme is not None and plan.scheme.weights == "block":
                    step = -(-step // BLOCK) * BLOCK
                conversions += _ranges(number, rows, step)
    return copies + conversions


def source_bytes(tensor: PlannedTensor, piece: Piece) -> int:
    """Bytes of source data in a piece."""
    _, begin, end = piece
    match tensor.action:
        case "quantize":
            return (end - begin) * tensor.source.shape[1] * DTYPES[tensor.source.dtype].bits // 8
        case "cast":
            return (end - begin) * DTYPES[tensor.source.dtype].bits // 8
        case _:
            return end - begin


def not_finite(tensor: str, what: str, *, row: int, column: int) -> BadInput:
    """Return the error for a weight that holds `what` (NaN or Inf), for which no scale is defined."""
    message = f"`{tensor}` holds {what} at row {row}, column {column}"
    hint = f"the source is damaged there; repair it, or keep that tensor as it is with --ignore {tensor}"
    return BadInput(message, hint=hint)


def _ranges(number: int, length: int, step: int) -> Iterator[Piece]:
    return ((number, begin, min(begin + step, length)) for begin in range(0, length, step))
