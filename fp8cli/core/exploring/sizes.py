"""How large a form of a checkpoint is, to the byte, before any of it exists.

For a form that `fp8 quantize` writes this is its plan. For another it is the plan of FP8_DYNAMIC with that form's
scales: E5M2 takes as many bytes as E4M3, and its scales stand in the same places; MXFP8 has a scale of one byte
(E8M0, stored as U8) for every 32 values of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fp8cli.core.exploring.forms import Form
from fp8cli.core.model.selection import Selection
from fp8cli.core.quantizing.plan import METADATA, Plan, build_plan
from fp8cli.errors import CannotRun, Fp8Error
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.safetensors import Header, TensorInfo, lay_out
from fp8cli.schemes import FP8_DYNAMIC
from fp8cli.simulator.scheme import Rounding


@dataclass(frozen=True, kw_only=True)
class PlannedForm:
    """A form of a checkpoint, as far as headers tell."""

    form: Form
    file_bytes: int
    """Of all its shards, headers included."""
    tensor_bytes: int
    parameters: int
    """Numbers of the model, scales not counted."""
    weights: tuple[str, ...]
    """The tensors that are rounded, by their names in the checkpoint."""

    @property
    def bits_per_parameter(self) -> float:
        """Bits of all tensors, scales included, by the parameters of the model."""
        return 8 * self.tensor_bytes / self.parameters


@dataclass(frozen=True, kw_only=True)
class RefusedForm:
    """A form that the checkpoint cannot have."""

    form: Form
    error: Fp8Error


def plan_form(form: Form, checkpoint: Checkpoint, selection: Selection, dtype: str) -> PlannedForm | RefusedForm:
    """Plan a form of a checkpoint. dtype: safetensors tag of the model dtype."""
    weights = form.choice.scheme if form.choice is not None else FP8_DYNAMIC
    try:
        plan = build_plan(checkpoint, weights, selection, dtype, kv_cache=form.scheme.kv_cache)
    except CannotRun as refusal:
        return RefusedForm(form=form, error=refusal)
    headers = [shard.header for shard in plan.shards]
    rounding = form.scheme.weights
    if form.choice is None and rounding is not None:
        headers = [_other_scales(header, plan, rounding) for header in headers]
    return PlannedForm(
        form=form,
        file_bytes=sum(header.file_bytes for header in headers),
        tensor_bytes=sum(info.bytes for header in headers for info in header.tensors),
        parameters=sum(tensor.weight.elements for tensor in plan.tensors if tensor.weight is not None),
        weights=tuple(each.name for each in plan.tensors if each.action == "quantize"),
    )


def _other_scales(header: Header, plan: Plan, rounding: Rounding) -> Header:
    shapes = {each.scale.name: each.source.shape for each in plan.tensors if each.scale is not None}
    _, found = lay_out(list(_content(header, shapes, rounding)), METADATA)
    return found


def _content(
    header: Header, shapes: dict[str, tuple[int, ...]], rounding: Rounding
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    weights = {name.removesuffix("_scale") for name in shapes}
    for info in header.tensors:
        if info.name in shapes:
            yield info.name, *_scale(info, shapes[info.name], rounding)
        elif info.name in weights:
            yield info.name, "F8_E5M2" if rounding.number == "e5m2" else "F8_E4M3", info.shape
        else:
            yield info.name, info.dtype, info.shape


def _scale(info: TensorInfo, shape: tuple[int, ...], rounding: Rounding) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of the scales of a weight [rows, columns]; `info`: those of FP8_DYNAMIC."""
    if rounding.sharing != "group":
        return info.dtype, info.shape
    rows, columns = shape
    return "U8" if rounding.scale == "e8m0" else info.dtype, (rows, -(-columns // rounding.group))
