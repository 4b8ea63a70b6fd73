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
        lines.append(f"all quantized weights together: {_together(against)}")
    shown = against.weights if details else against.weights[:_WORST]
    # Without the end that all have in common, so that a narrow screen still shows the number of the layer.
    rows = tuple(
        (w.name.removesuffix(".weight"), _decibels(w.sqnr_db), f"{w.largest_error:.3g}", f"[{w.at[0]}, {w.at[1]}]")
        for w in shown
    )
    table = (Table(columns=_COLUMNS, rows=rows),) if rows else ()
    return Section(title=f"against {against.base}", parts=(*lines, *table))


def _together(against: Against) -> str:
    together = against.sqnr_db
    if together is None:
        return "unknown"
    if together == -math.inf:
        lost = sum(weight.sqnr_db == -math.inf for weight in against.weights)
        return f"no signal, for {count(lost)} of {count(len(against.weights))} have none"
    return f"{_decibels(together)}{' dB' if math.isfinite(together) else ''}"


def _decibels(value: float) -> str:
    return f"{value:z.2f}" if math.isfinite(value) else ("equal" if value > 0 else "no signal")
