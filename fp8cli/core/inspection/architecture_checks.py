"""The tensors against the architecture that config.json names: whether all are there, and none that nobody knows."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.inspection.anatomy import Anatomy
from fp8cli.core.inspection.survey import Survey
from fp8cli.core.inspection.verdicts import conclude, counted, not_checked, passed
from fp8cli.core.model.architectures import layer_of, pattern_of
from fp8cli.core.model.selection import ATTENTION_MASK, ROTARY_BUFFER
from fp8cli.formats.complaints import Complaint

_MOST: Final = 20_000
"""Complaints about missing tensors that are collected: a hostile config can promise layers without end."""
_PACKED: Final = frozenset({"U8", "I32", "U32"})
_MTP_KEYS: Final = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
_MTP: Final = re.compile(r"(^|\.)(mtp|nextn|mtp_layers|mtp_block)\b")


def check_architecture(survey: Survey, anatomy: Anatomy) -> tuple[Finding, ...]:
    """Whether the model is whole, as far as its architecture is known."""
    if survey.config is None:
        return (not_checked("tensor.missing", "without config.json nothing says which tensors there must be"),)
    if not anatomy.is_known:
        name = anatomy.rules.name
        reason = f"the architecture `{name}` is not in the built-in table, so roles are told by names and shapes"
        return (not_checked("tensor.missing", reason),)
    return (
        *_whole(survey, anatomy),
        *conclude(_unknown(anatomy), "tensor.unknown", "no tensor that the architecture does not have"),
        *_head(survey, anatomy),
        *_experts(anatomy),
        *_prediction(survey, anatomy),
    )


def _whole(survey: Survey, anatomy: Anatomy) -> tuple[Finding, ...]:
    roster = anatomy.roster
    # Packed codes have shapes of their own.
    packed = {name for name, (dtype, _) in roster.tensors.items() if dtype in _PACKED}
    complaints = [
        complaint
        for complaint in islice(roster.complaints(head_is_stored=not _is_tied(survey, anatomy)), _MOST)
        if complaint.check != "tensor.shape" or complaint.tensor not in packed
    ]
    layers = "" if roster.layers is None else f" with {counted(roster.layers, 'layer')}"
    all_well = f"{counted(len(roster.found), 'tensor')}: all that `{anatomy.rules.name}`{layers} needs, in its shapes"
    return conclude(complaints, "tensor.missing", all_well, count=len(roster.found))


def _is_tied(survey: Survey, anatomy: Anatomy) -> bool:
    told = (survey.config or {}).get("tie_word_embeddings")
    rules = anatomy.rules
    says_tied = bool(rules.tie_word_embeddings if told is None else told)
    return rules.output_head is None or (says_tied and rules.can_tie)


def _unknown(anatomy: Anatomy) -> Iterator[Complaint]:
    roster, rules = anatomy.roster, anatomy.rules
    skipped = [re.compile(pattern) for pattern in rules.ignored_on_load]
    for name in roster.tensors:
        if name in roster.found:
            continue
        full = roster.full_names[name]
        if _is_prediction(full) or any(pattern.search(full) for pattern in skipped):
            continue
        if ROTARY_BUFFER.search(full) or ATTENTION_MASK.search(full):
            continue
        if rules.find(full) is not None:
            if not _promises_prediction(anatomy):
                words = f"lies beyond the {roster.layers} layers that config.json promises"
                hint = "correct num_hidden_layers in config.json, or fetch the config that belongs to these weights"
                yield Complaint(check="layers.beyond", tensor=name, words=words, hint=hint)
        elif not _lies_beyond(anatomy, full):
            words = f"is no tensor of `{rules.name}`"
            yield Complaint(
                check="tensor.unknown", tensor=name, words=words, hint="is config.json that of these weights?"
            )


def _lies_beyond(anatomy: Anatomy, full: str) -> bool:
    layer, layers = layer_of(full), anatomy.roster.layers
    return layer is not None and layers is not None and layer >= layers


def _head(survey: Survey, anatomy: Anatomy) -> tuple[Finding, ...]:
    head = f"{anatomy.rules.output_head}.weight"
    if not _is_tied(survey, anatomy) or head not in anatomy.roster.on_disk:
        return ()
    words = "is stored, though `tie_word_embeddings` says that the output head is the embedding"
    hint = "remove it, or set tie_word_embeddings to false if the two differ"
    return conclude([Complaint(check="tensor.head", tensor=head, words=words, hint=hint)], "tensor.head", "")


def _experts(anatomy: Anatomy) -> tuple[Finding, ...]:
    if not anatomy.renamed:
        return ()
    if anatomy.rules.name == "MixtralForCausalLM":
        words = "experts are called gate_proj, up_proj, down_proj, as oneshot does; vLLM 0.32 maps them for Mixtral"
        return (passed("experts.names", words, count=len(anatomy.renamed)),)
    complaints = (
        Complaint(
            check="experts.names",
            tensor=name,
            words=f"is called `{expected.rpartition('.')[0].rpartition('.')[2]}` in published checkpoints",
            hint="quantize again with fp8 quantize, which keeps the names of the source",
        )
        for name, expected in anatomy.renamed.items()
    )
    return conclude(complaints, "experts.names", "")


def _prediction(survey: Survey, anatomy: Anatomy) -> tuple[Finding, ...]:
    """Layers for multi-token prediction, which transformers drops without a word."""
    promised = _promised_prediction(survey.config or {})
    if not promised:
        return ()
    foreign = (full for name, full in anatomy.roster.full_names.items() if name not in anatomy.roster.found)
    names = [name for name in foreign if _is_prediction(name) or _lies_beyond(anatomy, name)]
    words = (
        f"config.json promises {counted(promised, 'layer')} for multi-token prediction, but no tensor of one is here"
    )
    hint = "quantize again with fp8 quantize, which copies them unchanged"
    lost = [Complaint(check="mtp.missing", words=words, hint=hint, files=("config.json",))]
    all_well = f"{counted(len(names), 'tensor')} for multi-token prediction"
    return conclude(() if names else lost, "mtp.missing", all_well, count=len(names))


def _promises_prediction(anatomy: Anatomy) -> bool:
    return _promised_prediction(anatomy.roster.config) > 0


def _promised_prediction(config: Mapping[str, object]) -> int:
    return next((value for key in _MTP_KEYS if type(value := config.get(key)) is int and value > 0), 0)


def _is_prediction(name: str) -> bool:
    return _MTP.search(pattern_of(name)) is not None
