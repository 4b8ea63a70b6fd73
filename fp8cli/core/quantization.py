"""What a config.json alone says about quantization, in words; nothing is said that the config does not say.

Words are given for compressed-tensors (what this tool, llm-compressor and most published FP8 checkpoints write) and
the `fp8` of DeepSeek and transformers. Of any other method, and of a mixture of schemes, only the name is given;
core.dialect says more, because it also knows the tensors.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fp8cli.core.declaration import mapping
from fp8cli.core.declared_methods import read_declaration
from fp8cli.formats.quant_methods import find_quantization

_WORDED: Final = frozenset({"compressed-tensors", "fp8"})
# An INT4 model with an FP8 KV cache is no FP8 checkpoint; a module's name may hold any word.
_NOT_THE_WEIGHTS: Final = frozenset(
    {"ignore", "ignored_layers", "modules_to_not_convert", "exclude_modules", "kv_cache_scheme"}
)


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
    declaration = read_declaration(config, {})
    if declaration is None:
        return None
    kinds = {group.weights.kind for group in declaration.groups if group.weights is not None}
    is_one = kinds == {"E4M3"} and len({group.words for group in declaration.groups}) == 1
    return Quantization(
        method=declaration.method,
        scheme=declaration.scheme,
        words=declaration.words if declaration.method in _WORDED and is_one else None,
        ignored=declaration.ignored,
    )


def mentions_fp8(config: Mapping[str, object]) -> bool:
    """Whether the quantization block speaks of FP8, by name or as 8-bit floats."""
    return any(_is_fp8(value) for value in _walk(mapping(find_quantization(config))))


def _is_fp8(value: object) -> bool:
    match value:
        case str():
            return any(word in value.lower() for word in ("fp8", "float8"))
        case Mapping():
            fields = mapping(value)
            return fields.get("num_bits") == 8 and fields.get("type") == "float"
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
