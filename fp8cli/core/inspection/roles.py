"""The role × dtype table: how many tensors, parameters and bytes a checkpoint spends on what.

Parameters are the model's own numbers: scales have none, and packed codes count as the numbers that they stand
for. Bits per weight are bytes × 8 ÷ parameters.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from fp8cli.core.inspection.anatomy import Anatomy, Part, dissect
from fp8cli.core.inspection.dialect import Dialect
from fp8cli.core.inspection.groups import GroupFinder
from fp8cli.core.inspection.survey import Survey
from fp8cli.core.model import architectures
from fp8cli.formats.safetensors import DTYPES

TableRole = Literal["quantized weights", "scales", "unquantized Linear", "embeddings", "norms", "other", "total"]

ORDER: Final[tuple[TableRole, ...]] = (
    "quantized weights",
    "scales",
    "unquantized Linear",
    "embeddings",
    "norms",
    "other",
)
# Fused experts and Conv1D are multiplied like a Linear, and as large.
_ROLES: Final[dict[architectures.Role, TableRole]] = {
    "linear": "unquantized Linear",
    "output head": "unquantized Linear",
    "fused experts": "unquantized Linear",
    "transposed linear": "unquantized Linear",
    "embedding": "embeddings",
    "norm": "norms",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleRow:
    """The tensors of one role and dtype. `share` is their part of all bytes, 0 to 1."""

    role: TableRole
    dtype: str
    """torch's name for it; empty in the row of the total."""
    tensors: int
    parameters: int | None
    """0 for scales; None where codes are packed in a way that is not known here."""
    bytes: int
    share: float
    bits_per_weight: float | None
    """Bits that each parameter takes; None where there are none, or it is not known how many."""


def role_table(survey: Survey, dialect: Dialect, anatomy: Anatomy | None = None) -> tuple[RoleRow, ...]:
    """Add up the tensors of each role and dtype, in the order of ORDER; pass the anatomy if it is there already."""
    anatomy = anatomy or dissect(survey, dialect)
    finder = dialect.finder
    sums: dict[tuple[TableRole, str], list[tuple[int | None, int]]] = defaultdict(list)
    for name in dialect.labels:
        info = survey.tensors[name].info
        sums["scales", info.dtype].append((0, info.bytes))
    for part in anatomy.parts.values():
        sums[role_of(part), part.tensor.info.dtype].append((count_parameters(part, finder), part.tensor.info.bytes))
    total = sum(size for counted in sums.values() for _, size in counted)
    rows = (_row(role, dtype, sums[role, dtype]) for role in ORDER for dtype in sorted(d for r, d in sums if r == role))
    return tuple(replace(row, share=row.bytes / total if total else 0.0) for row in rows)


def role_of(part: Part) -> TableRole:
    """The row that a part of the model counts in."""
    return "quantized weights" if part.is_codes else _ROLES.get(part.role, "other")


def sum_roles(rows: Sequence[RoleRow]) -> RoleRow:
    """The row of the total."""
    sums = [(row.parameters, row.bytes) for row in rows]
    return replace(_row("total", "", sums), tensors=sum(row.tensors for row in rows))


def _row(role: TableRole, dtype: str, counted: Sequence[tuple[int | None, int]]) -> RoleRow:
    """Add up (parameters, bytes) of some tensors; the share is of all there is."""
    known = [parameters for parameters, _ in counted if parameters is not None]
    parameters = sum(known) if len(known) == len(counted) else None
    size = sum(size for _, size in counted)
    return RoleRow(
        role=role,
        dtype=f"torch.{DTYPES[dtype].torch_name}" if dtype else "",
        tensors=len(counted),
        parameters=parameters,
        bytes=size,
        share=1.0,
        bits_per_weight=size * 8 / parameters if parameters else None,
    )


def count_parameters(part: Part, finder: GroupFinder) -> int | None:
    """Numbers of the model that a tensor stands for; None if its codes are packed in a way that is not known here."""
    info = part.tensor.info
    width = DTYPES[info.dtype].bits
    if not part.is_codes or DTYPES[info.dtype].floating:
        return info.elements
    group = finder.group_of(part.module)
    bits = None if group is None or group.weights is None else group.weights.bits
    return None if bits is None else info.elements * width // bits
