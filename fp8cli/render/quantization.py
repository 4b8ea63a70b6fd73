"""What `fp8 quantize` did, or would do, in words and tables."""

from collections.abc import Iterator
from typing import Final

from fp8cli.commands.quantize import QuantizeReport
from fp8cli.core.calibrating.calibration import CalibrationFacts
from fp8cli.core.calibrating.outlook import CalibrationReport
from fp8cli.render import budget, cluster, compression, delivery, streaming
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
from fp8cli.render.units import count, gib

_MAX_NAMED: Final = 3
"""Names of scales that one warning shows."""


def show(report: QuantizeReport, output: Output, *, details: bool = False) -> None:
    """Print the report; with `output.json` as one document, with `details` what happens to each tensor and why."""
    if output.json:
        output.document("quantize", report)
        return
    title = f"{report.model} → {report.out}"
    output.line(f"{title} · {report.name}: {report.summary}", style="bold")
    output.line()
    output.table(dtype_table(report.bytes_before, report.bytes_after))
    output.line()
    for sentence in _sentences(report):
        output.line(sentence)
    if report.budget is not None:
        output.line()
        budget.show(report.budget, output, details=details)
    if report.cluster is not None:
        output.line()
        cluster.show_work(report.cluster, output)
    elif report.cluster_outlook is not None:
        output.line()
        cluster.show_outlook(report.cluster_outlook, output)
    if details:
        output.line()
        output.table(tensor_table(report.tensors))
    if report.dry_run:
        output.line()
        show_checks(report.checks, output)
    _warn(report, output)
    output.line()
    if report.serving is not None:
        show_preflight(report.serving, output, fp8="quantize" in report.counts, details=details)
    output.line(report.serve_note)
    if report.out_is_far:
        output.line(f"vLLM serves a folder, or a repository of the Hub: copy {report.out} into a folder first.")
    output.line(report.serve_command)


def _sentences(report: QuantizeReport) -> Iterator[str]:
    if report.bytes_after:
        yield size_in_words(report)
    yield _time(report)
    if report.streamed is not None:
        yield from streaming.sentences(report.streamed)
    if report.compression is not None:
        yield compression.sentence(report.compression)
    if report.calibration is not None:
        yield _calibration(report.calibration)
    if report.findings:
        yield gate_in_words(report.findings)
    if report.delivery is not None:
        yield delivery.sentence(report.delivery)


def _time(report: QuantizeReport) -> str:
    if report.compression is not None:
        unknown = "dry run, nothing written · how long llm-compressor takes is not known"
        return unknown if report.dry_run else f"{report.seconds:.1f} s"
    return time_in_words(report)


def _calibration(calibration: CalibrationReport) -> str:
    facts, scales = calibration.facts, count(calibration.scales)
    if facts is None:
        return (
            f"{scales} scales to be calibrated on {count(calibration.samples)} samples of up to "
            f"{count(calibration.max_seq_length)} tokens of {calibration.source} · {_estimate(calibration)}"
        )
    data = f"{count(facts.samples)} samples of {facts.source} ({count(facts.tokens)} tokens)"
    if calibration.known:
        return f"{scales} scales calibrated on {data} by an earlier run"
    place = ", weights on disk" if calibration.offload else ""
    return (
        f"{scales} scales calibrated on {data} in {facts.seconds:.1f} s, with {gib(facts.peak_memory_bytes)} of "
        f"memory{place}{_over(calibration)}"
    )


def _over(calibration: CalibrationReport) -> str:
    if not calibration.nodes:
        return ""
    places = ", ".join(f"`{node}`" for node in dict.fromkeys(calibration.nodes))
    return f", by {count(calibration.processes)} processes on {places}"


def _estimate(calibration: CalibrationReport) -> str:
    places = (
        f"{gib(calibration.memory_loaded_bytes)} of memory with the weights in it",
        f"{gib(calibration.memory_offloaded_bytes)} with them on disk",
    )
    chosen = "on disk" if calibration.offload else "in memory"
    shared = f" for {count(calibration.processes)} processes" if calibration.processes > 1 else ""
    return f"up to {' or '.join(places)}{shared} (an estimate; no model was loaded); they stay {chosen}"


def _warn(report: QuantizeReport, output: Output) -> None:
    warn_of_checks(report.checks, output)
    warn_of_fallback(report.fallback, output)
    for warning in report.warnings:
        output.warning(warning)
    if report.dry_run and report.cluster_outlook is not None and report.cluster_outlook.warning is not None:
        output.warning(report.cluster_outlook.warning)
    for rows in report.harmed:
        output.warning(
            f"`{rows.tensor}`: {count(rows.count)} rows from row {rows.first} are so small that their scale loses them "
            f"({report.dtype} cannot hold it; llm-compressor does the same): use --dtype bfloat16 or --ignore them"
        )
    if report.calibration is not None and report.calibration.facts is not None:
        _warn_of_dead(report.calibration.facts, output)
    warn_of_findings(report.findings, output)
    for note in report.calibration.notes if report.calibration is not None else ():
        output.note(note)
    for note in compression.notes(report.compression) if report.compression is not None else ():
        output.note(note)
    if report.left_behind:
        output.note(f"not carried over: {', '.join(report.left_behind)}")


def _warn_of_dead(facts: CalibrationFacts, output: Output) -> None:
    if not facts.dead:
        return
    named = ", ".join(f"`{name}`" for name in facts.dead[:_MAX_NAMED])
    more = f" and {count(len(facts.dead) - _MAX_NAMED)} more" if len(facts.dead) > _MAX_NAMED else ""
    output.warning(
        f"{named}{more}: the values were 0 in every sample, so that the scale says nothing about them: take other "
        "samples, or --ignore such layers if they are dead"
    )
