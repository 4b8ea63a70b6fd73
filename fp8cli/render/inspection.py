"""The inspection of a checkpoint in words and tables, with the seed's figures: MB of 10⁶ bytes to the last byte."""

import csv
from io import StringIO
from typing import Final, Literal

from fp8cli.commands.inspect import InspectReport
from fp8cli.core.folding import fold
from fp8cli.core.inspection.inventory import DtypeRow, TensorGroup, TensorRow, Totals
from fp8cli.core.inspection.roles import RoleRow, sum_roles
from fp8cli.core.serving.requirement import required_words
from fp8cli.errors import printable
from fp8cli.render.console import Output
from fp8cli.render.fidelity import fidelity_section
from fp8cli.render.sections import Findings, Section, show_sections, to_markdown
from fp8cli.render.serving import serving_section, vllm_section
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, gb, gib, mb, percent
from fp8cli.render.verdicts import verdict_line

View = Literal["text", "markdown", "csv"]

_BY_DTYPE: Final = (
    Column(title="dtype"),
    Column(title="tensors", right=True, rank=1),
    Column(title="parameters", right=True, rank=2),
    Column(title="mem (MB)", right=True),
    Column(title="share", right=True, rank=3),
)
_BY_ROLE: Final = (
    Column(title="role"),
    Column(title="dtype", rank=1),
    Column(title="tensors", right=True, rank=4),
    Column(title="parameters", right=True, rank=3),
    Column(title="mem (MB)", right=True),
    Column(title="share", right=True, rank=5),
    Column(title="bits/weight", right=True, rank=2),
)
_BY_TENSOR: Final = (
    Column(title="tensor", shortens=True),
    Column(title="role", rank=3),
    Column(title="dtype", rank=1),
    Column(title="shape", rank=2),
    Column(title="mem (MB)", right=True),
)
_NAMED_IGNORED: Final = 4
"""Patterns of ignored modules that a line names; the document has them all."""


def show(report: InspectReport, output: Output, *, view: View = "text", details: bool = False) -> None:
    """Print a report. With `output.json` it goes out as one document; `csv` has a line for every tensor."""
    if output.json:
        output.document("inspect", report, exit_code=report.exit_code)
        return
    match view:
        case "text":
            show_sections(sections(report, details=details), output)
        case "markdown":
            output.out.write("".join(f"{line}\n" for line in to_markdown(sections(report, details=details))))
        case "csv":
            output.out.write(to_csv(report))


def sections(report: InspectReport, *, details: bool) -> tuple[Section, ...]:
    """Cut a report into sections; the verdict comes last, where a terminal ends."""
    parts = [Section(title=None, parts=(" · ".join(_headline(report)), *_scheme(report)))]
    if report.total.tensors:  # Where no tensor could be read, tables of zeros would say that it is small and fits.
        parts += [
            Section(title=None, parts=(_dtype_table(report), _sum(report))),
            Section(title="by role", parts=(_role_table(report.roles),)),
            serving_section(report, details=details),
        ]
        if details:
            parts.append(vllm_section(report))
    if report.against is not None:
        parts.append(fidelity_section(report.against, details=details))
    listed = report.tensors if report.groups is None else report.groups
    if listed:
        parts.append(Section(title="tensors", parts=(_tensor_table(listed),)))
    parts.append(Section(title="checks", parts=(Findings(findings=report.findings, all_passed=details),)))
    required = report.serving.required
    unmet = (required_words(required),) if required is not None and required.split.verdict != "works" else ()
    return (*parts, Section(title=None, parts=(verdict_line(report.verdict, report.findings), *unmet)))


def to_csv(report: InspectReport) -> str:
    """Write one line a tensor, with its signal to noise where it was compared with a source. Names are escaped."""
    paper = StringIO()
    writer = csv.writer(paper, lineterminator="\n")
    writer.writerow(("tensor", "file", "role", "dtype", "shape", "parameters", "bytes", "sqnr_db", "largest_error"))
    compared = {} if report.against is None else {weight.name: weight for weight in report.against.weights}
    for row in report.tensors or ():
        shape = "x".join(map(str, row.shape))
        known = compared.get(row.name)
        measured = ("", "") if known is None else (f"{known.sqnr_db:.3f}", f"{known.largest_error:.6g}")
        parameters = "" if row.parameters is None else row.parameters
        names = (printable(row.name), printable(row.file))
        writer.writerow((*names, row.role, row.dtype, shape, parameters, row.bytes, *measured))
    return paper.getvalue()


def _headline(report: InspectReport) -> list[str]:
    known = report.quantization.scheme or report.quantization.dialect
    return [report.name, *([report.architecture] if report.architecture else []), known]


def _scheme(report: InspectReport) -> list[str]:
    quantization = report.quantization
    by = quantization.dialect if quantization.format is None else f"{quantization.dialect}, {quantization.format}"
    lines = [quantization.words if quantization.scheme is None else f"{quantization.words} ({by})"]
    if quantization.kv_cache is not None:
        lines.append(f"KV cache: {quantization.kv_cache}")
    if quantization.ignored:
        lines.append(f"ignored: {_ignored(quantization.ignored)}")
    return lines


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
    return (title, count(row.tensors), _known(row.parameters), mb(row.bytes), percent(share))


def _role_table(rows: tuple[RoleRow, ...]) -> Table:
    return Table(columns=_BY_ROLE, rows=tuple(map(_role_cells, rows)), total=_role_cells(sum_roles(rows)))


def _role_cells(row: RoleRow) -> tuple[str, ...]:
    bits = "" if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}"
    return (
        row.role,
        _short(row.dtype),
        count(row.tensors),
        _known(row.parameters),
        mb(row.bytes),
        percent(row.share),
        bits,
    )


def _short(dtype: str) -> str:
    return dtype.removeprefix("torch.")


def _known(number: int | None) -> str:
    return "unknown" if number is None else count(number)


def _sum(report: InspectReport) -> str:
    size = report.total.bytes
    files = f"{count(report.files)} file{'' if report.files == 1 else 's'}"
    return f"{gb(size)} = {gib(size)} in {files} · headers {count(report.header_bytes)} bytes"


def _tensor_table(rows: tuple[TensorRow, ...] | tuple[TensorGroup, ...]) -> Table:
    return Table(
        columns=_BY_TENSOR,
        rows=tuple((_title(row), row.role, _short(row.dtype), _shape(row.shape), mb(row.bytes)) for row in rows),
    )


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _title(row: TensorRow | TensorGroup) -> str:
    match row:
        case TensorRow():
            return row.name
        case TensorGroup(count=1):
            return row.pattern
        case TensorGroup():
            return f"{row.pattern} ×{count(row.count)}"
