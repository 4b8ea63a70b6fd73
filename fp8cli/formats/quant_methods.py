"""By which method a checkpoint is quantized already, told by its config, by the files beside it, by its tensors.

Every method has one row here, whether this tool can do more with it or only knows its name.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from fp8cli.formats.quant_config import QUANT_METHOD, QUANTIZATION_CONFIG

QUANTIZATION_KEYS: Final = (QUANTIZATION_CONFIG, "compression_config")
"""Keys of a config.json under which its quantization stands; the second is of old."""
# A quantizer's own file beside config.json; what it says is in config.json too, except in old checkpoints.
_SIDE_FILES: Final = {
    "hf_quant_config.json": "NVIDIA ModelOpt (`hf_quant_config.json`)",
    "quantize_config.json": "GPTQ (`quantize_config.json`)",
    "quant_config.json": "AWQ (`quant_config.json`)",
}
# Endings of tensor names that only quantizers use, most telling first.
_TENSOR_ENDINGS: Final = (
    (".weight_scale_inv", "DeepSeek-style block FP8"),
    (".weight_packed", "compressed-tensors"),
    (".qweight", "GPTQ or AWQ"),
    (".SCB", "bitsandbytes"),
    (".absmax", "bitsandbytes"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes"),
    ("_proj_blocks", "MXFP4, as gpt-oss"),
    (".weight_scale", "scaled weights"),
)
_NARROW_FLOATS: Final = ("F8_", "F6_", "F4")


def recognise(
    config: Mapping[str, object], side_files: Iterable[str], tensors: Iterable[tuple[str, str]]
) -> str | None:
    """Say in words how a checkpoint is quantized already, or return None if nothing says that it is.

    Looks at config.json (also at the configs nested in it), at the names of the files beside it, and at last at
    the (name, dtype tag) pairs of the tensors, for a quantized checkpoint whose config was lost.
    """
    found = find_quantization(config)
    if found is not None:
        return describe_method(found)
    if "quantization" in config:
        return "MLX (`quantization` in config.json)"
    names = set(side_files)
    for name, words in _SIDE_FILES.items():
        if name in names:
            return words
    return _recognise_tensors(tensors)


def find_quantization(config: Mapping[str, object]) -> object:
    """Return the quantization block of a config.json, also of a config nested in it; None if it has none.

    It should be an object, but that is up to whoever wrote the file.
    """
    nested = [section for section in config.values() if isinstance(section, Mapping)]
    for section in (config, *nested):
        for key in QUANTIZATION_KEYS:
            found = section.get(key)
            if found is not None:
                return found
    return None


def name_method(quantization: Mapping[str, object]) -> object:
    """Return the method of a quantization block in lower case, if it is text as it should be; None if none is named."""
    method = quantization.get("quant_method")
    if method is not None:
        return method.lower() if isinstance(method, str) else method
    # Before quant_method was common.
    if quantization.get("load_in_8bit") or quantization.get("load_in_4bit"):
        return "bitsandbytes"
    if "config_groups" in quantization:
        return QUANT_METHOD
    return None


def describe_method(quantization: object) -> str:
    """Say in words what a quantization block declares."""
    if not isinstance(quantization, Mapping):
        return f"quantized by an unknown method `{quantization}`"
    method = name_method(quantization)
    describe = _METHODS.get(method) if isinstance(method, str) else None
    if describe is not None:
        return describe(quantization)
    if method is None:
        return "quantized by a method that its config does not name"
    return f"quantized by an unknown method `{method}`"


def _describe_compressed_tensors(quantization: Mapping[str, object]) -> str:
    groups = quantization.get("config_groups")
    groups = groups if isinstance(groups, Mapping) else {}
    weights = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
    kinds = sorted({_describe_weights(arguments) for arguments in weights if isinstance(arguments, Mapping)})
    if not kinds:
        kinds = ["KV cache only" if quantization.get("kv_cache_scheme") else "no weights"]
    return f"compressed-tensors {quantization.get('format')} ({'; '.join(kinds)})"


def _describe_weights(arguments: Mapping[str, object]) -> str:
    kind = "FP" if arguments.get("type") == "float" else "INT"
    strategy, group, block = (arguments.get(key) for key in ("strategy", "group_size", "block_structure"))
    per = f"{strategy}"
    if isinstance(block, list) and strategy == "block":
        per = f"block of {'×'.join(str(side) for side in block)}"
    elif strategy in {"group", "tensor_group"}:
        per = f"group of {group}"
    return f"{kind}{arguments.get('num_bits')}, per {per}"


def _describe_fp8(quantization: Mapping[str, object]) -> str:
    block = quantization.get("weight_block_size")
    if block is not None:
        return "DeepSeek-style block FP8 (quant_method `fp8`, `weight_scale_inv`)"
    activations = quantization.get("activation_scheme")
    return f"AutoFP8, per-tensor FP8 (quant_method `fp8`, {activations} activations)"


def _describe_modelopt(quantization: Mapping[str, object]) -> str:
    inner = quantization.get("quantization")
    source = inner if isinstance(inner, Mapping) else quantization
    return f"NVIDIA ModelOpt ({source.get('quant_algo') or quantization.get('quant_method')})"


def _describe_bits(name: str) -> Callable[[Mapping[str, object]], str]:
    def describe(quantization: Mapping[str, object]) -> str:
        bits = quantization.get("bits", quantization.get("w_bit"))
        return name if bits is None else f"{name} ({bits}-bit)"

    return describe


def _describe_bitsandbytes(quantization: Mapping[str, object]) -> str:
    return f"bitsandbytes ({'4' if quantization.get('load_in_4bit') else '8'}-bit)"


_METHODS: Final[Mapping[str, Callable[[Mapping[str, object]], str]]] = {
    QUANT_METHOD: _describe_compressed_tensors,
    "fp8": _describe_fp8,
    "fbgemm_fp8": lambda _: "FBGEMM FP8, per row (quant_method `fbgemm_fp8`)",
    "modelopt": _describe_modelopt,
    "modelopt_fp4": _describe_modelopt,
    "modelopt_mixed": _describe_modelopt,
    "mxfp4": lambda _: "MXFP4, as gpt-oss (quant_method `mxfp4`)",
    "mxfp8": lambda _: "MXFP8 (quant_method `mxfp8`)",
    "quark": lambda _: "AMD Quark (quant_method `quark`)",
    "torchao": lambda _: "torchao (quant_method `torchao`)",
    "gptq": _describe_bits("GPTQ"),
    "awq": _describe_bits("AWQ"),
    "auto-round": _describe_bits("AutoRound"),
    "intel/auto-round": _describe_bits("AutoRound"),
    "bitsandbytes": _describe_bitsandbytes,
    "hqq": lambda _: "HQQ (quant_method `hqq`)",
    "aqlm": lambda _: "AQLM (quant_method `aqlm`)",
    "quanto": lambda _: "Quanto (quant_method `quanto`)",
    "bitnet": lambda _: "BitNet (quant_method `bitnet`)",
    "exl2": _describe_bits("EXL2"),
    "exl3": _describe_bits("EXL3"),
}


def _recognise_tensors(tensors: Iterable[tuple[str, str]]) -> str | None:
    pairs = list(tensors)
    endings = tuple(ending for ending, _ in _TENSOR_ENDINGS)
    telling = [name for name, _ in pairs if name.endswith(endings)]
    for ending, words in _TENSOR_ENDINGS:
        for name in telling:
            if name.endswith(ending):
                return f"{words}, without a config that says so (`{name}`)"
    for name, dtype in pairs:
        if dtype.startswith(_NARROW_FLOATS):
            return f"{dtype} tensors without a config that says so (`{name}`)"
    return None
