"""What a checkpoint holds, by dtype and by tensor, and what its config says about it. Headers only.

Bytes are payload: headers are counted apart. Parameters are the model's own numbers, so scales and zero points
count as tensors and as bytes, but not as parameters. MB is 10⁶ bytes, GB 10⁹ and GiB 2³⁰, but units are for
whoever prints; here everything is in bytes.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from fp8cli.core.folding import fold, natural_order
from fp8cli.core.scale_names import FP8_DTYPES, scale_label
from fp8cli.formats.safetensors import DTYPES, TensorInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRow:
    """One tensor. `dtype` is torch's name for it; a scale has no parameters."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    bytes: int
    is_scale: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorGroup:
    """Tensors alike in all but the numbers of their names. `shape` is that of one, `bytes` of all together."""

    pattern: str
    count: int
    dtype: str
    shape: tuple[int, ...]
    parameters: int
    bytes: int
    is_scale: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class DtypeRow:
    """All tensors of one dtype. `share` is their part of all bytes, 0 to 1."""

    dtype: str
    tensors: int
    parameters: int
    bytes: int
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """All tensors together."""

    tensors: int
    parameters: int
    bytes: int


def list_tensors(tensors: Collection[TensorInfo]) -> tuple[TensorRow, ...]:
    """Describe every tensor, in the natural order of the names."""
    dtypes = {tensor.name: tensor.dtype for tensor in tensors}
    rows = (_tensor_row(tensor, is_scale=scale_label(tensor.name, dtypes) is not None) for tensor in tensors)
    return tuple(sorted(rows, key=lambda row: natural_order(row.name)))


def fold_tensors(rows: Iterable[TensorRow]) -> tuple[TensorGroup, ...]:
    """Fold repeated layers and experts; tensors fold only where dtype and shape agree."""
    alike: dict[tuple[str, tuple[int, ...], bool], dict[str, TensorRow]] = {}
    for row in rows:
        alike.setdefault((row.dtype, row.shape, row.is_scale), {})[row.name] = row
    groups: list[tuple[str, TensorGroup]] = []
    for (dtype, shape, is_scale), members in alike.items():
        for folded in fold(members):
            group = TensorGroup(
                pattern=folded.pattern,
                count=len(folded.names),
                dtype=dtype,
                shape=shape,
                parameters=sum(members[name].parameters for name in folded.names),
                bytes=sum(members[name].bytes for name in folded.names),
                is_scale=is_scale,
            )
            groups.append((folded.names[0], group))
    return tuple(group for _, group in sorted(groups, key=lambda pair: natural_order(pair[0])))


def sum_tensors(rows: Collection[TensorRow]) -> Totals:
    """Add everything up."""
    return Totals(
        tensors=len(rows),
        parameters=sum(row.parameters for row in rows),
        bytes=sum(row.bytes for row in rows),
    )


def sum_by_dtype(rows: Collection[TensorRow]) -> tuple[DtypeRow, ...]:
    """Add up the tensors of each dtype, in the order of the dtypes' names."""
    total = sum_tensors(rows)
    by_dtype: dict[str, list[TensorRow]] = {}
    for row in rows:
        by_dtype.setdefault(row.dtype, []).append(row)
    return tuple(_dtype_row(dtype, by_dtype[dtype], total) for dtype in sorted(by_dtype))


def holds_fp8(tensors: Iterable[TensorInfo]) -> bool:
    """Whether any tensor is stored as 8-bit floats."""
    return any(tensor.dtype in FP8_DTYPES for tensor in tensors)


def _tensor_row(tensor: TensorInfo, *, is_scale: bool) -> TensorRow:
    return TensorRow(
        name=tensor.name,
        dtype=f"torch.{DTYPES[tensor.dtype].torch_name}",
        shape=tensor.shape,
        parameters=0 if is_scale else tensor.elements,
        bytes=tensor.bytes,
        is_scale=is_scale,
    )


def _dtype_row(dtype: str, rows: Sequence[TensorRow], total: Totals) -> DtypeRow:
    own = sum_tensors(rows)
    return DtypeRow(
        dtype=dtype,
        tensors=own.tensors,
        parameters=own.parameters,
        bytes=own.bytes,
        share=own.bytes / total.bytes if total.bytes else 0.0,
    )
