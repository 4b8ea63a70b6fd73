"""The dialects that `fp8 convert` writes: which schemes each has, how it names, shapes and stores scales.

Facts are vLLM 0.32's (vllm/model_executor/layers/quantization) and, for DeepSeek's, transformers 5's. Weights are the
same E4M3 codes [rows, columns] in all of them; only scales and config.json differ:

    dialect             weight scale                              dtype    activations  keys and values
    compressed-tensors  weight_scale [1] [rows, 1] [a, b]         model's  input_scale  self_attn.k_scale
    fp8                 weight_scale []                           F32      input_scale  self_attn.k_scale
    deepseek            weight_scale_inv [a, b]                   F32      -            self_attn.k_scale
    modelopt            weight_scale [] [rows] [a, 1, b, 1]       F32      input_scale  self_attn.k_proj.k_scale
    fbgemm              weight_scale [rows, 1]                    F32      -            -

Every scale multiplies, `weight_scale_inv` too. compressed-tensors stores scales in the dtype of the model; where that
would cost bits they stay F32, which vLLM reads as well; transformers 5 rounds them when it loads the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.core.converting.coded import Activations, DialectName
from fp8cli.core.inspection.pairing import Granularity
from fp8cli.core.serving.command_line import load_options
from fp8cli.errors import UsageError
from fp8cli.formats.dialect_configs import (
    MODELOPT_FILE,
    ModelOptAlgorithm,
    deepseek_block,
    fbgemm_block,
    modelopt_block,
    modelopt_file,
    native_block,
)
from fp8cli.formats.quant_config import quantization_config
from fp8cli.schemes import FP8, FP8_BLOCK, FP8_DYNAMIC, KvCache, Scheme, WeightGranularity

Shape = tuple[int, ...]

FP8_TENSOR: Final = Scheme(
    name="FP8 per tensor, dynamic",
    suffix="FP8-tensor",
    summary="E4M3 weights per tensor, activations per token at run time",
    weights="tensor",
    activations="token",
    dynamic_activations=True,
    needs_calibration=False,
    native_capability=(8, 9),
)
"""What AutoFP8 calls dynamic. `fp8 quantize` has no word for it: a scale per channel is better and costs nothing."""

_ALGORITHMS: Final[Mapping[WeightGranularity, ModelOptAlgorithm]] = {
    "tensor": "FP8",
    "channel": "FP8_PER_CHANNEL_PER_TOKEN",
    "block": "FP8_PB_WO",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One dialect to write."""

    name: DialectName
    called: str
    """By the name people know it by."""
    schemes: tuple[Scheme, ...]
    """What it has words for; the first that needs no data is what is requantized to."""
    block: Callable[[Scheme, Sequence[str], KvCache | None], Mapping[str, object]]
    """The quantization_config for a scheme, ignored modules and a KV cache."""
    ending: str = "weight_scale"
    """Last part of a weight scale's name."""
    in_model_dtype: bool = False
    """Whether scales are stored in the dtype of the model where they lose nothing by it; else they are F32."""
    cache: str | None = "{attention}.{kind}_scale"
    """Where the scales of keys and values lie; None: there is no place for them."""
    cache_per_head: bool = False
    """Whether they may be one for each KV head."""
    cache_is_declared: bool = False
    """Whether config.json says that there is a quantized cache; else whoever serves must ask for it."""
    lowest_capability: tuple[int, int] = (7, 5)
    """Compute capability from which vLLM loads it."""
    experts: bool = True
    """Whether vLLM loads the experts of a mixture from it."""
    serve_options: tuple[str, ...] = ()
    """What `vllm serve` must be told to load it."""

    def scheme_of(self, granularity: Granularity, activations: Activations) -> Scheme | None:
        """Return the scheme with that form; None if the dialect has no words for it."""
        return next((each for each in self.schemes if form_of(each) == (granularity, activations)), None)

    def scale_shape(self, scheme: Scheme, rows: int, columns: int) -> Shape:
        """Shape of a weight scale for a weight [rows, columns]."""
        shape = scheme.scale_shape(rows, columns)
        match self.name, scheme.weights:
            case "modelopt", "channel":
                return (rows,)
            case "modelopt", "block":
                return (shape[0], 1, shape[1], 1)
            case "modelopt" | "fp8", "tensor":
                return ()
            case _:
                return shape

    @property
    def scalar(self) -> Shape:
        """Shape of a single number, such as the scale of an activation."""
        return (1,) if self.name == "compressed-tensors" else ()

    def side_files(self, scheme: Scheme, kept: Sequence[str], kv_cache: KvCache | None) -> Mapping[str, object]:
        """What lies beside config.json, by name."""
        if self.name != "modelopt":
            return {}
        return {MODELOPT_FILE: modelopt_file(_ALGORITHMS[scheme.weights], kept, kv_cache=kv_cache is not None)}


def form_of(scheme: Scheme) -> tuple[Granularity, Activations]:
    """What shares a scale in the weights and activations of a scheme."""
    match scheme.activations:
        case "token" | "group" as activations:
            return scheme.weights, activations
        case "tensor":
            return scheme.weights, "tensor at run time" if scheme.dynamic_activations else "static"


_ALL: Final = (
    Target(
        name="compressed-tensors",
        called="compressed-tensors",
        schemes=(FP8_DYNAMIC, FP8_BLOCK, FP8, FP8_TENSOR),
        block=lambda scheme, kept, cache: quantization_config(scheme, kept, kv_cache=cache),
        in_model_dtype=True,
        cache_per_head=True,
        cache_is_declared=True,
    ),
    Target(
        name="fp8",
        called="native fp8 (AutoFP8)",
        schemes=(FP8_TENSOR, FP8),
        block=lambda scheme, kept, _: native_block(kept, static=not scheme.dynamic_activations),
    ),
    Target(
        name="deepseek",
        called="DeepSeek block FP8",
        schemes=(FP8_BLOCK,),
        block=lambda _scheme, kept, _cache: deepseek_block(kept),
        ending="weight_scale_inv",
    ),
    Target(
        name="modelopt",
        called="ModelOpt",
        schemes=(FP8_DYNAMIC, FP8_BLOCK, FP8),
        block=lambda scheme, kept, cache: modelopt_block(_ALGORITHMS[scheme.weights], kept, kv_cache=cache is not None),
        cache="{attention}.{kind}_proj.{kind}_scale",
        cache_is_declared=True,
        lowest_capability=(8, 0),
    ),
    Target(
        name="fbgemm",
        called="FBGEMM FP8",
        schemes=(FP8_DYNAMIC,),
        block=lambda _scheme, kept, _cache: fbgemm_block(kept),
        cache=None,
        lowest_capability=(8, 0),
        experts=False,
        serve_options=load_options("fbgemm_fp8"),
    ),
)
TARGETS: Final[Mapping[str, Target]] = {target.name: target for target in _ALL}

_ALIASES: Final[Mapping[str, DialectName]] = {
    "ct": "compressed-tensors",
    "autofp8": "fp8",
    "finegrained": "deepseek",
    "fbgemm-fp8": "fbgemm",
}


def target_named(word: str) -> Target:
    """Return the dialect that a word of --to stands for, in any case. Raises UsageError for one that is none."""
    plain = word.lower().replace("_", "-")
    found = TARGETS.get(_ALIASES.get(plain, plain))
    if found is None:
        message = f"`{word}` is no dialect of FP8 that can be written"
        raise UsageError(message, hint=f"--to takes one of {', '.join(TARGETS)}")
    return found
