"""Which tensors of a checkpoint a simulation rounds, and how large the checkpoint would be: from its headers alone.

Exactly those that `fp8 quantize` would: by the same selection, and by the plan of the scheme where it can be written.
The others round what FP8_DYNAMIC does; only their scales differ in number.
"""

from dataclasses import dataclass

from fp8cli.core.model.multimodal import refuse_unless_it_predicts
from fp8cli.core.model.selection import rules_for, select
from fp8cli.core.quantizing.model_dtype import model_dtype
from fp8cli.core.quantizing.plan import build_plan
from fp8cli.core.simulating.headers import headers_of, planned_as
from fp8cli.core.simulating.modules import EVERY_LINEAR, ModuleOptions
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.safetensors import DTYPES
from fp8cli.simulator.scheme import SimulatedScheme


@dataclass(frozen=True, kw_only=True)
class SimulationPlan:
    """What is rounded."""

    scheme: SimulatedScheme
    modules: ModuleOptions
    weights: tuple[str, ...]
    """Tensors of the checkpoint."""
    dtype: str
    """torch's name of the model dtype, in which weights and their scales are computed."""
    predicted_bytes: int
    """Of all tensors that the checkpoint would have, scales included and headers not."""


def plan_simulation(
    checkpoint: Checkpoint, scheme: SimulatedScheme, modules: ModuleOptions = EVERY_LINEAR
) -> SimulationPlan:
    """Plan a simulation. Raises what a plan to quantize raises: BadInput, CannotRun, UsageError."""
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    rules = rules_for(checkpoint.config, tensors)
    refuse_unless_it_predicts(rules, "simulated")
    selection = select(
        checkpoint.config,
        tensors,
        rules=rules,
        targets=modules.targets,
        ignore=modules.ignore,
        default_ignore=modules.default_ignore,
    )
    dtype = model_dtype(checkpoint)
    plan = build_plan(checkpoint, planned_as(scheme), selection, dtype, kv_cache=scheme.kv_cache)
    return SimulationPlan(
        scheme=scheme,
        modules=modules,
        weights=tuple(tensor.name for tensor in plan.tensors if tensor.action == "quantize"),
        dtype=DTYPES[dtype].torch_name,
        predicted_bytes=sum(info.bytes for header in headers_of(plan, scheme) for info in header.tensors),
    )
