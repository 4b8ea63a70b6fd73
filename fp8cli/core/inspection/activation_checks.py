"""The scales that calibration leaves behind: of activations, and of keys and values in the cache."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.inspection.declaration import FP8_KINDS
from fp8cli.core.inspection.dialect import Dialect
from fp8cli.core.inspection.scale_names import kind_of
from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.core.inspection.verdicts import conclude, counted
from fp8cli.core.model.attention import read_attention
from fp8cli.formats.complaints import Complaint

_KEYS: Final = re.compile(r"(.+)\.(k_proj|qkv_proj|query_key_value|kv_b_proj|W_pack|c_attn)\.[^.]+$")
_UNCACHED: Final = re.compile("vision|visual|audio")
"""Encoders look at the whole input at once and cache nothing."""
_CALIBRATE: Final = "calibrate again: these scales cannot be made without running the model"
# Beside the scale itself: where AutoFP8 and ModelOpt put it, and the one scale for both that AutoFP8 began with.
_PLACES: Final = (
    "{0}.{1}_scale",
    "{0}.{1}_proj.{1}_scale",
    "{0}.{1}_proj.output_scale",
    "{0}.attn.{1}_scale",
    "{0}.qkv_proj.{1}_scale",
    "{0}.kv_scale",
)


def check_activation_scales(survey: Survey, dialect: Dialect) -> tuple[Finding, ...]:
    """Calibrated activations have a scale for every weight, others none."""
    static = [weight.module for weight in dialect.weights if _is_static(dialect, weight.module)]
    # FBGEMM's upper bound is for scales that are taken at run time.
    given = [n for n, label in dialect.labels.items() if kind_of(label) == "activation" and label != "input_scale_ub"]
    if not static and not given:
        return ()
    all_well = f"{counted(len(static), 'calibrated module')}, each with its input_scale"
    return conclude(_activations(survey, dialect, static, given), "activation.scale", all_well, count=len(static))


def _is_static(dialect: Dialect, module: str) -> bool:
    group = dialect.finder.group_of(module)
    activations = None if group is None else group.activations
    return activations is not None and activations.kind in FP8_KINDS and activations.when == "static"


def _activations(survey: Survey, dialect: Dialect, static: list[str], given: list[str]) -> Iterator[Complaint]:
    for module in static:
        if not any(name in survey.tensors for name in (f"{module}.input_scale", f"{module}_input_scale")):
            words = "is missing, though the config says that activations are calibrated"
            tensor = f"{module}.input_scale"
            yield Complaint(check="activation.missing", tensor=tensor, words=words, hint=_CALIBRATE)
    if dialect.declaration is None or not dialect.finder.groups:
        return
    for name in given:
        group = dialect.finder.group_of(name.rpartition(".")[0])
        if group is not None and (group.activations is None or group.activations.when == "run time"):
            when = "left alone" if group.activations is None else "scaled at run time"
            words = f"is there, but the config says that activations are {when}"
            yield Complaint(check="activation.unused", tensor=name, words=words, hint="correct quantization_config")


def check_cache_scales(survey: Survey, dialect: Dialect) -> tuple[Finding, ...]:
    """A quantized KV cache has a scale for keys and one for values in every attention layer."""
    declaration = dialect.declaration
    cache = None if declaration is None else declaration.kv_cache
    given = [name for name, label in dialect.labels.items() if kind_of(label) == "cache"]
    if cache is None:
        # AutoFP8 has no word in the config for a quantized cache; one asks for it when serving.
        if not given or declaration is None or declaration.method == "fp8":
            return ()
        return conclude(_unused(given), "cache.scale", "")
    if cache.when == "run time":
        return ()
    keys = (found for name in survey.tensors if (found := _KEYS.fullmatch(name)))
    attentions = sorted({found.group(1) for found in keys if not _UNCACHED.search(found.group(1))})
    all_well = f"{counted(len(attentions), 'attention layer')}, each with k_scale and v_scale"
    complaints = [*_half(survey.tensors, attentions), *_misshapen(survey, given, strategy=cache.strategy)]
    return conclude(complaints, "cache.scale", all_well, count=len(attentions))


def _half(tensors: Mapping[str, StoredTensor], attentions: list[str]) -> Iterator[Complaint]:
    for attention in attentions:
        for which in "kv":
            if not any(place.format(attention, which) in tensors for place in _PLACES):
                words = "is missing, though the config says that the KV cache is calibrated"
                tensor = f"{attention}.{which}_scale"
                yield Complaint(check="cache.missing", tensor=tensor, words=words, hint=_CALIBRATE)


def _misshapen(survey: Survey, given: list[str], *, strategy: str | None) -> Iterator[Complaint]:
    heads = read_attention(survey.config).kv_heads
    for name in given:
        info = survey.tensors[name].info
        words = None
        if strategy == "tensor" and info.elements != 1:
            words = "but the config says one scale a layer"
        if strategy == "attn_head" and heads is not None and info.elements != heads:
            words = f"but the config says a scale for each head, and the model has {counted(heads, 'KV head')}"
        if words is not None:
            shape = f"has shape {list(info.shape)}, {words}"
            yield Complaint(check="cache.shape", tensor=name, words=shape, hint=_CALIBRATE)


def _unused(given: list[str]) -> Iterator[Complaint]:
    for name in given:
        words = "is there, but the config says nothing of a quantized KV cache"
        hint = "serve with --kv-cache-dtype fp8 to use it, or add kv_cache_scheme to quantization_config"
        yield Complaint(check="cache.unused", tensor=name, words=words, hint=hint)
