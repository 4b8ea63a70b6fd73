"""Weights and their scales against each other, and against what the config declares: presence, name, shape, dtype.

What the values of the scales are is for core.inspection.scale_values.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.inspection.declaration import Numbers
from fp8cli.core.inspection.dialect import Dialect
from fp8cli.core.inspection.pairing import Granularity, QuantizedWeight, Shape, scale_names, scale_shapes
from fp8cli.core.inspection.scale_names import FP8_DTYPES
from fp8cli.core.inspection.survey import Survey
from fp8cli.core.inspection.verdicts import conclude, counted
from fp8cli.formats.complaints import Complaint
from fp8cli.formats.safetensors import DTYPES

_FLOATS: Final = frozenset({"BF16", "F16", "F32"})
_POWERS: Final = frozenset({"U8", "F8_E8M0"})
"""Dtypes of scales that are powers of two. F8_E8M0 says so itself, U8 only together with the config."""
_CODES: Final = ("weight", "weight_packed", "qweight", "_weight_qdata")
_FIRST_LEVEL: Final = frozenset({"weight_scale", "weight_scale_inv"})
_AGAIN: Final = "quantize again from the source: fp8 quantize SOURCE"


def check_pairs(survey: Survey, dialect: Dialect) -> tuple[Finding, ...]:
    """Every FP8 weight has one scale that fits it, and every scale a quantized weight."""
    weights = dialect.weights
    scaled = [weight for weight in weights if weight.scale is not None]
    findings = [
        *conclude(
            _missing(dialect),
            "scale.missing",
            f"{counted(len(weights), 'FP8 weight')}, each with its scale",
            count=len(weights),
        ),
        *conclude(_orphans(survey, dialect), "scale.orphan", "no scale without a quantized weight", count=len(scaled)),
        *conclude(_zero_points(survey, dialect), "scale.zero_point", "no zero point beside a weight that needs none"),
    ]
    if scaled:
        fits = "that the config asks for" if dialect.finder.groups else "that fits its weight"
        kinds = sorted({survey.tensors[weight.scale].info.dtype for weight in scaled if weight.scale is not None})
        count = len(scaled)
        findings += [
            *conclude(
                _misnamed(dialect), "scale.name", "every scale under the name that loaders look for", count=count
            ),
            *conclude(
                _misshapen(survey, dialect),
                "scale.shape",
                f"{counted(count, 'scale')} of the shape {fits}",
                count=count,
            ),
            *conclude(
                _odd_dtypes(survey, dialect),
                "scale.dtype",
                f"{counted(count, 'scale')} in {' and '.join(kinds)}",
                count=count,
            ),
        ]
    return tuple(findings) if weights or dialect.labels else ()


def _missing(dialect: Dialect) -> Iterator[Complaint]:
    inverse = dialect.declaration is not None and dialect.declaration.inverse_name
    for weight in dialect.weights:
        if weight.scale is None:
            first, *others = scale_names(weight.name)
            wanted = others[0] if inverse and others else first
            words = f"has no scale: `{wanted.rpartition('.')[2]}` is missing"
            yield Complaint(check="scale.missing", tensor=weight.name, words=words, hint=_AGAIN)


def _orphans(survey: Survey, dialect: Dialect) -> Iterator[Complaint]:
    used = {weight.scale for weight in dialect.weights}
    for name, label in dialect.labels.items():
        if label not in _FIRST_LEVEL or name in used:
            continue
        parent, dot, last = name.rpartition(".")
        if last != label:
            # Fused experts: the weight was found by this very name.
            continue
        owner = next((f"{parent}{dot}{codes}" for codes in _CODES if f"{parent}{dot}{codes}" in survey.tensors), None)
        if owner is None:
            words = "is there, but not the weight that it scales"
            hint = "fetch the checkpoint again; if it is whole, its source is not"
            yield Complaint(check="scale.orphan", tensor=name, words=words, hint=hint)
            continue
        dtype = survey.tensors[owner].info.dtype
        if owner.endswith(".weight") and DTYPES[dtype].floating and dtype not in FP8_DTYPES:
            words = f"is there, but `weight` beside it is {dtype}: it was never quantized"
            yield Complaint(check="scale.unquantized", tensor=name, words=words, hint=_AGAIN)


def _zero_points(survey: Survey, dialect: Dialect) -> Iterator[Complaint]:
    for name, label in dialect.labels.items():
        if label != "weight_zero_point":
            continue
        owner = survey.tensors.get(f"{name.removesuffix('_zero_point')}")
        if owner is not None and DTYPES[owner.info.dtype].floating:
            words = f"is left over: `weight` beside it is {owner.info.dtype}, which has no zero point"
            hint = "quantize again with fp8 quantize, or with compressed-tensors 0.20 or later"
            yield Complaint(check="scale.zero_point", tensor=name, words=words, hint=hint)


def _misnamed(dialect: Dialect) -> Iterator[Complaint]:
    declaration = dialect.declaration
    if declaration is None or not dialect.finder.groups:
        return
    wanted = "_scale_inv" if declaration.inverse_name else "_scale"
    for weight in dialect.weights:
        if weight.scale is not None and not weight.scale.endswith(wanted):
            words = f"is not called `weight{wanted}`, as `{declaration.name}` has it"
            hint = "rename the tensor, or correct quantization_config"
            yield Complaint(check="scale.name", tensor=weight.scale, words=words, hint=hint)


def _misshapen(survey: Survey, dialect: Dialect) -> Iterator[Complaint]:
    # compressed-tensors keeps [N, 1] and vLLM asks for just that; elsewhere [N] is as usual.
    is_strict = dialect.declaration is not None and dialect.declaration.method == "compressed-tensors"
    for weight in dialect.weights:
        if weight.scale is None:
            continue
        shape, scale = survey.tensors[weight.name].info.shape, survey.tensors[weight.scale].info.shape
        group = dialect.finder.group_of(weight.module)
        wanted = _wanted_shapes(shape, None if group is None else group.weights)
        strict_channel = is_strict and len(shape) == 2 and len(scale) == 1 and scale == (shape[0],) != (1,)
        if wanted and (scale not in wanted or (strict_channel and wanted[0] != scale)):
            words = f"has shape {list(scale)}, but the config asks for {list(wanted[0])} with a weight {list(shape)}"
        elif weight.granularity is None and not wanted:
            words = f"has shape {list(scale)}, which fits no way of scaling a weight {list(shape)}"
        else:
            continue
        yield Complaint(check="scale.shape", tensor=weight.scale, words=words, hint=_AGAIN)


@lru_cache
def _wanted_shapes(weight: Shape, declared: Numbers | None) -> tuple[Shape, ...]:
    """Shapes that a declared granularity gives the scale of a weight; none if it declares nothing that is known."""
    if declared is None:
        return ()
    known: dict[str | None, Granularity] = {
        "tensor": "tensor",
        "channel": "channel",
        "block": "block",
        "group": "group",
    }
    granularity = known.get(declared.strategy)
    return () if granularity is None else scale_shapes(weight, granularity, declared.block)


def _odd_dtypes(survey: Survey, dialect: Dialect) -> Iterator[Complaint]:
    for weight in dialect.weights:
        codes = survey.tensors[weight.name].info.dtype
        if codes != "F8_E4M3":
            words = f"is {codes}, where vLLM reads F8_E4M3 only"
            yield Complaint(check="weight.dtype", tensor=weight.name, words=words, hint=_AGAIN)
        if weight.scale is None:
            continue
        dtype = survey.tensors[weight.scale].info.dtype
        if dtype not in _allowed_dtypes(weight):
            words = f"is {dtype}, which is no dtype for such a scale"
            yield Complaint(check="scale.dtype", tensor=weight.scale, words=words, hint=_AGAIN)


def _allowed_dtypes(weight: QuantizedWeight) -> frozenset[str]:
    match weight.granularity:
        case "group":
            return _POWERS | _FLOATS
        case "block":
            return _FLOATS | {"F8_E8M0"}
        case _:
            return _FLOATS
