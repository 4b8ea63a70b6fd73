"""What config.json says of FP8 weights in the dialects besides compressed-tensors, and how it is made to say nothing.

Each block is what vLLM 0.32 reads for its `quant_method` (vllm/model_executor/layers/quantization: fp8.py,
modelopt.py, fbgemm_fp8.py), and for DeepSeek's what transformers' FineGrainedFP8Config takes. Modules that are left
alone are named in full: none of these readers knows regular expressions.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from fp8cli import __version__
from fp8cli.formats.quant_methods import QUANTIZATION_KEYS
from fp8cli.schemes import BLOCK

MODELOPT_FILE: Final = "hf_quant_config.json"
"""ModelOpt's own file beside config.json, which TensorRT-LLM reads."""

QUANTIZER_FILES: Final = (MODELOPT_FILE, "quantize_config.json", "quant_config.json", "recipe.yaml")
"""Files in which quantizers say how they quantized: they would contradict a checkpoint that is not so any more."""

ACTIVATION_BOUND: Final = 1200.0
"""FBGEMM's default for the largest activation; what is larger is cut off. Readers want the key to be there."""

ModelOptAlgorithm = Literal["FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO"]


def native_block(ignored: Sequence[str], *, static: bool) -> dict[str, object]:
    """One scale per tensor, as AutoFP8 writes it. static: activations have a scale from calibration."""
    return {
        "activation_scheme": "static" if static else "dynamic",
        "ignored_layers": list(ignored),
        "quant_method": "fp8",
    }


def deepseek_block(ignored: Sequence[str]) -> dict[str, object]:
    """One scale per 128×128 block, as DeepSeek-V3 has it."""
    return {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "modules_to_not_convert": list(ignored),
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    }


def fbgemm_block(ignored: Sequence[str]) -> dict[str, object]:
    """One scale per channel, as Meta's FP8 models have it."""
    return {
        "activation_scale_ub": ACTIVATION_BOUND,
        "modules_to_not_convert": list(ignored),
        "quant_method": "fbgemm_fp8",
    }


def modelopt_block(algorithm: ModelOptAlgorithm, ignored: Sequence[str], *, kv_cache: bool) -> dict[str, object]:
    """Return the block of config.json, as ModelOpt exports it."""
    cache = {"kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}} if kv_cache else {}
    return {
        "ignore": list(ignored),
        "producer": _PRODUCER,
        "quant_algo": algorithm,
        "quant_method": "modelopt",
        **cache,
    }


def modelopt_file(algorithm: ModelOptAlgorithm, ignored: Sequence[str], *, kv_cache: bool) -> dict[str, object]:
    """Return hf_quant_config.json."""
    inner = {
        "exclude_modules": list(ignored),
        "kv_cache_quant_algo": "FP8" if kv_cache else None,
        "quant_algo": algorithm,
    }
    return {"producer": _PRODUCER, "quantization": inner}


_PRODUCER: Final = {"name": "fp8cli", "version": __version__}


def without_quantization(config: Mapping[str, object]) -> dict[str, object]:
    """Return a config.json that says nothing of quantization, nested configs included."""
    return {
        key: {name: inner for name, inner in value.items() if name not in QUANTIZATION_KEYS}
        if isinstance(value, Mapping)
        else value
        for key, value in config.items()
        if key not in QUANTIZATION_KEYS
    }
