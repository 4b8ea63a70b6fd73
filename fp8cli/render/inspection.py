"""The inspection of a checkpoint as tables, with the seed's figures: MB of 10⁶ bytes to the last byte."""

from typing import Final

from fp8cli.commands.inspect import InspectReport
from fp8cli.core.folding import fold
from fp8cli.core.inventory import DtypeRow, TensorGroup, TensorRow, Totals
from fp8cli.core.quantization import Quantization
from fp8cli.render.console import Output
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, gb, gib, mb, percent

_BY_DTYPE: Final = (
    Column(title="dtype"),
    Column(title="tensors", right=True, rank=1),
    Column(title="parameters", right=True, rank=2),
    Column(title="mem (MB)", right=True),
    Column(title="share", right=True, rank=3),
)
_BY_TENSOR: Final = (
    Column(title="tensor", shortens=True),
    Column(title="dtype", rank=1),
    Column(title="shape", rank=2),
    Column(title="mem (MB)", right=True),
)
_NAMED_IGNORED: Final = 4
"""Patterns of ignored modules that the first line names; the document has them all."""


def show(report: InspectReport, output: Output) -> None:
    """Print a report: one line about the checkpoint, the dtypes, the sum, and the tensors if the report has them.

    With `output.json` the whole report goes out as one document.
    """
    if output.json:
        output.document("inspect", report, exit_code=report.exit_code)
        return
    output.line(" · ".join(_headline(report)), style="bold")
    output.line()
    output.table(_dtype_table(report))
    output.line()
    output.line(_sum(report))
    listed = report.tensors if report.groups is None else report.groups
    if listed is not None:
        output.line()
        output.table(_tensor_table(listed))


def _headline(report: InspectReport) -> list[str]:
    parts = [report.name]
    if report.architecture is not None:
        parts.append(report.architecture)
    if report.quantization is not None:
        parts.append(_scheme(report.quantization))
        if report.quantization.ignored:
            parts.append(f"ignored: {_ignored(report.quantization.ignored)}")
    elif not report.has_config:
        parts.append("no config.json")
    elif report.has_fp8_tensors:
        parts.append("FP8 tensors, but no quantization_config")
    else:
        parts.append("not quantized")
    return parts


def _scheme(quantization: Quantization) -> str:
    if quantization.words is None:
        return f"quantized: {quantization.method}"
    return f"{quantization.scheme or quantization.method}: {quantization.words}"


def _ignored(names: tuple[str, ...]) -> str:
    regexes = [name for name in names if name.startswith("re:")]
    patterns = [*regexes, *(folded.pattern for folded in fold(name for name in names if name not in regexes))]
    shown = ", ".join(patterns[:_NAMED_IGNORED])
    more = len(patterns) - _NAMED_IGNORED
    return f"{shown} and {more} more" if more > 0 else shown


def _dtype_table(report: InspectReport) -> Table:
    return Table(
        columns=_BY_DTYPE,
        rows=tuple(_dtype_cells(row.dtype, row, row.share) for row in report.dtypes),
        total=_dtype_cells("total", report.total, 1.0),
    )


def _dtype_cells(title: str, row: DtypeRow | Totals, share: float) -> tuple[str, ...]:
    return (title, count(row.tensors), count(row.parameters), mb(row.bytes), percent(share))


def _sum(report: InspectReport) -> str:
    size = report.total.bytes
    files = f"{count(report.files)} file{'' if report.files == 1 else 's'}"
    return f"{gb(size)} = {gib(size)} in {files} · headers {count(report.header_bytes)} bytes"


def _tensor_table(rows: tuple[TensorRow, ...] | tuple[TensorGroup, ...]) -> Table:
    return Table(
        columns=_BY_TENSOR,
        rows=tuple((_title(row), row.dtype, f"[{', '.join(map(str, row.shape))}]", mb(row.bytes)) for row in rows),
    )


def _title(row: TensorRow | TensorGroup) -> str:
    match row:
        case TensorRow():
            return row.name
        case TensorGroup(count=1):
            return row.pattern
        case TensorGroup():
            return f"{row.pattern} ×{count(row.count)}"
