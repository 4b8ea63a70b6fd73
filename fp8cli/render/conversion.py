"""What `fp8 convert` and `fp8 dequantize` did, or would do, in words and tables."""

from fp8cli.core.converting.report import ConversionReport
from fp8cli.render import delivery, streaming
from fp8cli.render.console import Output
from fp8cli.render.preflight import show_preflight, warn_of_fallback
from fp8cli.render.tensor_plan import (
    dtype_table,
    gate_in_words,
    show_checks,
    size_in_words,
    tensor_table,
    time_in_words,
    warn_of_checks,
    warn_of_findings,
)
from fp8cli.render.units import count


def show(report: ConversionReport, output: Output, *, command: str, details: bool = False) -> None:
    """Print the report; with `output.json` as one document, with `details` what happens to each tensor and why."""
    if output.json:
        output.document(command, report)
        return
    output.line(f"{report.model} → {report.out}", style="bold")
    output.line(f"before  {report.dialect_before}: {report.words_before}")
    output.line(f"after   {report.dialect_after}: {report.words_after}")
    output.line()
    output.table(dtype_table(report.bytes_before, report.bytes_after))
    output.line()
    output.line(size_in_words(report))
    if command == "convert":
        output.line(_exactness(report))
    output.line(time_in_words(report))
    if report.streamed is not None:
        for line in streaming.sentences(report.streamed):
            output.line(line)
    if report.findings:
        output.line(gate_in_words(report.findings))
    if report.delivery is not None:
        output.line(delivery.sentence(report.delivery))
    if details:
        output.line()
        output.table(tensor_table(report.tensors))
    if report.dry_run:
        output.line()
        show_checks(report.checks, output)
    _warn(report, output)
    output.line()
    show_preflight(report.serving, output, fp8=command == "convert", details=details)
    output.line(report.serve_note)
    output.line(report.serve_command)


def _exactness(report: ConversionReport) -> str:
    if report.bit_exact:
        return "every weight keeps its codes bit for bit, every scale its value"
    return "every quantized weight is rounded a second time (--requantize)"


def _warn(report: ConversionReport, output: Output) -> None:
    warn_of_checks(report.checks, output)
    warn_of_fallback(report.fallback, output)
    for warning in report.warnings:
        output.warning(warning)
    for rows in report.harmed:
        output.warning(f"`{rows.tensor}`: {count(rows.count)} rows from row {rows.first} are too small for their scale")
    warn_of_findings(report.findings, output)
    for note in report.notes:
        output.note(note)
    if report.left_behind:
        output.note(f"not carried over: {', '.join(report.left_behind)}")
