"""How a checkpoint compares with its source: what became of the tensors, and the worst of the quantized weights."""

import math
from typing import Final

from fp8cli.commands.inspect import Against
from fp8cli.render.sections import Section
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, gb

_WORST: Final = 8
"""Weights listed without --details."""

_COLUMNS: Final = (
    Column(title="worst first", shortens=True),
    Column(title="SQNR (dB)", right=True),
    Column(title="largest error", right=True, rank=1),
    Column(title="at", rank=2),
)


def fidelity_section(against: Against, *, details: bool) -> Section:
    """Describe the comparison; with `details` every quantized weight is listed."""
    fates = ", ".join(f"{count(number)} {fate}" for fate, number in sorted(against.tensors.items()))
    lines = [f"{fates} · {gb(against.bytes_read)} compared"]
    if against.weights:
        together = against.sqnr_db
        unit = " dB" if together is not None and math.isfinite(together) else ""
        lines.append(f"all quantized weights together: {_decibels(together)}{unit}")
    shown = against.weights if details else against.weights[:_WORST]
    rows = tuple((w.name, _decibels(w.sqnr_db), f"{w.largest_error:.3g}", f"[{w.at[0]}, {w.at[1]}]") for w in shown)
    table = (Table(columns=_COLUMNS, rows=rows),) if rows else ()
    return Section(title=f"against {against.base}", parts=(*lines, *table))


def _decibels(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:z.2f}" if math.isfinite(value) else ("equal" if value > 0 else "nothing alike")
