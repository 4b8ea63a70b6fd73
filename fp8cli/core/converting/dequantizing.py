"""The plan that takes FP8 back to 16 or 32 bits: every code × its scale in float32, rounded once; all scales go.

What was never quantized is copied bit for bit. What quantizing took away does not come back.
"""

from collections.abc import Iterator
from dataclasses import replace

from fp8cli.core.converting.coded import Coded, CodedWeight, flat_shape
from fp8cli.core.converting.planning import draft_tensor, finish_plan, unplaced
from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.safetensors import TensorInfo


def plan_dequantization(checkpoint: Checkpoint, coded: Coded, dtype: str) -> Plan:
    """Decide every tensor of the output. dtype: safetensors tag of what the weights become."""
    return finish_plan(checkpoint, tuple(_drafts(checkpoint, coded, dtype)), dtype=dtype, scheme=None)


def _drafts(checkpoint: Checkpoint, coded: Coded, dtype: str) -> Iterator[PlannedTensor]:
    weights = {weight.codes.name: weight for weight in coded.weights}
    goes = _what_goes(coded)
    for shard in checkpoint.shards:
        for info in shard.header.tensors:
            weight = weights.get(info.name)
            if weight is not None:
                yield _decode(weight, info, shard.name, dtype)
            elif info.name in goes:
                yield draft_tensor(info, shard.name, "drop", "scale", goes[info.name], becomes=None)
            else:
                role = coded.roles.get(info.name, "other")
                becomes = unplaced(info.name, info.dtype, info.shape)
                yield draft_tensor(info, shard.name, "copy", role, "never was quantized", becomes=becomes)


def _decode(weight: CodedWeight, info: TensorInfo, shard: str, dtype: str) -> PlannedTensor:
    reason = f"codes with a scale per {weight.granularity}: `{weight.scale.name.rpartition('.')[2]}` multiplies"
    becomes = unplaced(info.name, dtype, info.shape)
    # The engine knows matrices; experts that are stored as one tensor are one, row after row.
    flat = replace(info, shape=flat_shape(info.shape))
    return draft_tensor(flat, shard, "dequantize", "linear", reason, becomes=becomes, decoding=weight.decoding)


def _what_goes(coded: Coded) -> dict[str, str]:
    """Every scale, with the reason why it goes."""
    reasons = {weight.scale.name: "undone: its weight is no codes any more" for weight in coded.weights}
    for weight in coded.weights:
        if weight.input_scale is not None:
            reasons[weight.input_scale.name] = "the scale of activations, which are not quantized any more"
    reasons.update(
        (each.tensor.name, "the scale of an FP8 KV cache, which config.json asks for no more") for each in coded.cache
    )
    reasons.update((each.name, "belongs to activations, which are not quantized any more") for each in coded.bounds)
    reasons.update((each.name, "belongs to activations, which are not quantized any more") for each in coded.unused)
    return reasons
