"""How large a form of a checkpoint is, to the byte, before any of it exists."""

from dataclasses import dataclass, replace

from fp8cli.core.exploring.forms import Form
from fp8cli.core.model.selection import Selection
from fp8cli.core.quantizing.plan import build_plan
from fp8cli.core.simulating.headers import headers_of, planned_as
from fp8cli.errors import CannotRun, Fp8Error
from fp8cli.formats.checkpoint import Checkpoint


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
    try:
        plan = build_plan(checkpoint, planned_as(form.scheme), selection, dtype, kv_cache=form.scheme.kv_cache)
    except CannotRun as refusal:
        return RefusedForm(form=form, error=refusal)
    if selection.rules.towers and form.scheme.modified:
        # Only llm-compressor would write it, and it is given language models of text alone.
        form = replace(form, choice=None)
    headers = headers_of(plan, form.scheme)
    return PlannedForm(
        form=form,
        file_bytes=sum(header.file_bytes for header in headers),
        tensor_bytes=sum(info.bytes for header in headers for info in header.tensors),
        parameters=sum(tensor.weight.elements for tensor in plan.tensors if tensor.weight is not None),
        weights=tuple(each.name for each in plan.tensors if each.action == "quantize"),
    )
