"""The memory that GPTQ takes beside the model: the Hessians of one layer at a time."""

from collections import Counter
from typing import Final

from fp8cli.core.quantizing.plan import Plan

_HESSIAN_BYTES: Final = 4


def largest_hessians(plan: Plan) -> int:
    """Return the bytes of the Hessians of the layer that has most: a square of its inputs for each weight."""
    layers: Counter[str] = Counter()
    for tensor in plan.tensors:
        if tensor.action == "quantize":
            layer = ".".join(tensor.name.split(".")[:3])
            layers[layer] += tensor.source.shape[-1] ** 2 * _HESSIAN_BYTES
    return max(layers.values(), default=0)
