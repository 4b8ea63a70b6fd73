"""A plan as rows for people: one for each tensor, with what happens to it and why; dtypes by torch's names."""

from collections.abc import Mapping
from dataclasses import dataclass

from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.formats.safetensors import DTYPES


@dataclass(frozen=True, kw_only=True)
class TensorRow:
    """One tensor in a report: what happens to it and why."""

    name: str
    action: str
    role: str
    reason: str
    dtype_before: str
    dtype_after: str | None
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int


def tensor_rows(plan: Plan) -> tuple[TensorRow, ...]:
    """Return a row for each tensor of the source, in the order of the plan."""
    return tuple(_row(tensor) for tensor in plan.tensors)


def torch_name(tag: str) -> str:
    """Return what torch calls a dtype, such as `torch.bfloat16`, from its safetensors tag."""
    return f"torch.{DTYPES[tag].torch_name}"


def by_torch_name(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return bytes by torch's names of dtypes, sorted, from bytes by safetensors tags."""
    return dict(sorted((torch_name(tag), size) for tag, size in sizes.items()))


def _row(tensor: PlannedTensor) -> TensorRow:
    return TensorRow(
        name=tensor.name,
        action=tensor.action,
        role=tensor.role,
        reason=tensor.reason,
        dtype_before=torch_name(tensor.source.dtype),
        dtype_after=torch_name(tensor.weight.dtype) if tensor.weight else None,
        shape=tensor.source.shape,
        bytes_before=tensor.source.bytes,
        bytes_after=tensor.bytes_out,
    )
