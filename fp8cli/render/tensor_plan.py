"""A plan as tables: what becomes of the bytes, by dtype, and of the tensors, each with its reason."""

from collections.abc import Mapping
from itertools import groupby
from typing import Final

from fp8cli.core.converting.report import ConversionReport
from fp8cli.core.doctor.environment import Check
from fp8cli.core.findings import Finding
from fp8cli.core.folding import fold
from fp8cli.core.making.report import QuantizeReport
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
    "requantize": "quantized anew",
    "dequantize": "dequantized",
    "copy": "copied unchanged",
    "cast": "stored in another dtype",
    "drop": "left out",
}


def dtype_table(before: Mapping[str, int], after: Mapping[str, int]) -> Table:
    """Return the table of bytes by torch's names of dtypes, with a total. after: empty where it is not known yet."""
    names = sorted({*before, *after})
    if not after:
        unknown = tuple((name, mb(before[name]), "unknown") for name in names)
        return Table(columns=_BY_DTYPE, rows=unknown, total=("total", mb(sum(before.values())), "unknown"))
    return Table(
        columns=_BY_DTYPE,
        rows=tuple((name, mb(before.get(name, 0)), mb(after.get(name, 0))) for name in names),
        total=("total", mb(sum(before.values())), mb(sum(after.values()))),
    )


def _counts_in_words(counts: Mapping[str, int]) -> str:
    """Say how many tensors met each fate."""
    return ", ".join(f"{count(number)} {_ACTIONS[action]}" for action, number in counts.items())


def time_in_words(report: QuantizeReport | ConversionReport) -> str:
    """Say how long it took, or will take, and with what."""
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


def size_in_words(report: QuantizeReport | ConversionReport) -> str:
    """Say how large the output is, and how many tensors met each fate."""
    before, after = sum(report.bytes_before.values()), sum(report.bytes_after.values())
    tensors = _counts_in_words(report.counts)
    return f"{gb(after)} = {gib(after)}, {percent(after / before)} of the source · tensors: {tensors}"


def tensor_table(tensors: tuple[TensorRow, ...]) -> Table:
    """Return the table of tensors, those that are alike but for numbers in their names folded into one row."""

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


def gate_in_words(findings: tuple[Finding, ...]) -> str:
    """Say what the gate before publishing looked at."""
    of = {status: sum(each.status == status for each in findings) for status in _STATUS}
    unknown = f", {count(of['not checked'])} not made" if of["not checked"] else ""
    return f"inspected before it was published: {count(of['passed'])} checks passed{unknown}"


def show_checks(checks: tuple[Check, ...], output: Output) -> None:
    """Print one line for each check of the machine."""
    for check in checks:
        output.line(f"{_STATUS[check.status]} {check.name}: {check.found}")


def warn_of_checks(checks: tuple[Check, ...], output: Output) -> None:
    """Warn of every check that did not pass."""
    for check in checks:
        if check.status in {"warning", "failed"}:
            output.warning(
                f"{check.name}: {check.found}, wanted {check.wanted}" + (f"; {check.fix}" if check.fix else "")
            )


def warn_of_findings(findings: tuple[Finding, ...], output: Output) -> None:
    """Warn of every finding of the gate that did not pass."""
    for finding in findings:
        if finding.status in {"warning", "failed"}:
            output.warning(finding.found + (f"; {finding.consequence}" if finding.consequence else ""))
