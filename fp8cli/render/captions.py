"""The words of a drawing: headline, titles, notes under them, and why a panel is empty. Names are made harmless."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.commands.inspect import InspectReport
from fp8cli.core.inspection.depth import BadScales, FidelityDepth, ScaleDepth
from fp8cli.core.inspection.depth_axis import Axis
from fp8cli.core.inspection.roles import RoleRow
from fp8cli.render.names import shorten
from fp8cli.render.units import count, number, percent, size
from fp8cli.render.verdicts import verdict_line

LONGEST_NAME: Final = 84
"""Characters of a name that fit the width of a drawing."""
_LONGEST_WORDS: Final = 112
_NAMED_PLACES: Final = 4

_KINDS: Final = {"weight": "weights", "activation": "activations", "cache": "the KV cache"}
_FAULTS: Final = {"nan": "NaN"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A line under a title; `alarming` if something is wrong with the checkpoint."""

    text: str
    alarming: bool = False


def scheme_line(report: InspectReport) -> str:
    """Name the scheme and say it in words."""
    quantization = report.quantization
    known = quantization.scheme or quantization.dialect
    words = known if quantization.words == known else f"{known}: {quantization.words}"
    return shorten(words, _LONGEST_WORDS)


def size_line(report: InspectReport) -> str:
    """Total size, tensors and parameters, and how the KV cache is quantized if it is."""
    total, cached = report.total, report.quantization.kv_cache
    cache = "" if cached is None else f" · KV cache: {shorten(cached, LONGEST_NAME)}"
    parameters = "unknown" if total.parameters is None else count(total.parameters)
    return f"{size(total.bytes)} · {count(total.tensors)} tensors · {parameters} parameters{cache}"


def verdict_note(report: InspectReport) -> Note:
    """The verdict, and how many checks had which outcome; it alarms when the checkpoint is damaged."""
    return Note(text=verdict_line(report.verdict, report.findings), alarming=report.verdict == "damaged")


def role_label(row: RoleRow) -> str:
    """Role and dtype of a bar."""
    return f"{row.role} · {row.dtype.removeprefix('torch.')}"


def role_figures(row: RoleRow) -> str:
    """What stands at the end of a bar: size, share, bits per weight where there are weights."""
    bits = "" if row.bits_per_weight is None else f" · {row.bits_per_weight:.2f} bits/weight"
    return f"{size(row.bytes)} · {percent(row.share)}{bits}"


def scale_title(scales: ScaleDepth) -> str:
    """What the scales of a panel are for, and what they are called."""
    return f"Scales of {_KINDS[scales.kind]}: {', '.join(shorten(label, 40) for label in scales.labels)}"


def scale_notes(scales: ScaleDepth, axis: Axis) -> tuple[Note, ...]:
    """Sum the values up, and say which are bad."""
    many = scales.values > scales.tensors
    line = "line: middle of the typical tensor" if many else "line: median of the tensors"
    parts = [f"{count(scales.values)} values in {count(scales.tensors)} tensors"]
    if scales.smallest is not None and scales.largest is not None:
        middle = "" if scales.median is None else f", median {number(scales.median)}"
        parts.append(f"{number(scales.smallest)} to {number(scales.largest)}{middle}")
        parts.append(f"band: smallest to largest, {line}")
    else:
        parts.append("none of them finite and positive")
    notes = [Note(text=" · ".join(parts))]
    if scales.bad:
        notes.append(Note(text=f"✗ {_bad_words(scales.bad, axis)}", alarming=True))
    return tuple(notes)


def _bad_words(bad: Sequence[BadScales], axis: Axis) -> str:
    faults = dict.fromkeys(each.fault for each in bad)
    return " · ".join(_fault_words([each for each in bad if each.fault == fault], axis) for fault in faults)


def _fault_words(bad: Sequence[BadScales], axis: Axis) -> str:
    tensors = sum(each.tensors for each in bad)
    places = [shorten(axis.describe(each.position), 40) for each in bad]
    more = len(places) - _NAMED_PLACES
    where = ", ".join(places[:_NAMED_PLACES]) + (f" and {count(more)} more" if more > 0 else "")
    fault = _FAULTS.get(bad[0].fault, bad[0].fault)
    return f"{fault} in {count(tensors)} tensor{'' if tensors == 1 else 's'}: {where}"


def fidelity_notes(fidelity: FidelityDepth, report: InspectReport) -> tuple[Note, ...]:
    """Sum the comparison up, and say what is beyond any ratio."""
    against = report.against
    assert against is not None  # noqa: S101 - without a comparison nothing lies over depth
    parts = [f"{count(len(against.weights))} weights against {shorten(against.base, 60)}"]
    if against.sqnr_db is not None and math.isfinite(against.sqnr_db):
        parts.append(f"{against.sqnr_db:z.2f} dB all together")
    if fidelity.equal:
        parts.append(f"{count(fidelity.equal)} equal to their source")
    notes = [Note(text=" · ".join(parts))]
    if fidelity.unlike:
        is_one = fidelity.unlike == 1
        words = "1 weight has" if is_one else f"{count(fidelity.unlike)} weights have"
        notes.append(
            Note(text=f"✗ {words} nothing in common with {'its' if is_one else 'their'} source", alarming=True)
        )
    return tuple(notes)


def no_scales(report: InspectReport) -> str:
    """Why there are no scales to draw."""
    for finding in report.findings:
        if finding.check == "scale.values" and finding.status == "not checked":
            return shorten(f"not drawn: {finding.found}", _LONGEST_WORDS)
    if report.quantization.fp8_weights:
        return f"no scales found, though {count(report.quantization.fp8_weights)} weights are FP8"
    return f"no scales: {shorten(report.quantization.words, LONGEST_NAME)}"


def no_fidelity(report: InspectReport) -> str:
    """Why there is no comparison to draw."""
    if report.against is None:
        return "not compared with a source: fp8 inspect CKPT --against BASE --plot FILE"
    return f"no quantized weight could be compared with {shorten(report.against.base, 60)}"


def decibels(ratio: float) -> str:
    """Write a ratio with its unit."""
    return f"{ratio:z.2f} dB" if math.isfinite(ratio) else "nothing alike"
