"""What `config.json` and `recipe.yaml` say about a quantized checkpoint: written for ours, recognised for others'.

Written is what llm-compressor 0.14's `oneshot` writes for the same scheme, key for key, because that is what
vLLM and transformers are tested against. The schema belongs to compressed-tensors and forbids unknown keys: a
key more, and an older vLLM refuses the checkpoint.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from fp8cli.schemes import BLOCK, Scheme

FORMAT_VERSION: Final = "0.19.0"
"""The compressed-tensors version whose format this is. vLLM does not compare it; people reading bug reports do."""

QUANT_METHOD: Final = "compressed-tensors"
QUANTIZATION_CONFIG: Final = "quantization_config"
TARGETS: Final = ("Linear",)
"""Classes of modules that are quantized, as vLLM and transformers name them."""

_DTYPE_KEYS: Final = ("dtype", "torch_dtype")
_TIE_KEY: Final = "tie_word_embeddings"

# What YAML takes for text without quotes, inside brackets: no spaces, no indicators, no start of a number.
_PLAIN: Final = re.compile(
    r"(?![-+.0-9~=<#&*!|>'\"%@`])"
    r"[!-~\xa1-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010fffe]+"
)
_INDICATORS: Final = frozenset(",?[]{}:")
# The words that YAML 1.1 reads as something else than text.
_WORDS: Final = frozenset("yes no true false on off null".split())
_YAML_WIDTH: Final = 88

_OLD_QUANTIZATION_CONFIG: Final = "compression_config"
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


def quantization_config(scheme: Scheme, ignore: Sequence[str]) -> dict[str, object]:
    """Return the `quantization_config` of a checkpoint in `scheme`, all linear layers but those in `ignore`.

    `ignore` must be the full names of the layers left alone, in the order of the model, as `oneshot` lists them.
    """
    group = {
        "format": "float-quantized",
        "input_activations": _arguments(
            dynamic=scheme.dynamic_activations,
            group_size=BLOCK if scheme.activations == "group" else None,
            # Nothing observes an activation whose scale is taken at run time.
            observer=None if scheme.dynamic_activations else "static_minmax",
            strategy=scheme.activations,
        ),
        "output_activations": None,
        "targets": list(TARGETS),
        "weights": _arguments(
            block_structure=[BLOCK, BLOCK] if scheme.weights == "block" else None,
            dynamic=False,
            observer="memoryless_minmax",
            strategy=scheme.weights,
        ),
    }
    return {
        "config_groups": {"group_0": group},
        "format": "float-quantized",
        "global_compression_ratio": None,
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "quant_method": QUANT_METHOD,
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": FORMAT_VERSION,
    }


def _arguments(
    *,
    strategy: str,
    dynamic: bool,
    observer: str | None,
    group_size: int | None = None,
    block_structure: list[int] | None = None,
) -> dict[str, object]:
    return {
        "actorder": None,
        "block_structure": block_structure,
        "dynamic": dynamic,
        "group_size": group_size,
        "num_bits": 8,
        "observer": observer,
        "observer_kwargs": {},
        "scale_dtype": None,
        "strategy": strategy,
        "symmetric": True,
        "type": "float",
        "zp_dtype": None,
    }


def patch_config(
    config: Mapping[str, object],
    quantization: Mapping[str, object],
    *,
    dtype: str | None = None,
    tie_word_embeddings: bool | None = None,
) -> dict[str, object]:
    """Return a model's `config` with its quantization added, and nothing else changed but what is asked for.

    `dtype` (as `bfloat16`) is set when the weights were cast, `tie_word_embeddings` when a tied output layer was
    quantized and so became a tensor of its own. Both go wherever the config has them, `text_config` included, so
    that it cannot contradict itself; a config that lacks them gets them at the top.
    """
    patched = {**config, QUANTIZATION_CONFIG: dict(quantization)}
    sections = [patched]
    if isinstance(text := config.get("text_config"), Mapping):
        patched["text_config"] = nested = dict(text)
        sections.append(nested)
    if dtype is not None:
        _set(sections, _DTYPE_KEYS, dtype)
    if tie_word_embeddings is not None:
        _set(sections, (_TIE_KEY,), tie_word_embeddings)
    return patched


def _set(sections: Sequence[dict[str, object]], keys: Sequence[str], value: object) -> None:
    places = [(section, key) for section in sections for key in keys if key in section]
    for section, key in places or [(sections[0], keys[0])]:
        section[key] = value


def config_text(
    config: Mapping[str, object],
    quantization: Mapping[str, object],
    *,
    dtype: str | None = None,
    tie_word_embeddings: bool | None = None,
) -> str:
    """Return `patch_config` as the text of config.json, as `oneshot` formats it: sorted, ASCII, no last newline."""
    patched = patch_config(config, quantization, dtype=dtype, tie_word_embeddings=tie_word_embeddings)
    return json.dumps(patched, indent=2, sort_keys=True)


def recipe_text(scheme: Scheme, targets: Sequence[str], ignore: Sequence[str]) -> str:
    """Return `recipe.yaml`: what was asked for, in the words of llm-compressor, which can run it again.

    `ignore` is the user's list, patterns (`re:…`) and all, not the layers it resolved to.
    """
    return (
        "default_stage:\n"
        "  default_modifiers:\n"
        "    QuantizationModifier:\n"
        f"{_yaml_list('targets', targets)}\n"
        f"{_yaml_list('ignore', ignore)}\n"
        f"      scheme: {scheme.name}\n"
        "      bypass_divisibility_checks: false\n"
        f"      requires_calibration_data: {str(scheme.needs_calibration).lower()}\n"
    )


def _yaml_list(key: str, items: Sequence[str]) -> str:
    lines, line = [], f"      {key}: ["
    for number, item in enumerate(items):
        if number:
            line += ","
        # As PyYAML breaks lines: before the first item that would begin beyond the width.
        if len(line) > _YAML_WIDTH:
            lines.append(line)
            line = " " * 8
        elif number:
            line += " "
        line += _yaml_scalar(item)
    return "\n".join([*lines, line + "]"])


def _yaml_scalar(text: str) -> str:
    if _PLAIN.fullmatch(text) and not _INDICATORS.intersection(text) and text.lower() not in _WORDS:
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return '"' + "".join(ch if ch.isprintable() and ch not in '"\\' else f"\\U{ord(ch):08X}" for ch in text) + '"'


def recognise(
    config: Mapping[str, object], side_files: Iterable[str], tensors: Iterable[tuple[str, str]]
) -> str | None:
    """Say in words how a checkpoint is quantized already, or return None if nothing says that it is.

    Looks at config.json (also at the configs nested in it), at the names of the files beside it, and at last at
    the (name, dtype tag) pairs of the tensors, for a quantized checkpoint whose config was lost.
    """
    found = _quantization_in(config)
    if found is not None:
        method = _name_method(found)
        describe = _METHODS.get(method) if isinstance(method, str) else None
        if describe is not None:
            return describe(found)
        if method is None:
            return "quantized by a method that its config does not name"
        return f"quantized by an unknown method `{method}`"
    if "quantization" in config:
        return "MLX (`quantization` in config.json)"
    names = set(side_files)
    for name, words in _SIDE_FILES.items():
        if name in names:
            return words
    return _recognise_tensors(tensors)


def _quantization_in(config: Mapping[str, object]) -> Mapping[str, object] | None:
    nested = [section for section in config.values() if isinstance(section, Mapping)]
    for section in (config, *nested):
        for key in (QUANTIZATION_CONFIG, _OLD_QUANTIZATION_CONFIG):
            found = section.get(key)
            if isinstance(found, Mapping):
                return found
            if found is not None:
                return {"quant_method": found}
    return None


def _name_method(quantization: Mapping[str, object]) -> object:
    method = quantization.get("quant_method")
    if method is not None:
        return method.lower() if isinstance(method, str) else method
    # Before quant_method was common.
    if quantization.get("load_in_8bit") or quantization.get("load_in_4bit"):
        return "bitsandbytes"
    if "config_groups" in quantization:
        return QUANT_METHOD
    return None


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
