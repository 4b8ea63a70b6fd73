"""What the papers of an output say of its making: the libraries that took part, data, and what stays in 16 bits."""

from pathlib import Path
from typing import Final

from fp8cli.core.budgeting.report import BudgetReport
from fp8cli.core.calibrating.calibration import CalibrationFacts
from fp8cli.core.calibrating.ordering import CalibrationOrder
from fp8cli.core.compressing.compression import Compressed
from fp8cli.core.machine.probes import versions
from fp8cli.formats.budget_note import BudgetNote
from fp8cli.formats.calibration_note import CalibrationNote

LIBRARIES: Final = ("torch", "llmcompressor", "compressed-tensors", "transformers")
"""Whose versions a card names where llm-compressor made the weights."""


def tools_of(compressed: Compressed | None) -> dict[str, str]:
    """Return the versions of what made the weights."""
    if compressed is not None:
        return {name: compressed.facts.versions[name] for name in LIBRARIES if name in compressed.facts.versions}
    torch = versions().get("torch")
    return {} if torch is None else {"torch": torch}


def note_calibration(facts: CalibrationFacts, order: CalibrationOrder | None) -> CalibrationNote:
    """Return what the recipe and the card say of calibration data."""
    on_hub = order is not None and order.seen.kind == "hub"
    return CalibrationNote(
        source=facts.source if on_hub else Path(facts.source).name,
        samples=facts.samples,
        tokens=facts.tokens,
        max_seq_length=facts.max_seq_length,
        seed=facts.seed,
        token_ids_sha256=facts.token_ids_sha256,
        versions=facts.versions,
    )


def note_budget(report: BudgetReport) -> BudgetNote:
    """Return what they say of what stays in 16 bits."""
    # Where a file lay is nobody's business.
    is_file = report.data is not None and Path(report.data).exists()
    return BudgetNote(
        said=report.said,
        kept=len(report.chosen.kept),
        groups=len(report.groups),
        data=Path(report.data).name if is_file and report.data is not None else report.data,
        positions=report.positions,
        kl=report.chosen.kl,
        kl_se=report.chosen.kl_se,
        fitted=report.modifiers,
    )
