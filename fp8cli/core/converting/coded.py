"""What a quantized checkpoint holds, whichever dialect it is in: weights as codes, and every scale by what it is for.

core.inspection reads the dialects; here its reading is made strict. What cannot be understood to the last tensor is
refused, because a scale that is overlooked is a loss that nobody sees.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from shlex import quote
from typing import Final, Literal

from fp8cli.core.inspection.anatomy import Anatomy, dissect
from fp8cli.core.inspection.declaration import FP8_KINDS, Group
from fp8cli.core.inspection.dialect import Dialect, Granularity, QuantizedWeight, recognise_dialect
from fp8cli.core.inspection.scale_names import kind_of
from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.core.quantizing.decoding import Decoding
from fp8cli.core.quantizing.plan import FP8_TAG
from fp8cli.errors import BadInput

Activations = Literal["static", "token", "group", "tensor at run time", "left alone", "unknown"]
"""What shares the scale of an activation; all but `static` take it at run time."""
DialectName = Literal["compressed-tensors", "fp8", "deepseek", "modelopt", "fbgemm"]
"""The words of `fp8 convert --to`."""

_DECODABLE: Final = frozenset({"F32", "BF16", "F16", "F8_E8M0", "U8"})
_DIGITS: Final = 10
"""So many digits are no number of a layer, but a name from a stranger."""
_INPUT_SCALES: Final = ("input_scale", "activation_scale")
_BOUND: Final = "input_scale_ub"
# Where quantizers put the scales of keys and values; the last is one for both.
_CACHE_PLACES: Final = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"(?P<attention>.+)\.(?P<kind>[kv])_proj\.(?:[kv]_scale|output_scale)",
        r"(?P<attention>.+)\.(?:attn|q\w*v_proj)\.(?P<kind>[kv])_scale",
        r"(?P<attention>.+)\.(?P<kind>[kv])_scale",
        r"(?P<attention>.+)\.kv_scale",
    )
)
_METHODS: Final[Mapping[str, DialectName]] = {
    "compressed-tensors": "compressed-tensors",
    "fbgemm_fp8": "fbgemm",
    "modelopt": "modelopt",
    "modelopt_mixed": "modelopt",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CodedWeight:
    """The codes of an nn.Linear, and what undoes them."""

    module: str
    """As its tensors are named on disk."""
    codes: StoredTensor
    scale: StoredTensor
    granularity: Granularity
    decoding: Decoding
    activations: Activations
    input_scale: StoredTensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheScale:
    """A scale of the keys (`k`) or values (`v`) of one attention layer."""

    attention: str
    kind: Literal["k", "v"]
    tensor: StoredTensor


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A checkpoint with FP8 in it, understood to the last tensor."""

    label: str
    """What messages call it."""
    name: DialectName | None
    """None: a dialect that this tool reads and does not write."""
    called: str
    """The dialect by the name people know it by."""
    words: str
    """Its scheme in words."""
    weights: tuple[CodedWeight, ...]
    cache: tuple[CacheScale, ...]
    bounds: tuple[StoredTensor, ...]
    """FBGEMM's upper bounds of activations, one for each weight."""
    unused: tuple[StoredTensor, ...]
    """Scales of activations that the config does not mention."""
    kept: tuple[str, ...]
    """Modules that are an nn.Linear, or are computed like one, and are not quantized."""
    roles: Mapping[str, str]
    """What each tensor is to the model, by name; scales are not among them."""
    powers_of_two: bool
    """Whether the config says that the scales of activations are powers of two (DeepSeek's `ue8m0`)."""

    @cached_property
    def forms(self) -> tuple[tuple[Granularity, Activations], ...]:
        """What shares a scale in its weights and activations; more than one where weights differ."""
        return tuple(dict.fromkeys((weight.granularity, weight.activations) for weight in self.weights))

    @property
    def cache_per_head(self) -> bool:
        """Whether every KV head has scales of its own."""
        return any(scale.tensor.info.elements != 1 for scale in self.cache)


def read_coded(survey: Survey) -> Coded:
    """Understand a checkpoint. Raises BadInput, in one sentence, for what is not FP8 or is not understood."""
    dialect = recognise_dialect(survey)
    anatomy = dissect(survey, dialect)
    _refuse_what_is_not_fp8(survey, dialect, anatomy)
    weights = tuple(_weight(weight, survey, dialect) for weight in dialect.weights)
    inputs = {weight.input_scale.name for weight in weights if weight.input_scale is not None}
    scales = {weight.scale.name for weight in weights}
    cache: list[CacheScale] = []
    bounds: list[StoredTensor] = []
    unused: list[StoredTensor] = []
    for name, label in dialect.labels.items():
        tensor = survey.tensors[name]
        if name in scales or name in inputs:
            continue
        if label == _BOUND:
            bounds.append(tensor)
        elif kind_of(label) == "activation":
            unused.append(tensor)
        elif found := tuple(_cache_scales(tensor)):
            cache += found
        else:
            message = f"`{name}` undoes codes in a way that is not known here"
            raise BadInput(message, hint=f"fp8 inspect {quote(survey.label)} shows what it is")
    declaration = dialect.declaration
    return Coded(
        label=survey.label,
        name=_name(dialect),
        called=dialect.name,
        words=dialect.words,
        weights=weights,
        cache=tuple(cache),
        bounds=tuple(bounds),
        unused=tuple(unused),
        kept=_kept(anatomy),
        roles={name: part.role for name, part in anatomy.parts.items()},
        powers_of_two=declaration is not None
        and declaration.method == "fp8"
        and _says_powers_of_two(survey.config or {}),
    )


def _refuse_what_is_not_fp8(survey: Survey, dialect: Dialect, anatomy: Anatomy) -> None:
    if not dialect.is_quantized:
        message = f"`{survey.label}` is not quantized: {dialect.name}"
        raise BadInput(message, hint=f"fp8 quantize {quote(survey.label)} takes it to FP8")
    known = {weight.name for weight in dialect.weights}
    others = [name for name, part in anatomy.parts.items() if part.is_codes and name not in known]
    cache_alone = dialect.declaration is not None and dialect.declaration.is_cache_alone
    if others or (not known and not cache_alone):
        what = f", such as `{others[0]}`" if others else ""
        message = f"`{survey.label}` holds codes that are not FP8{what}: {dialect.name}, {dialect.words}"
        raise BadInput(message, hint="only FP8 is converted and dequantized; fp8 inspect shows what it holds")


def _weight(weight: QuantizedWeight, survey: Survey, dialect: Dialect) -> CodedWeight:
    codes = survey.tensors[weight.name]
    info = codes.info
    if info.dtype != FP8_TAG or len(info.shape) not in {2, 3}:
        message = f"`{weight.name}` is {info.dtype} {list(info.shape)}, where only matrices of {FP8_TAG} can be decoded"
        raise BadInput(message, hint=f"fp8 inspect {quote(survey.label)} shows what it holds")
    if weight.scale is None or weight.granularity is None:
        what = "has no scale" if weight.scale is None else f"has a scale `{weight.scale}` that fits no way of scaling"
        message = f"`{weight.name}` {what}, so its codes mean nothing"
        raise BadInput(message, hint=f"fp8 inspect {quote(survey.label)} shows all that is missing; fetch it again")
    scale = survey.tensors[weight.scale]
    decoding = Decoding(scale=scale.info, shard=scale.file, block=_block(weight, info.shape, scale.info.shape))
    rows, columns = flat_shape(info.shape)
    experts_end_in_blocks = len(info.shape) == 2 or info.shape[1] % decoding.block[0] == 0 or rows == decoding.block[0]
    if scale.info.dtype not in _DECODABLE or not decoding.fits(rows, columns) or not experts_end_in_blocks:
        what = f"{scale.info.dtype} {list(scale.info.shape)}"
        message = f"`{scale.name}` is {what}, which is not understood as the scale of {list(info.shape)}"
        raise BadInput(message, hint=f"fp8 inspect {quote(survey.label)} says what it should be")
    activations = _activations(dialect.finder.group_of(weight.module))
    inputs = (survey.tensors.get(f"{weight.module}.{ending}") for ending in _INPUT_SCALES)
    input_scale = next((tensor for tensor in inputs if tensor is not None), None)
    return CodedWeight(
        module=weight.module,
        codes=codes,
        scale=scale,
        granularity=weight.granularity,
        decoding=decoding,
        activations=activations,
        input_scale=input_scale if activations == "static" else None,
    )


def flat_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of a matrix in which the rows of one expert follow those of another."""
    return math.prod(shape[:-1]), shape[-1]


def _block(weight: QuantizedWeight, shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that share one value, of the flat matrix."""
    rows, columns = flat_shape(shape)
    match weight.granularity:
        case "tensor":
            one_for_all = math.prod(scale) == 1
            high, wide = rows if one_for_all else shape[-2], columns
        case "channel" if len(shape) == 3 and scale[-1] == columns != 1:
            high, wide = 1, 1  # Of the columns of stored-transposed experts: that fits no flat matrix.
        case "channel":
            high, wide = 1, columns
        case _:
            high, wide = weight.block or (1, columns)
    return max(high, 1), max(wide, 1)


def _activations(group: Group | None) -> Activations:
    if group is None:
        return "unknown"
    numbers = group.activations
    if numbers is None:
        return "left alone"
    if numbers.kind not in FP8_KINDS:
        return "unknown"
    match numbers.when, numbers.strategy:
        case "static", "tensor":
            return "static"
        case "run time", "token" | "unsaid":  # Whoever loads AutoFP8's chooses; vLLM takes tokens where it can.
            return "token"
        case "run time", "group" if numbers.block == (1, 128):
            return "group"
        case "run time", "tensor":
            return "tensor at run time"
        case _:
            return "unknown"


def _cache_scales(tensor: StoredTensor) -> Iterator[CacheScale]:
    for place in _CACHE_PLACES:
        found = place.fullmatch(tensor.name)
        if found is not None:
            kind = found.groupdict().get("kind")
            kinds: Sequence[Literal["k", "v"]] = ("k",) if kind == "k" else ("v",) if kind == "v" else ("k", "v")
            for each in kinds:
                yield CacheScale(attention=found["attention"], kind=each, tensor=tensor)
            return


def _name(dialect: Dialect) -> DialectName | None:
    declaration = dialect.declaration
    if declaration is None:
        return None
    if declaration.method == "fp8":
        return "deepseek" if declaration.inverse_name else "fp8"
    return _METHODS.get(declaration.method)


def _kept(anatomy: Anatomy) -> tuple[str, ...]:
    """Return modules for a list of ignored ones, by their full names, layers in the order of their numbers."""
    kept: set[str] = set()
    for name, part in anatomy.parts.items():
        if part.is_codes:
            continue
        matrix = len(part.tensor.info.shape) == 2 and name.endswith(".weight")
        if part.role == "fused experts":
            kept.add(part.module.rpartition(".")[0])
        elif part.is_linear or (matrix and part.role in {"router", "other"}):
            kept.add(part.module)
    head = anatomy.rules.output_head
    if head is not None and head not in {part.module for part in anatomy.parts.values()}:
        kept.add(head)  # Tied to the embedding, it is no tensor of its own; its module is there all the same.
    return tuple(sorted(kept, key=_by_numbers))


def _by_numbers(module: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() and len(part) < _DIGITS else (-1, part) for part in module.split(".")]


def _says_powers_of_two(config: Mapping[str, object]) -> bool:
    block = config.get("quantization_config")
    return isinstance(block, Mapping) and block.get("scale_fmt") == "ue8m0"
