"""What each fault of tensors and of what the config says about them means for whoever loads the checkpoint.

The consequences are those of vLLM 0.32 and transformers 5.17. That a missing scale loads without a word was tried;
where vLLM finds no scale it computes with the one it made room with, −3.4 × 10³⁸.
"""

from collections.abc import Mapping
from typing import Final

from fp8cli.core.findings import Status

_NAN: Final = "vLLM loads this without a word and returns NaN"
_NO_PLACE: Final = "vLLM has no place for the scale and stops: there is no parameter named …weight_scale"
_POISON: Final = "every output that this weight takes part in is NaN"

TENSOR_FAULTS: Final[Mapping[str, tuple[Status, str | None]]] = {
    "activation.missing": ("failed", "vLLM computes with a scale that nobody set, and its answers are noise"),
    "activation.unused": ("warning", "vLLM does not use it; some models stop at a tensor that they have no place for"),
    "cache.missing": ("warning", "vLLM takes 1.0 for it: keys and values beyond ±448 are cut off, small ones lost"),
    "cache.shape": ("failed", "vLLM stops: a scale of the KV cache is one number"),
    "cache.unused": ("warning", "vLLM caches in 16 bits, as if it were not there"),
    "config.absent": ("failed", "loaders take the codes for weights: the model answers with noise"),
    "config.broken": ("failed", "vLLM and transformers stop while reading config.json"),
    "config.format": ("failed", "vLLM chooses the wrong way to load it, or finds none and stops"),
    "config.ignored": (
        "failed",
        "vLLM keeps this module in 16 bits: it stops at the scale, or takes the codes for weights",
    ),
    "config.no_fp8": ("failed", "vLLM casts the weights to FP8 without a scale, or stops"),
    "config.pattern": ("failed", "vLLM stops while reading the config, or ignores the pattern"),
    "config.shards": (
        "failed",
        "vLLM keeps these modules as one and stops: different quantization schemes for its shards",
    ),
    "config.uncovered": ("failed", "vLLM casts the weight to FP8 and looks for a scale that is not there: NaN"),
    "experts.names": ("failed", "vLLM 0.32 knows these experts by other names and stops, or leaves them unloaded"),
    "layers.beyond": ("failed", "the model is built without these layers: vLLM stops at them, transformers skips them"),
    "module.embedding": ("failed", "vLLM has no FP8 embedding and stops: there is no parameter named …weight_scale"),
    "module.head": ("failed", _NO_PLACE),
    "module.router": ("failed", "vLLM holds routers in 16 bits: it stops at the scale, or takes the codes for weights"),
    "mtp.missing": ("warning", "the model answers as before; speculative decoding with these layers does not work"),
    "scale.dtype": ("failed", "loaders read it as something else, or stop"),
    "scale.infinite": ("failed", _POISON),
    "scale.missing": ("failed", _NAN),
    "scale.name": ("failed", _NAN),
    "scale.nan": ("failed", _POISON),
    "scale.negative": ("failed", "what it scales changes its sign, or vLLM takes it for a scale that was never set"),
    "scale.orphan": ("failed", "vLLM stops at a tensor that it has no place for, or the weight is missing"),
    "scale.shape": ("failed", "vLLM stops while loading, or scales the wrong rows"),
    "scale.subnormal": (
        "warning",
        "a scale this small has lost most of its own digits, and processors may flush it to zero",
    ),
    "scale.unquantized": (
        "failed",
        "vLLM casts the weight to FP8 and then multiplies it by the scale, or finds no way to load it",
    ),
    "scale.zero": ("failed", "everything that it scales is read as zero"),
    "scale.zero_point": ("failed", "vLLM stops: no compressed-tensors compatible scheme was found"),
    "tensor.head": ("warning", "loaders use the embedding in its place; if the two differ, this one is lost"),
    "tensor.missing": (
        "failed",
        "vLLM does not notice it in a quantized model; transformers fills it with random numbers",
    ),
    "tensor.none": ("failed", "nothing of the model can be loaded"),
    "tensor.shape": ("failed", "vLLM and transformers stop while loading"),
    "tensor.unknown": ("warning", "transformers skips it; vLLM may stop at a tensor that it has no place for"),
    "weight.dtype": ("failed", "vLLM reads other bits than were meant, or stops"),
}
"""Check → what a fault of it is, and what comes of it."""
