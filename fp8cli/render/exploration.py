"""What `fp8 explore` found: a table of all forms, the one to take and why, and how all of it was measured."""

import math
import shlex
from collections.abc import Iterator
from typing import Final

from fp8cli.commands.explore import ExploreReport
from fp8cli.core.exploring.picking import CONFIDENCE
from fp8cli.core.exploring.report import FormRow
from fp8cli.render import measures
from fp8cli.render.console import Output
from fp8cli.render.names import shorten
from fp8cli.render.sections import Command, Judged, Part, Section, show_sections, to_markdown
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, gib, percent, size

_COLUMNS: Final = (
    Column(title=""),
    Column(title="form"),
    Column(title="made", rank=1),
    Column(title="size", right=True),
    Column(title="bits", right=True, rank=5),
    Column(title="dB", right=True, rank=3),
    Column(title="KL", right=True),
    Column(title="±", right=True, rank=2),
    Column(title="top", right=True, rank=4),
    Column(title="from", right=True),
)
_LONGEST_NAME: Final = 60
_LONGEST_WORDS: Final = 200
_COMPRESSOR: Final = "llmcompressor"
_UNKNOWN: Final = "–"
_LEGEND: Final = (
    "made: by fp8 quantize; data: with calibration data; no: it was simulated, and nothing writes it",
    "size: of all shards, computed; bits: of the checkpoint for each parameter; dB: SQNR of the rounded weights",
    "KL: from the model as it is, thousandths of a nat, ± standard error; top: positions with the same likeliest token",
    "from: compute capability from which vLLM computes all of it in FP8",
)
_OLDER: Final = (
    "FP8_W8A16 is what vLLM makes of FP8_DYNAMIC on GPUs from 7.5 to 8.8: FP8 weights, arithmetic in 16 bits"
)


def show(report: ExploreReport, output: Output, *, markdown: bool = False) -> None:
    """Print the report; with `output.json` as one document, with `markdown` as Markdown."""
    if output.json:
        output.document("explore", report)
        return
    sections = tuple(_sections(report))
    if markdown:
        output.out.write("".join(f"{line}\n" for line in to_markdown(sections)))
    else:
        show_sections(sections, output)
    for note in report.notes:
        output.note(note)


def _sections(report: ExploreReport) -> Iterator[Section]:
    title = f"{shorten(report.model, _LONGEST_NAME)} · {size(report.bytes_now)} in {report.dtype}"
    yield Section(title=None, parts=(title,))
    older = (_OLDER,) if any(row.name == "FP8_W8A16" for row in report.rows) else ()
    yield Section(title="Forms", parts=(_table(report), *_LEGEND, *older))
    if any(row.tasks for row in report.rows):
        yield Section(title="Tasks", parts=tuple(_tasks(report)))
    failures = tuple(_failures(report))
    if failures:
        yield Section(title="Not measured", parts=failures)
    yield Section(title="To take", parts=tuple(_pick(report)))
    yield Section(title="How it was measured", parts=tuple(_method(report)))


def _table(report: ExploreReport) -> Table:
    taken = None if report.pick is None else report.pick.name
    return Table(columns=_COLUMNS, rows=tuple(_cells(row, taken=row.name == taken) for row in report.rows))


def _cells(row: FormRow, *, taken: bool) -> tuple[str, ...]:
    return (
        "→" if taken else "",
        row.name,
        ("data" if row.needs_data else "yes") if row.written else "no",
        _UNKNOWN if row.file_bytes is None else size(row.file_bytes),
        _UNKNOWN if row.bits_per_parameter is None else f"{row.bits_per_parameter:.2f}",
        _UNKNOWN if row.sqnr_db is None else decibels(row.sqnr_db),
        _UNKNOWN if row.kl is None else thousandths(row.kl),
        _UNKNOWN if row.kl_se is None else thousandths(row.kl_se),
        _UNKNOWN if row.same_top is None else percent(row.same_top),
        _UNKNOWN if row.native_from is None else "{}.{}".format(*row.native_from),
    )


def decibels(ratio: float) -> str:
    """Write a ratio in dB with one decimal."""
    if math.isfinite(ratio):
        return f"{ratio:z.1f}"
    return "exact" if ratio > 0 else "none"


def thousandths(nats: float) -> str:
    """Write nats in thousandths, in three digits as far as there are decimals: `0.501`, `12.3`, `2190`."""
    value = 1000 * nats
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def _tasks(report: ExploreReport) -> Iterator[Part]:
    columns = (
        Column(title="form"),
        Column(title="task", shortens=True),
        Column(title="items", right=True, rank=2),
        Column(title="as it is", right=True, rank=1),
        Column(title="form's", right=True),
        Column(title="Δ", right=True),
        Column(title=f"{100 * CONFIDENCE:g} % interval", right=True),
    )
    rows = tuple(
        (
            row.name,
            f"{shorten(change.task, _LONGEST_NAME)} {measures.name_of(metric)}",
            count(metric.items),
            measures.value(metric, metric.base),
            measures.value(metric, metric.other),
            measures.change(metric),
            measures.spread(metric),
        )
        for row in report.rows
        for change in row.tasks
        for metric in change.metrics[:1]
    )
    yield Table(columns=columns, rows=rows)
    yield "the metric that decides, over the same items, paired one by one; --json has all of them"


def _failures(report: ExploreReport) -> Iterator[str]:
    """Say what failed and why, forms with one reason together."""
    names: dict[str, list[str]] = {}
    for row in report.rows:
        if row.failure is not None:
            hint = "" if row.failure.hint is None else f"; {row.failure.hint}"
            names.setdefault(f"{row.failure.message}{hint}", []).append(row.name)
    return (f"{', '.join(forms)}: {why}" for why, forms in names.items())


def _pick(report: ExploreReport) -> Iterator[Part]:
    if report.pick is None:
        yield "none: nothing that was measured can be written"
        return
    pick = report.pick
    row = next(each for each in report.rows if each.name == pick.name)
    kl = 0.0 if row.kl is None else row.kl
    others = ", ".join(name for name in pick.as_good if name != pick.name)
    alike = f"; its KL cannot be told from that of {others}" if others else ""
    yield Judged(status="passed", word=pick.name, text=f"KL {thousandths(kl)} thousandths of a nat{alike}")
    yield f"rule: {pick.rule}"
    cached = next((each for each in report.rows if each.name == f"{pick.name}+KV" and each.kl is not None), None)
    if cached is not None and cached.kl is not None:
        yield f"an FP8 KV cache, of half the size, takes KL from {thousandths(kl)} to {thousandths(cached.kl)}"
    if report.gpu is None:
        yield "no NVIDIA GPU is at hand, so which form is native here did not count"
    else:
        yield f"native here was judged by {report.gpu}"
    if report.next_command is not None:
        yield Command(text=report.next_command)


def _method(report: ExploreReport) -> Iterator[Part]:
    texts = report.texts
    yield (
        f"{count(texts.measured_on)} texts of {shorten(texts.source, _LONGEST_NAME)} at {count(texts.positions)} "
        f"positions, of up to {count(texts.max_seq_length)} tokens; scales that need data come from "
        f"{count(texts.calibrated_on)} other texts, seed {texts.seed}"
    )
    yield (
        "forms were simulated: weights, activations, keys and values rounded as the written checkpoint has them, "
        f"multiplied in {report.dtype}; what FP8 kernels round besides is not in it"
    )
    if report.modules.words:
        yield f"rounded was what {shorten(shlex.join(report.modules.words), _LONGEST_WORDS)} leaves"
    if (version := report.versions.get(_COMPRESSOR)) is not None:
        yield (
            f"GPTQ, AWQ and SmoothQuant are llm-compressor's own ({version}), on a copy of the model; where channels "
            "move into weights there is no dB"
        )
    yield (
        f"one loading on {report.device}, {report.seconds:.1f} s, at most {gib(report.peak_memory_bytes)} of memory "
        f"({gib(report.memory_bytes)} were estimated)"
    )
