"""The verdict on a checkpoint beside its source: what is missing, what was changed, what is too far off."""

import math
from collections.abc import Iterable, Sequence
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.folding import fold
from fp8cli.core.inspection.accounting import Entry, Fate
from fp8cli.core.inspection.fidelity import Fidelity, Outcome, WeightFidelity

EXPECTED_DB: Final = 31.5
"""Signal to noise of E4M3 under a scale that fits."""
POOR_DB: Final = 28.0
"""Below it something costs precision that need not: one scale for unlike rows, a scale in FP16 that underflowed."""
WRONG_DB: Final = 20.0
"""Below it the codes and scales do not stand for these weights."""

_AGAIN: Final = "quantize again from this source, or name the source it was really made from"

_FAULTS: Final[dict[Fate, tuple[str, str]]] = {
    "lost": ("the source has it, this checkpoint lacks it", "what it did in the model is missing here"),
    "foreign": ("the source has no such tensor", "it does not come from this source"),
    "changed": ("it is not the same tensor", "a loader will refuse it, or read it as something else"),
}


def judge_fidelity(fidelity: Fidelity) -> tuple[Finding, ...]:
    """Return the findings of a comparison; every kind of check says something, if only that it passed."""
    return (
        *_judge_accounts([outcome.entry for outcome in fidelity.outcomes]),
        *_judge_copies(fidelity.outcomes),
        *_judge_weights(fidelity.weights),
        *_unknown(fidelity.outcomes),
    )


def _judge_accounts(entries: Sequence[Entry]) -> Iterable[Finding]:
    bad = [entry for entry in entries if entry.fate in _FAULTS]
    for fate, (words, consequence) in _FAULTS.items():
        members = {entry.name: entry for entry in bad if entry.fate == fate}
        for folded in fold(members):
            why = members[folded.names[0]].why
            yield Finding(
                check="against.accounted",
                status="failed",
                subject=folded.pattern,
                found=f"{words}: {why}" if why else words,
                consequence=consequence,
                remedy=_AGAIN,
                count=len(folded.names),
            )
    if not bad:
        counts = {fate: sum(entry.fate == fate for entry in entries) for fate in ("copied", "cast", "quantized")}
        words = ", ".join(f"{count:,} {fate}" for fate, count in counts.items() if count)
        others = [entry for entry in entries if entry.fate in {"added", "left out"}]
        more = f"; {len(others):,} more differ for a reason" if others else ""
        found = f"every tensor is accounted for: {words}{more}"
        yield Finding(check="against.accounted", status="passed", subject=None, found=found, count=len(entries))


def _judge_copies(outcomes: Sequence[Outcome]) -> Iterable[Finding]:
    compared = [outcome for outcome in outcomes if outcome.same is not None]
    different = [outcome.entry.name for outcome in compared if not outcome.same]
    for folded in fold(different):
        yield Finding(
            check="against.copies",
            status="failed",
            subject=folded.pattern,
            found="it is not quantized, yet its bytes are not those of the source",
            consequence="the model was changed where it should not be",
            remedy=_AGAIN,
            count=len(folded.names),
        )
    if compared and not different:
        size = sum(outcome.entry.here.info.bytes for outcome in compared if outcome.entry.here)
        found = (
            f"{len(compared):,} tensors that are not quantized hold the source's values, byte for byte ({size:,} bytes)"
        )
        yield Finding(check="against.copies", status="passed", subject=None, found=found, count=len(compared))


def _judge_weights(weights: Sequence[WeightFidelity]) -> Iterable[Finding]:
    wrong = [weight for weight in weights if weight.sqnr_db < WRONG_DB]
    poor = [weight for weight in weights if WRONG_DB <= weight.sqnr_db < POOR_DB]
    for status, members in (("failed", wrong), ("warning", poor)):
        by_name = {weight.name: weight for weight in members}
        for folded in fold(by_name):
            worst = min((by_name[name] for name in folded.names), key=lambda weight: weight.sqnr_db)
            yield Finding(
                check="against.sqnr",
                status="failed" if status == "failed" else "warning",
                subject=folded.pattern,
                found=_distance(worst),
                consequence="these codes and scales stand for other weights"
                if status == "failed"
                else "precision was lost: a scale that does not fit, or values that were cut off",
                remedy=_AGAIN
                if status == "failed"
                else "quantize again from this source; if it stays so, another scheme may fit these weights better",
                count=len(folded.names),
            )
    if weights and not wrong and not poor:
        found = (
            f"every quantized weight is within {weights[0].sqnr_db:z.1f} to {weights[-1].sqnr_db:z.1f} dB of the source"
        )
        yield Finding(check="against.sqnr", status="passed", subject=None, found=found, count=len(weights))


def _distance(weight: WeightFidelity) -> str:
    if not math.isfinite(weight.sqnr_db):
        return "it has nothing in common with the source: it decodes to NaN, or to something where the source is zero"
    place = f"the largest error is {weight.largest_error:.3g} at {list(weight.at)}"
    return f"{weight.sqnr_db:z.1f} dB from the source, where E4M3 gives about {EXPECTED_DB} dB; {place}"


def _unknown(outcomes: Sequence[Outcome]) -> Iterable[Finding]:
    reasons: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.unknown is not None:
            reasons.setdefault(outcome.unknown, []).append(outcome.entry.name)
    for reason, names in reasons.items():
        for folded in fold(names):
            yield Finding(
                check="against.compared",
                status="not checked",
                subject=folded.pattern,
                found=f"not compared with the source: {reason}",
                count=len(folded.names),
            )
