"""What a checkpoint holds, by dtype and tensor by tensor.

Bytes are payload: headers are counted apart. Parameters are the model's own numbers, so scales and zero points
count as tensors and as bytes, but not as parameters. MB is 10⁶ bytes, GB 10⁹ and GiB 2³⁰, but units are for
whoever prints; here everything is in bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fp8cli.core.folding import fold, natural_order
from fp8cli.core.inspection.anatomy import Anatomy
from fp8cli.core.inspection.dialect import Dialect
from fp8cli.core.inspection.roles import RoleRow, TableRole, count_parameters, role_of, sum_roles
from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.formats.safetensors import DTYPES


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRow:
    """One tensor. `dtype` is torch's name for it; a scale has no parameters."""

    name: str
    file: str
    role: TableRole
    dtype: str
    shape: tuple[int, ...]
    parameters: int | None
    """None where codes are packed in a way that is not known here."""
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorGroup:
    """Tensors alike in all but the numbers of their names. `shape` is that of one, `bytes` of all together."""

    pattern: str
    count: int
    role: TableRole
    dtype: str
    shape: tuple[int, ...]
    parameters: int | None
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DtypeRow:
    """All tensors of one dtype. `share` is their part of all bytes, 0 to 1."""

    dtype: str
    tensors: int
    parameters: int | None
    bytes: int
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """All tensors together."""

    tensors: int
    parameters: int | None
    bytes: int


def list_tensors(survey: Survey, dialect: Dialect, anatomy: Anatomy) -> tuple[TensorRow, ...]:
    """Describe every tensor, in the natural order of the names."""
    parts = anatomy.parts.values()
    rows = [_row(part.tensor, role_of(part), count_parameters(part, dialect.finder)) for part in parts]
    rows += [_row(survey.tensors[name], "scales", 0) for name in dialect.labels]
    return tuple(sorted(rows, key=lambda row: natural_order(row.name)))


def fold_tensors(rows: Iterable[TensorRow]) -> tuple[TensorGroup, ...]:
    """Fold repeated layers and experts; tensors fold only where role, dtype and shape agree."""
    alike: dict[tuple[TableRole, str, tuple[int, ...]], dict[str, TensorRow]] = {}
    for row in rows:
        alike.setdefault((row.role, row.dtype, row.shape), {})[row.name] = row
    groups: list[tuple[str, TensorGroup]] = []
    for (role, dtype, shape), members in alike.items():
        for folded in fold(members):
            group = TensorGroup(
                pattern=folded.pattern,
                count=len(folded.names),
                role=role,
                dtype=dtype,
                shape=shape,
                parameters=_add(members[name].parameters for name in folded.names),
                bytes=sum(members[name].bytes for name in folded.names),
            )
            groups.append((folded.names[0], group))
    return tuple(group for _, group in sorted(groups, key=lambda pair: natural_order(pair[0])))


def sum_by_dtype(roles: Sequence[RoleRow]) -> tuple[DtypeRow, ...]:
    """Add up the tensors of each dtype, in the order of the dtypes' names."""
    by_dtype: dict[str, list[RoleRow]] = {}
    for row in roles:
        by_dtype.setdefault(row.dtype, []).append(row)
    return tuple(
        DtypeRow(
            dtype=dtype,
            tensors=sum(row.tensors for row in rows),
            parameters=_add(row.parameters for row in rows),
            bytes=sum(row.bytes for row in rows),
            share=sum(row.share for row in rows),
        )
        for dtype, rows in sorted(by_dtype.items())
    )


def sum_tensors(roles: Sequence[RoleRow]) -> Totals:
    """Add everything up."""
    total = sum_roles(roles)
    return Totals(tensors=total.tensors, parameters=total.parameters, bytes=total.bytes)


def _row(tensor: StoredTensor, role: TableRole, parameters: int | None) -> TensorRow:
    return TensorRow(
        name=tensor.name,
        file=tensor.file,
        role=role,
        dtype=f"torch.{DTYPES[tensor.info.dtype].torch_name}",
        shape=tensor.info.shape,
        parameters=parameters,
        bytes=tensor.info.bytes,
    )


def _add(numbers: Iterable[int | None]) -> int | None:
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total
