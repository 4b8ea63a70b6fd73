"""Which tensors of a checkpoint a simulation rounds, and how large the checkpoint would be: from its headers alone.

Exactly those that `fp8 quantize` would: by the same selection, and by the plan of the scheme where it can be written.
The others round what FP8_DYNAMIC does; only their scales differ in number.
"""

from dataclasses import dataclass
from typing import Final

from fp8cli.core.model.selection import rules_for, select
from fp8cli.core.quantizing.model_dtype import model_dtype
from fp8cli.core.quantizing.plan import Plan, build_plan
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.safetensors import DTYPES
from fp8cli.schemes import FP8_DYNAMIC, SCHEMES
from fp8cli.simulator.scheme import SimulatedScheme

_E8M0_BYTES: Final = 1


@dataclass(frozen=True, kw_only=True)
class SimulationPlan:
    """What is rounded."""

    scheme: SimulatedScheme
    weights: tuple[str, ...]
    """Tensors of the checkpoint."""
    dtype: str
    """torch's name of the model dtype, in which weights and their scales are computed."""
    predicted_bytes: int
    """Of all tensors that the checkpoint would have, scales included and headers not."""


def plan_simulation(checkpoint: Checkpoint, scheme: SimulatedScheme) -> SimulationPlan:
    """Plan a simulation. Raises what a plan to quantize raises: BadInput, CannotRun, UsageError."""
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    selection = select(checkpoint.config, tensors, rules=rules_for(checkpoint.config, tensors))
    name, _, _ = scheme.name.partition("+")
    weights = None if scheme.weights is None else SCHEMES.get(name, FP8_DYNAMIC)
    dtype = model_dtype(checkpoint)
    plan = build_plan(checkpoint, weights, selection, dtype, kv_cache=scheme.kv_cache)
    return SimulationPlan(
        scheme=scheme,
        weights=tuple(tensor.name for tensor in plan.tensors if tensor.action == "quantize"),
        dtype=DTYPES[dtype].torch_name,
        predicted_bytes=_predict(plan, scheme),
    )


def _predict(plan: Plan, scheme: SimulatedScheme) -> int:
    total = sum(plan.bytes_after.values())
    if scheme.weights is None or scheme.weights.scale == "model":
        return total
    for tensor in plan.tensors:
        if tensor.scale is not None:
            rows, columns = tensor.source.shape
            total += rows * -(-columns // scheme.weights.group) * _E8M0_BYTES - tensor.scale.bytes
    return total
