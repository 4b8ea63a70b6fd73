"""Every tensor of a checkpoint beside its source: which came from which, each exactly once. Headers only.

A checkpoint made from BASE consists of copies, of quantized weights with their scales, and of little else. What
has no counterpart is named: an expert that is missing here is missing when it is served.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fp8cli.core.inspection.dialect import Dialect, QuantizedWeight
from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.core.model.attention import text_config
from fp8cli.core.model.multimodal import known_rules
from fp8cli.core.model.roster import Roster
from fp8cli.core.model.selection import ATTENTION_MASK, ROTARY_BUFFER

Fate = Literal["copied", "cast", "quantized", "added", "left out", "foreign", "lost", "changed"]
"""What became of a tensor. `added` and `left out` have a reason; `foreign`, `lost` and `changed` are faults."""

CASTABLE: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Dtypes in which a tensor may be stored anew, with torch's names for them."""

_CALIBRATED: Final = re.compile(
    r".*\.(input_scale|output_scale|[qkv]_scale|kv_scale|prob_scale|input_scale_ub|weight_zero_point)", re.DOTALL
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One tensor's fate. `base` and `here` are its stored forms; a scale is accounted for with its weight."""

    name: str
    fate: Fate
    base: StoredTensor | None
    here: StoredTensor | None
    weight: QuantizedWeight | None = None
    why: str | None = None


def account(survey: Survey, dialect: Dialect, base: Survey) -> tuple[Entry, ...]:
    """Match the tensors of a checkpoint with those of its source, by name; every one of both appears once."""
    tie = _read_tie(survey.config or {}, base.tensors)
    sources = _take_apart(base, survey)
    weights = {weight.name: weight for weight in dialect.weights}
    scales = {weight.scale for weight in dialect.weights if weight.scale is not None}
    entries = [
        _kept(tensor, sources, tie, weights.get(name))
        for name, tensor in survey.tensors.items()
        if name not in scales or name in sources
    ]
    entries += [_left(tensor, tie) for name, tensor in sources.items() if name not in survey.tensors]
    return tuple(entries)


@dataclass(frozen=True)
class _Tie:
    """The output head and the embedding it may share its weight with."""

    head: str
    embedding: str
    tied: bool


def _read_tie(config: Mapping[str, object], names: Iterable[str]) -> _Tie:
    rules = known_rules(config, names)
    told = config.get("tie_word_embeddings")
    if rules is None:
        return _Tie("lm_head.weight", "model.embed_tokens.weight", tied=told is True)
    tied = rules.tie_word_embeddings if told is None else told is True
    return _Tie(f"{rules.output_head}.weight", f"{rules.input_embedding}.weight", tied=tied)


def _take_apart(base: Survey, survey: Survey) -> Mapping[str, StoredTensor]:
    """Return the source's tensors, and in place of one that holds all experts those that it was made into here."""
    config = base.config or {}
    rules = known_rules(config, base.tensors)
    if rules is None or not rules.fused:
        return base.tensors
    shapes = {name: (tensor.info.dtype, tensor.info.shape) for name, tensor in base.tensors.items()}
    roster = Roster(config=text_config(config) if rules.towers else config, tensors=shapes, rules=rules)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in base.tensors.items():
        apart = roster.split.get(name, ()) if name not in survey.tensors else ()
        tensors |= {} if apart else {name: tensor}
        for module, part in apart:
            weight = f"{module}.weight"
            info = part.within(tensor.info)
            tensors[weight] = StoredTensor(name=weight, file=tensor.file, info=info, stride=part.stride)
    return tensors


def _kept(here: StoredTensor, base: Mapping[str, StoredTensor], tie: _Tie, weight: QuantizedWeight | None) -> Entry:
    origin = base.get(here.name)
    if origin is None and here.name == tie.head:
        # A tied head that was quantized became a tensor of its own, made from the embedding.
        origin = base.get(tie.embedding)
    if origin is None:
        if _CALIBRATED.fullmatch(here.name):
            return Entry(name=here.name, fate="added", base=None, here=here, why="a scale that calibration adds")
        return Entry(name=here.name, fate="foreign", base=None, here=here)
    before, after = origin.info, here.info
    if before.shape != after.shape:
        why = f"its shape is {list(after.shape)}, in the source {list(before.shape)}"
        return Entry(name=here.name, fate="changed", base=origin, here=here, why=why)
    if weight is not None and before.dtype != after.dtype:
        return Entry(name=here.name, fate="quantized", base=origin, here=here, weight=weight)
    if before.dtype == after.dtype:
        return Entry(name=here.name, fate="copied", base=origin, here=here)
    why = f"its dtype is {after.dtype}, in the source {before.dtype}"
    # Codes are floating-point too, but turning them into numbers is no cast: it takes their scale.
    castable = before.dtype in CASTABLE and after.dtype in CASTABLE
    return Entry(name=here.name, fate="cast" if castable else "changed", base=origin, here=here, why=why)


def _left(origin: StoredTensor, tie: _Tie) -> Entry:
    why = None
    if ROTARY_BUFFER.search(origin.name) or ATTENTION_MASK.search(origin.name):
        why = "a buffer that transformers and vLLM compute themselves"
    elif origin.name == tie.head and tie.tied:
        why = f"the output head, which config.json ties to `{tie.embedding}`"
    return Entry(name=origin.name, fate="left out" if why else "lost", base=origin, here=None, why=why)
