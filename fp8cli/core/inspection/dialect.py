"""What a checkpoint is: by whom it was quantized, how, and which of its tensors are codes and scales.

Config and tensors are both asked, and each is believed for what it knows: the config for what was meant, the
tensors for what is there. Where the two differ is for core.inspection.consistency to say.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fp8cli.core.inspection.declaration import Declaration, kv_words
from fp8cli.core.inspection.declared_methods import read_declaration
from fp8cli.core.inspection.groups import GroupFinder
from fp8cli.core.inspection.pairing import Granularity, QuantizedWeight, is_fp8_weight, pair
from fp8cli.core.inspection.scale_names import scale_label
from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.formats.quant_methods import recognise
from fp8cli.formats.safetensors import DTYPES

__all__ = ["Dialect", "Granularity", "QuantizedWeight", "recognise_dialect"]

_WORTH_NAMING: Final = 0.01
"""Share of the bytes from which on a second dtype of an unquantized checkpoint is named."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a checkpoint is quantized, or that it is not."""

    name: str
    """Such as `compressed-tensors`, `DeepSeek block FP8`, `ModelOpt (FP8)`, `unquantized BF16`."""
    words: str
    """The scheme in words: weights and activations, each with what shares a scale, and when it is taken."""
    scheme: str | None
    """The preset of schemes.py that it equals in every word."""
    format: str | None
    """How compressed-tensors packs the codes, as the config says."""
    kv_cache: str | None
    """How keys and values are cached, in words; None if not quantized."""
    ignored: tuple[str, ...]
    """Names and patterns of the modules that the config leaves alone."""
    weights: tuple[QuantizedWeight, ...]
    """The FP8 weights among the tensors."""
    block: tuple[int, int] | None
    """Rows and columns that share one scale in most of the weights that have blocks or groups."""
    labels: Mapping[str, str]
    """Tensor → what it is called as a scale, for everything that is no weight but undoes codes."""
    declaration: Declaration | None
    """What the configs say, as far as they say anything."""

    @cached_property
    def finder(self) -> GroupFinder:
        """Which modules the config means with each of its groups."""
        return GroupFinder.of(self.declaration)

    @property
    def is_quantized(self) -> bool:
        """Whether anything says that it is."""
        return self.declaration is not None or bool(self.weights) or bool(self.labels)


def recognise_dialect(survey: Survey) -> Dialect:
    """Tell what a checkpoint is. Never raises for a damaged one: what cannot be known is said to be unknown."""
    config = survey.config or {}
    declaration = read_declaration(config, survey.side_configs)
    dtypes = {name: tensor.info.dtype for name, tensor in survey.tensors.items()}
    labels = {name: label for name in dtypes if (label := scale_label(name, dtypes)) is not None}
    finder = GroupFinder.of(declaration)
    weights = tuple(
        pair(name, survey.tensors, finder.group_of_weight(name))
        for name, tensor in survey.tensors.items()
        if is_fp8_weight(tensor, labels.get(name))
    )
    name, words = _describe(survey, declaration, weights)
    blocks = Counter(weight.block for weight in weights if weight.block is not None)
    return Dialect(
        name=name,
        words=words,
        scheme=None if declaration is None else declaration.scheme,
        format=None if declaration is None else declaration.format,
        kv_cache=None if declaration is None or declaration.kv_cache is None else kv_words(declaration.kv_cache),
        ignored=() if declaration is None else declaration.ignored,
        weights=weights,
        block=blocks.most_common(1)[0][0] if blocks else None,
        labels=labels,
        declaration=declaration,
    )


def _describe(survey: Survey, declaration: Declaration | None, weights: Sequence[QuantizedWeight]) -> tuple[str, str]:
    """Name of the dialect, and the scheme in words."""
    if declaration is not None:
        return declaration.name, declaration.words or _without_words(declaration)
    if weights:
        return "FP8 without a config", f"{_weights_in_words(survey, weights)}; activations unknown"
    pairs = ((name, tensor.info.dtype) for name, tensor in survey.tensors.items())
    recognised = recognise(survey.config or {}, survey.files, pairs)
    if recognised is not None:
        return recognised, recognised
    if not survey.tensors:
        return "unknown", "no tensor of it can be read"
    name = f"unquantized {_dtypes_in_words(survey.tensors)}"
    return name, "nothing is quantized"


def _without_words(declaration: Declaration) -> str:
    if declaration.groups:
        return "a scheme that its config describes in words unknown here"
    if declaration.is_cache_alone:
        return "only the KV cache is quantized"
    return "how its weights are quantized is not known here"


def _weights_in_words(survey: Survey, weights: Sequence[QuantizedWeight]) -> str:
    kinds = Counter(_weight_in_words(survey.tensors[weight.name], weight) for weight in weights)
    return "; ".join(kind for kind, _ in kinds.most_common())


def _weight_in_words(tensor: StoredTensor, weight: QuantizedWeight) -> str:
    kind = tensor.info.dtype.removeprefix("F8_")
    rows, columns = weight.block or (0, 0)
    match weight.granularity:
        case "block":
            return f"{kind} weights per {rows}×{columns} block"
        case "group":
            return f"{kind} weights per group of {columns}"
        case None if weight.scale is None:
            return f"{kind} weights without scales"
        case None:
            return f"{kind} weights with scales of unknown shapes"
        case _:
            return f"{kind} weights per {weight.granularity}"


def _dtypes_in_words(tensors: Mapping[str, StoredTensor]) -> str:
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.info.dtype] += tensor.info.bytes
    floats = Counter({dtype: size for dtype, size in sizes.items() if DTYPES[dtype].floating}) or sizes
    total = sum(floats.values())
    (first, _), *others = floats.most_common()
    named = [first, *(dtype for dtype, size in others if size >= _WORTH_NAMING * total)]
    return " and ".join(_dtype_name(dtype) for dtype in named)


def _dtype_name(dtype: str) -> str:
    return {"F16": "FP16", "F32": "FP32", "F64": "FP64"}.get(dtype, dtype)
