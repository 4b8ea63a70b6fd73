"""What `fp8 quantize` did, or would do, in words and tables."""

from collections.abc import Mapping
from itertools import groupby
from typing import Final

from fp8cli.commands.quantize import QuantizeReport
from fp8cli.core.calibrating.outlook import CalibrationReport
from fp8cli.core.folding import fold
from fp8cli.core.quantizing.tensor_rows import TensorRow
from fp8cli.render.console import Output
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, gb, gib, mb, percent

_BY_DTYPE: Final = (
    Column(title="dtype"),
    Column(title="before (MB)", right=True),
    Column(title="after (MB)", right=True),
)
_BY_TENSOR: Final = (
    Column(title="tensor", shortens=True),
    Column(title="action"),
    Column(title="dtype", rank=2),
    Column(title="shape", rank=3),
    Column(title="reason", rank=1, shortens=True),
)
_STATUS: Final = {"passed": "✓", "warning": "!", "failed": "✗", "not checked": "?"}
_ACTIONS: Final = {
    "quantize": "quantized",
    "copy": "copied unchanged",
    "cast": "stored in another dtype",
    "drop": "left out",
}


def show(report: QuantizeReport, output: Output, *, details: bool = False) -> None:
    """Print the report; with `output.json` as one document, with `details` what happens to each tensor and why."""
    if output.json:
        output.document("quantize", report)
        return
    title = f"{report.model} → {report.out}"
    output.line(f"{title} · {report.name}: {report.summary}", style="bold")
    output.line()
    output.table(_dtype_table(report.bytes_before, report.bytes_after))
    output.line()
    output.line(_sums(report))
    output.line(_time(report))
    if report.calibration is not None:
        output.line(_calibration(report.calibration))
    if report.findings:
        output.line(_gate(report))
    if details:
        output.line()
        output.table(_tensor_table(report.tensors))
    if report.dry_run:
        output.line()
        for check in report.checks:
            output.line(f"{_STATUS[check.status]} {check.name}: {check.found}")
    _warn(report, output)
    output.line()
    output.line(report.serve_note)
    output.line(report.serve_command)


def _dtype_table(before: Mapping[str, int], after: Mapping[str, int]) -> Table:
    names = sorted({*before, *after})
    return Table(
        columns=_BY_DTYPE,
        rows=tuple((name, mb(before.get(name, 0)), mb(after.get(name, 0))) for name in names),
        total=("total", mb(sum(before.values())), mb(sum(after.values()))),
    )


def _sums(report: QuantizeReport) -> str:
    before, after = sum(report.bytes_before.values()), sum(report.bytes_after.values())
    tensors = ", ".join(f"{count(number)} {_ACTIONS[action]}" for action, number in report.counts.items())
    return f"{gb(after)} = {gib(after)}, {percent(after / before)} of the source · tensors: {tensors}"


def _time(report: QuantizeReport) -> str:
    workers = f"{report.workers} worker{'' if report.workers == 1 else 's'}"
    memory = f"at most {gib(report.memory_bytes)} for tiles"
    if report.dry_run:
        moved = report.bytes_read + report.bytes_written
        return (
            f"dry run, nothing written · estimate {report.seconds:.1f} s at 1 GB/s of reading plus writing "
            f"({gb(moved)}) · {workers}, {memory}"
        )
    resumed = f" · {gb(report.bytes_resumed)} were done by an earlier run" if report.bytes_resumed else ""
    return f"{report.seconds:.1f} s · {workers}, {memory}{resumed}"


def _calibration(calibration: CalibrationReport) -> str:
    facts, scales = calibration.facts, count(calibration.scales)
    if facts is None:
        return (
            f"{scales} scales to be calibrated on {count(calibration.samples)} samples of up to "
            f"{count(calibration.max_seq_length)} tokens of {calibration.source} · up to "
            f"{gib(calibration.memory_bytes)} of memory (an estimate; no model was loaded)"
        )
    data = f"{count(facts.samples)} samples of {facts.source} ({count(facts.tokens)} tokens)"
    if calibration.known:
        return f"{scales} scales calibrated on {data} by an earlier run"
    return (
        f"{scales} scales calibrated on {data} in {facts.seconds:.1f} s, with {gib(facts.peak_memory_bytes)} of memory"
    )


def _gate(report: QuantizeReport) -> str:
    of = {status: sum(each.status == status for each in report.findings) for status in _STATUS}
    unknown = f", {count(of['not checked'])} not made" if of["not checked"] else ""
    return f"inspected before it was published: {count(of['passed'])} checks passed{unknown}"


def _tensor_table(tensors: tuple[TensorRow, ...]) -> Table:
    def kind(row: TensorRow) -> tuple[str, ...]:
        return (row.action, row.dtype_before, row.dtype_after or "", str(list(row.shape)), row.reason)

    rows = []
    ordered = sorted(tensors, key=kind)
    position = {row.name: place for place, row in enumerate(tensors)}
    for (action, before, after, shape, reason), alike in groupby(ordered, key=kind):
        for folded in fold(row.name for row in alike):
            name = folded.pattern if len(folded.names) == 1 else f"{folded.pattern} ×{count(len(folded.names))}"
            dtypes = [dtype.removeprefix("torch.") for dtype in (before, after) if dtype]
            dtype = "→".join(dict.fromkeys(dtypes))
            rows.append((position[folded.names[0]], (name, action, dtype, shape, reason)))
    return Table(columns=_BY_TENSOR, rows=tuple(cells for _, cells in sorted(rows)))


def _warn(report: QuantizeReport, output: Output) -> None:
    for check in report.checks:
        if check.status in {"warning", "failed"}:
            output.warning(
                f"{check.name}: {check.found}, wanted {check.wanted}" + (f"; {check.fix}" if check.fix else "")
            )
    for warning in report.warnings:
        output.warning(warning)
    for rows in report.harmed:
        output.warning(
            f"`{rows.tensor}`: {count(rows.count)} rows from row {rows.first} are so small that their scale loses them "
            f"({report.dtype} cannot hold it; llm-compressor does the same): use --dtype bfloat16 or --ignore them"
        )
    for finding in report.findings:
        if finding.status in {"warning", "failed"}:
            output.warning(finding.found + (f"; {finding.consequence}" if finding.consequence else ""))
    for note in report.calibration.notes if report.calibration is not None else ():
        output.note(note)
    if report.left_behind:
        output.note(f"not carried over: {', '.join(report.left_behind)}")
