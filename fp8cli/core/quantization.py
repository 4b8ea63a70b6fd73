"""What a config.json says about quantization, in words; nothing is said that the config does not say.

Read are compressed-tensors (what this tool, llm-compressor and most published FP8 checkpoints write) and the
`fp8` of DeepSeek and transformers. Of any other method, and of a mixture of schemes, only the name is given.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.schemes import SCHEMES

_BLOCK_KEYS: Final = ("quantization_config", "compression_config")
_IGNORE_KEYS: Final = ("ignore", "ignored_layers", "modules_to_not_convert", "exclude_modules")
# An INT4 model with an FP8 KV cache is no FP8 checkpoint; a module's name may hold any word.
_NOT_THE_WEIGHTS: Final = frozenset({*_IGNORE_KEYS, "kv_cache_scheme"})


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """A config's quantization block. `scheme` and `words` are None where this tool cannot tell."""

    method: str
    """The value of `quant_method`."""
    scheme: str | None
    """The preset of schemes.py that it agrees with in every word."""
    words: str | None
    """Weights and activations in words, like the summary of a scheme."""
    ignored: tuple[str, ...]
    """Names and patterns of the modules that were left alone."""


def read_quantization(config: Mapping[str, object]) -> Quantization | None:
    """Describe the quantization of a config.json; None if it declares none."""
    block = _find_block(config)
    if block is None:
        return None
    method = block.get("quant_method")
    match method:
        case "compressed-tensors":
            words = _compressed_tensors_words(block)
        case "fp8":
            words = _fp8_words(block)
        case _:
            words = None
    return Quantization(
        method=method if isinstance(method, str) else "unknown method",
        scheme=next((scheme.name for scheme in SCHEMES.values() if scheme.summary == words), None),
        words=words,
        ignored=tuple(name for key in _IGNORE_KEYS for name in _list(block.get(key)) if isinstance(name, str)),
    )


def mentions_fp8(config: Mapping[str, object]) -> bool:
    """Whether the quantization block speaks of FP8, by name or as 8-bit floats."""
    block = _find_block(config)
    return block is not None and any(_is_fp8(value) for value in _walk(block))


def _find_block(config: Mapping[str, object]) -> Mapping[str, object] | None:
    # Models with vision keep the language model's settings, and sometimes this block, under `text_config`.
    for place in (config, _mapping(config.get("text_config"))):
        for key in _BLOCK_KEYS:
            block = _mapping(place.get(key))
            if block:
                return block
    return None


def _compressed_tensors_words(block: Mapping[str, object]) -> str | None:
    groups = [_mapping(group) for group in _mapping(block.get("config_groups")).values()]
    words = {_group_words(group) for group in groups}
    return words.pop() if len(words) == 1 else None


def _group_words(group: Mapping[str, object]) -> str | None:
    weights, activations = _mapping(group.get("weights")), group.get("input_activations")
    if not _is_fp8(weights):
        return None
    weight_words = _granularity(weights)
    if activations is None:
        return f"E4M3 weights {weight_words}, activations left alone" if weight_words else None
    activation_words = _granularity(_mapping(activations))
    match _mapping(activations).get("dynamic"):
        case True:
            when = " at run time"
        case False:
            when = ", calibrated"
        case _:
            return None
    if weight_words is None or activation_words is None or not _is_fp8(activations):
        return None
    return f"E4M3 weights {weight_words}, activations {activation_words}{when}"


def _granularity(arguments: Mapping[str, object]) -> str | None:
    strategy, group_size = arguments.get("strategy"), arguments.get("group_size")
    match strategy:
        case "tensor" | "channel" | "token":
            return f"per {strategy}"
        case "group" if isinstance(group_size, int):
            return f"per group of {group_size}"
        case "block":
            return _block_words(arguments.get("block_structure"))
        case _:
            return None


def _fp8_words(block: Mapping[str, object]) -> str | None:
    """Describe `quant_method: fp8`: with `weight_block_size` DeepSeek's, without it one scale a tensor."""
    if block.get("fmt", "e4m3") != "e4m3":
        return None
    size = block.get("weight_block_size")
    weights = "per tensor" if size is None else _block_words(size)
    if weights is None:
        return None
    match block.get("activation_scheme"):
        case "dynamic" if isinstance(size, list):
            return f"E4M3 weights {weights}, activations per group of {size[-1]} at run time"
        case "dynamic":
            return f"E4M3 weights {weights}, activations at run time"
        case "static":
            return f"E4M3 weights {weights}, activations per tensor, calibrated"
        case _:
            return None


def _block_words(size: object) -> str | None:
    match size:
        case [int() as rows, int() as columns]:
            return f"per {rows}×{columns} block"
        case _:
            return None


def _is_fp8(value: object) -> bool:
    match value:
        case str():
            return any(word in value.lower() for word in ("fp8", "float8"))
        case Mapping():
            return value.get("num_bits") == 8 and value.get("type") == "float"
        case _:
            return False


def _walk(value: object) -> Iterator[object]:
    yield value
    match value:
        case Mapping():
            for key, item in value.items():
                if key not in _NOT_THE_WEIGHTS:
                    yield from _walk(item)
        case list():
            for item in value:
                yield from _walk(item)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()
