"""What a conversion changes although no weight does: said, because nobody would look for it."""

from collections.abc import Iterator

from fp8cli.core.converting.coded import Coded
from fp8cli.core.converting.relabelling import Conversion
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.dialect_configs import ACTIVATION_BOUND
from fp8cli.formats.safetensors import DTYPES


def notes_on_conversion(coded: Coded, conversion: Conversion, plan: Plan) -> Iterator[str]:
    """Say what is lost or new besides the weights."""
    target = conversion.target
    if coded.bounds:
        yield f"{len(coded.bounds)} upper bounds of activations (`input_scale_ub`) are not carried over"
    if target.name == "fbgemm":
        yield f"config.json bounds activations by {ACTIVATION_BOUND:,.0f}, its default: larger ones are cut off"
    if coded.powers_of_two:
        yield f"`scale_fmt: ue8m0`, powers of two as scales of activations, has no word in {target.called}"
    if coded.unused:
        yield f"{len(coded.unused)} scales of activations that config.json does not mention are not carried over"
    if coded.cache and not target.cache_is_declared:
        yield f"{target.called} cannot say that the KV cache is FP8: serve it with --kv-cache-dtype fp8"
    if coded.cache and target.cache_is_declared and coded.name in {"fp8", "deepseek"}:
        yield "config.json now asks for an FP8 KV cache, which before took --kv-cache-dtype fp8"
    if target.in_model_dtype and not conversion.requantizes:
        wide = sum(
            tensor.weight is not None and tensor.role == "scale" and tensor.weight.dtype != plan.dtype
            for tensor in plan.tensors
        )
        if wide:
            narrow = DTYPES[plan.dtype].torch_name
            why = f"{wide} scales stay float32, because {narrow} would lose bits of them"
            yield f"{why}: vLLM reads them as they are, transformers rounds them to {narrow} unless told dtype=float32"


def notes_on_dequantization(coded: Coded) -> Iterator[str]:
    """Say what is lost besides codes."""
    if coded.cache:
        yield f"{len(coded.cache)} scales of an FP8 KV cache are dropped: the result keeps its cache in 16 bits"
    inputs = sum(weight.input_scale is not None for weight in coded.weights) + len(coded.unused)
    if inputs:
        yield f"{inputs} calibrated scales of activations are dropped"
    if coded.bounds:
        yield f"{len(coded.bounds)} upper bounds of activations (`input_scale_ub`) are dropped"
