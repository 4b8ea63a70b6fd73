"""What the config says about quantization against what the tensors are: module by module."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.inspection.anatomy import Anatomy, Part
from fp8cli.core.inspection.declaration import FP8_KINDS, Declaration
from fp8cli.core.inspection.dialect import Dialect
from fp8cli.core.inspection.groups import NameMatcher
from fp8cli.core.inspection.survey import Survey
from fp8cli.core.inspection.verdicts import conclude, counted, not_checked
from fp8cli.formats.complaints import Complaint
from fp8cli.formats.quant_methods import find_quantization, recognise

# vLLM keeps each of these as one module, whatever the checkpoint does (its packed_modules_mapping).
_FUSED: Final = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
)
_PARTNERS: Final[Mapping[str, tuple[str, ...]]] = {name: names for names in _FUSED for name in names}
_EXPERTS: Final = re.compile(r"(.*\.experts)\.\d+\.[^.]+", re.DOTALL)
_KEPT_BY_VLLM: Final = ("indexer.weights_proj",)
"""Ends of Linear modules that vLLM holds in 16 bits without being told."""
_FORMATS: Final[Mapping[str, str]] = {
    "dense": "unquantized weights",
    "float-quantized": "FP8 weights",
    "naive-quantized": "FP8 or INT8 weights",
    "mxfp8-quantized": "FP8 weights with scales per group of 32",
}
_CORRECT: Final = "correct quantization_config, or quantize again from the source: fp8 quantize SOURCE"
_AGAIN: Final = "quantize again from the source: fp8 quantize SOURCE"


def check_declaration(survey: Survey, dialect: Dialect) -> tuple[Finding, ...]:
    """Config and tensors agree on whether there is FP8 at all, and on the format."""
    declaration = dialect.declaration
    if survey.config is None and declaration is None:
        words = "there is no readable config.json to say how these tensors are meant"
        return (not_checked("config.quantization", words),)
    complaints = [*_broken(survey), *_presence(survey, dialect), *_format(dialect)]
    all_well = f"config and tensors agree: {dialect.words}"
    return conclude(complaints, "config.quantization", all_well, count=len(dialect.weights))


def _broken(survey: Survey) -> Iterator[Complaint]:
    found = find_quantization(survey.config or {})
    if found is not None and not isinstance(found, Mapping):
        words = "`quantization_config` in config.json is not a JSON object"
        yield Complaint(check="config.broken", words=words, hint=_CORRECT, files=("config.json",))


def _presence(survey: Survey, dialect: Dialect) -> Iterator[Complaint]:
    declaration, weights = dialect.declaration, len(dialect.weights)
    if declaration is None and weights:
        words = f"config.json has no quantization_config, but {_hold(weights)} FP8 codes"
        yield Complaint(check="config.absent", words=words, hint=_AGAIN, files=("config.json",))
    elif declaration is None and dialect.labels and recognise(survey.config or {}, survey.files, ()) is None:
        names = f"`{next(iter(dialect.labels))}` and {len(dialect.labels) - 1:,} more"
        words = f"config.json has no quantization_config, but there are tensors for undoing codes: {names}"
        yield Complaint(check="config.absent", words=words, hint=_AGAIN, files=("config.json",))
    elif declaration is None:
        return
    elif declaration.is_fp8 and not weights:
        words = f"`{declaration.source}` says {dialect.words}, but no tensor holds FP8 codes"
        yield Complaint(check="config.no_fp8", words=words, hint=_AGAIN, files=(declaration.source,))
    elif weights and declaration.is_known and not declaration.is_fp8:
        words = f"`{declaration.source}` says {dialect.words}, but {_hold(weights)} FP8 codes"
        yield Complaint(check="config.absent", words=words, hint=_CORRECT, files=(declaration.source,))


def _hold(weights: int) -> str:
    return f"{counted(weights, 'tensor')} {'holds' if weights == 1 else 'hold'}"


def _format(dialect: Dialect) -> Iterator[Complaint]:
    declaration = dialect.declaration
    if declaration is None or declaration.format is None or declaration.format not in _FORMATS:
        return
    groups = {weight.granularity for weight in dialect.weights}
    is_mx = bool(groups) and groups <= {"group"} and dialect.block == (1, 32)
    match declaration.format:
        case "dense":
            fits = not dialect.weights
        case "mxfp8-quantized":
            fits = is_mx
        case _:
            fits = not is_mx
    if not fits:
        here = "FP8 weights with scales per group of 32" if is_mx else f"{counted(len(dialect.weights), 'FP8 weight')}"
        words = f"`format` is `{declaration.format}`, for {_FORMATS[declaration.format]}, but here are {here}"
        yield Complaint(check="config.format", words=words, hint=_CORRECT, files=(declaration.source,))


def check_modules(dialect: Dialect, anatomy: Anatomy) -> tuple[Finding, ...]:
    """Every Linear is either ignored or quantized, and modules that vLLM keeps as one agree."""
    declaration = dialect.declaration
    if declaration is None or not any(_means_fp8(declaration)):
        return ()
    if not dialect.weights:
        return (not_checked("config.modules", "no tensor holds FP8 codes, as another finding says"),)
    ignored = NameMatcher.of(declaration.ignored, declaration.matching)
    linears = anatomy.linears
    complaints = [
        *_unread(ignored, declaration),
        *_ignored_yet_quantized(anatomy, ignored),
        *_uncovered(dialect, anatomy, ignored),
        *_torn_apart(linears),
        *_special(declaration, anatomy),
    ]
    codes = sum(part.is_codes for part in linears.values())
    by = "" if anatomy.is_known else ", told by their names and shapes"
    kept = f", the other {len(linears) - codes:,} left alone" if len(linears) > codes else ""
    all_well = f"{counted(codes, 'Linear module')} quantized{by}{kept}; none of them is listed as ignored"
    return conclude(complaints, "config.modules", all_well, count=len(linears))


def _means_fp8(declaration: Declaration) -> Iterator[bool]:
    return (group.weights is not None and group.weights.kind in FP8_KINDS for group in declaration.groups)


def _unread(ignored: NameMatcher, declaration: Declaration) -> Iterator[Complaint]:
    for pattern in ignored.unread:
        words = f"the pattern `{pattern}` of ignored modules is no regular expression, or one that may never end"
        yield Complaint(check="config.pattern", words=words, hint=_CORRECT, files=(declaration.source,))


def _ignored_yet_quantized(anatomy: Anatomy, ignored: NameMatcher) -> Iterator[Complaint]:
    for name, part in anatomy.parts.items():
        if part.is_codes and (ignored.names_exactly(part.module) or ignored.names_exactly(_on_disk(name))):
            words = "holds codes, but the config lists it as ignored"
            yield Complaint(check="config.ignored", tensor=name, words=words, hint=_CORRECT)


def _uncovered(dialect: Dialect, anatomy: Anatomy, ignored: NameMatcher) -> Iterator[Complaint]:
    for name, part in anatomy.parts.items():
        # Heads and routers are kept by vLLM itself, listed or not; both are nn.Linear by class.
        if part.is_codes or part.role not in {"linear", "fused experts"} or not part.is_known:
            continue
        module = part.module
        if module.endswith(_KEPT_BY_VLLM) or dialect.finder.group_of(module) is None:
            continue
        names = {module, _on_disk(name)}
        if part.role == "fused experts":
            names.add(module.rpartition(".")[0])
            names |= set(anatomy.roster.first_expert(name))
        if not any(ignored.may_name(each) for each in names):
            words = f"is {part.tensor.info.dtype}: a Linear that is neither quantized nor listed as ignored"
            hint = "add it to the ignored modules in quantization_config, or quantize again from the source"
            yield Complaint(check="config.uncovered", tensor=name, words=words, hint=hint)


def _torn_apart(linears: Mapping[str, Part]) -> Iterator[Complaint]:
    together: dict[str, list[Part]] = defaultdict(list)
    for module, part in linears.items():
        parent, _, last = module.rpartition(".")
        experts = _EXPERTS.fullmatch(module) if ".experts." in module else None
        if experts is not None:
            together[experts.group(1)].append(part)
        elif last in _PARTNERS:
            together[f"{parent}.{'+'.join(_PARTNERS[last])}"].append(part)
    for parts in together.values():
        codes = sum(part.is_codes for part in parts)
        if 0 < codes < len(parts):
            for part in parts:
                if not part.is_codes:
                    words = (
                        f"is {part.tensor.info.dtype}, but parts that vLLM keeps in one module with it are quantized"
                    )
                    yield Complaint(check="config.shards", tensor=part.tensor.name, words=words, hint=_AGAIN)


def _special(declaration: Declaration, anatomy: Anatomy) -> Iterator[Complaint]:
    """Modules that vLLM holds in 16 bits whatever the config says."""
    targets = {target for group in declaration.groups for target in group.targets}
    # ModelOpt's loader takes a quantized output head; compressed-tensors' does if a target names it.
    head_is_fine = declaration.method.startswith("modelopt") or any("lm_head" in target for target in targets)
    for name, part in anatomy.parts.items():
        if not part.is_codes:
            continue
        match part.role:
            case "output head" if not head_is_fine:
                check, what = "module.head", "the output head"
            case "embedding":
                check, what = "module.embedding", "an embedding"
            case "router":
                check, what = "module.router", "a router, which chooses the experts"
            case _:
                continue
        hint = "quantize again with it ignored; fp8 quantize keeps it by default"
        yield Complaint(check=check, tensor=name, words=f"is quantized: {what}", hint=hint)


def _on_disk(name: str) -> str:
    return name.removesuffix(".weight")
