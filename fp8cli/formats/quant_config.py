"""What `config.json` and `recipe.yaml` say about a checkpoint that this tool quantized.

Written is what llm-compressor 0.14's `oneshot` writes for the same scheme, key for key, because that is what
vLLM and transformers are tested against. The schema belongs to compressed-tensors and forbids unknown keys: a
key more, and an older vLLM refuses the checkpoint.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from fp8cli.schemes import BLOCK, KvCache, Scheme

FORMAT_VERSION: Final = "0.19.0"
"""The compressed-tensors version whose format this is. vLLM does not compare it; people reading bug reports do."""

QUANT_METHOD: Final = "compressed-tensors"
QUANTIZATION_CONFIG: Final = "quantization_config"
TARGETS: Final = ("Linear",)
"""Classes of modules that are quantized, as vLLM and transformers name them."""

_CACHE_STRATEGIES: Final[Mapping[KvCache, str]] = {"tensor": "tensor", "head": "attn_head"}

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


def quantization_config(
    scheme: Scheme | None, ignore: Sequence[str], *, kv_cache: KvCache | None = None
) -> dict[str, object]:
    """Return the `quantization_config` of a checkpoint in `scheme`, all linear layers but those in `ignore`.

    `ignore` must be the full names of the layers left alone, in the order of the model, as `oneshot` lists them.
    scheme None: no layer is quantized, the KV cache alone is.
    """
    packing = "dense" if scheme is None else "float-quantized"
    return {
        "config_groups": {} if scheme is None else {"group_0": _group(scheme)},
        "format": packing,
        "global_compression_ratio": None,
        "ignore": list(ignore),
        "kv_cache_scheme": None if kv_cache is None else _cache_arguments(kv_cache),
        "quant_method": QUANT_METHOD,
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": FORMAT_VERSION,
    }


def _group(scheme: Scheme) -> dict[str, object]:
    return {
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


def _cache_arguments(kv_cache: KvCache) -> dict[str, object]:
    # Named although it is only history by now: llm-compressor's default, a moving average that hardly moves, gives
    # scales 9 to 18 percent too small, and so does whoever runs the recipe again without it.
    return _arguments(strategy=_CACHE_STRATEGIES[kv_cache], dynamic=False, observer="static_minmax")


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
    quantization: Mapping[str, object] | None,
    *,
    dtype: str | None = None,
    tie_word_embeddings: bool | None = None,
) -> dict[str, object]:
    """Return a model's `config` with its quantization, if any, added, and nothing else changed but what is asked for.

    `dtype` (as `bfloat16`) is set when the weights were cast, `tie_word_embeddings` when a tied output layer was
    quantized and so became a tensor of its own. Both go wherever the config has them, `text_config` included, so
    that it cannot contradict itself; a config that lacks them gets them at the top.
    """
    patched = dict(config)
    if quantization is not None:
        patched[QUANTIZATION_CONFIG] = dict(quantization)
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
    quantization: Mapping[str, object] | None,
    *,
    dtype: str | None = None,
    tie_word_embeddings: bool | None = None,
) -> str:
    """Return `patch_config` as the text of config.json, as `oneshot` formats it: sorted, ASCII, no last newline."""
    patched = patch_config(config, quantization, dtype=dtype, tie_word_embeddings=tie_word_embeddings)
    return json.dumps(patched, indent=2, sort_keys=True)


def recipe_text(
    scheme: Scheme | None, targets: Sequence[str], ignore: Sequence[str], *, kv_cache: KvCache | None = None
) -> str:
    """Return `recipe.yaml`: what was asked for, in the words of llm-compressor, which can run it again.

    `ignore` is the user's list, patterns (`re:…`) and all, not the layers it resolved to.
    """
    weights = "" if scheme is None else f"      scheme: {scheme.name}\n"
    needs_data = kv_cache is not None or (scheme is not None and scheme.needs_calibration)
    return (
        "default_stage:\n"
        "  default_modifiers:\n"
        "    QuantizationModifier:\n"
        f"{_yaml_list('targets', targets)}\n"
        f"{_yaml_list('ignore', ignore)}\n"
        f"{weights}{_recipe_of_cache(kv_cache)}"
        "      bypass_divisibility_checks: false\n"
        f"      requires_calibration_data: {str(needs_data).lower()}\n"
    )


def _recipe_of_cache(kv_cache: KvCache | None) -> str:
    """Return the recipe's lines on the KV cache, in the order of compressed-tensors' own fields."""
    if kv_cache is None:
        return ""
    return (
        "      kv_cache_scheme:\n"
        "        num_bits: 8\n"
        "        type: float\n"
        "        symmetric: true\n"
        "        group_size: null\n"
        f"        strategy: {_CACHE_STRATEGIES[kv_cache]}\n"
        "        block_structure: null\n"
        "        dynamic: false\n"
        "        actorder: null\n"
        "        scale_dtype: null\n"
        "        zp_dtype: null\n"
        "        observer: static_minmax\n"
        "        observer_kwargs: {}\n"
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
