"""Will it run: weights, KV cache, tensor-parallel sizes, and a row for each GPU with the line that serves it there."""

from collections.abc import Iterator
from typing import Final

from fp8cli.commands.inspect import InspectReport
from fp8cli.core.serving.serving_report import Context, GpuFit, ServingReport
from fp8cli.render.preflight import COMPUTES, preflight_lines, preflight_tables
from fp8cli.render.sections import Command, Section
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, gb, gib

_COLUMNS: Final = (
    Column(title="GPU"),
    Column(title="GPUs", right=True),
    Column(title="longest context", right=True),
)


def serving_section(report: InspectReport, *, details: bool) -> Section:
    """Describe what serving takes; with `details` every reason against each tensor-parallel size.

    What is damaged gets no line to serve it with: vLLM may well load it, and answer with nonsense.
    """
    serving = report.serving
    lines = [f"weights {gb(serving.weight_bytes)} = {gib(serving.weight_bytes)}", _cache(serving)]
    lines += [_context(context) for context in serving.contexts]
    lines += preflight_lines(serving, details=details)
    note = f"estimates: {serving.utilization:.0%} of the memory, less a reserve for activations".replace("%", " %", 1)
    return Section(
        title="will it run",
        parts=(
            *lines,
            _gpu_table(serving.gpus, fp8=report.quantization.fp8_weights > 0),
            *_remarks(serving.gpus),
            note,
            *(
                ("as if it were whole: it is damaged, see the checks",)
                if report.verdict == "damaged"
                else _commands(serving.gpus)
            ),
        ),
    )


def vllm_section(report: InspectReport) -> Section:
    """Say what each generation of GPUs does with it, and what of it asks for which release of vLLM."""
    tables = preflight_tables(report.serving, fp8=report.quantization.fp8_weights > 0)
    return Section(title="what vLLM makes of it", parts=tuple(tables))


def _commands(fits: tuple[GpuFit, ...]) -> Iterator[Command]:
    """Yield every line that serves it, with the GPUs it is for as a comment that a shell skips."""
    gpus: dict[str, list[str]] = {}
    for fit in fits:
        if fit.best is not None and fit.best.command is not None:
            gpus.setdefault(fit.best.command, []).append(fit.gpu.name)
    for command, names in gpus.items():
        yield Command(text=command if len(gpus) == 1 else f"{command}  # {', '.join(names)}")


def _cache(serving: ServingReport) -> str:
    cache = serving.cache
    each = cache.per_token()
    if cache.unknown is not None or each is None:
        return f"KV cache unknown: {cache.unknown}"
    return f"KV cache {count(each)} bytes a token in {cache.numbers}: {cache.rule}"


def _context(context: Context) -> str:
    size = "unknown" if context.sequence_bytes is None else gib(context.sequence_bytes)
    beyond = "" if context.allowed else ", longer than the model goes"
    return f"KV cache of {count(context.tokens)} tokens: {size}{beyond}"


def _gpu_table(fits: tuple[GpuFit, ...], *, fp8: bool) -> Table:
    """`fp8`: whether anything is in FP8, so that the GPUs differ in how they compute with it."""
    rows = tuple(_row(fit) for fit in fits)
    if not fp8:
        return Table(columns=_COLUMNS, rows=rows)
    modes = (COMPUTES[fit.needs.mode] for fit in fits)
    return Table(
        columns=(*_COLUMNS, Column(title="computes")),
        rows=tuple((*row, mode) for row, mode in zip(rows, modes, strict=True)),
    )


def _row(fit: GpuFit) -> tuple[str, ...]:
    if fit.best is None:
        return (fit.gpu.name, "-", "-")
    context = fit.best.context
    return (fit.gpu.name, str(fit.best.gpus), "unknown" if context is None else count(context))


def _remarks(fits: tuple[GpuFit, ...]) -> Iterator[str]:
    """Yield what else is to be known of the GPUs; those that share a remark are named together."""
    gpus: dict[str, list[str]] = {}
    for fit in fits:
        for remark in _remarks_on(fit):
            gpus.setdefault(remark, []).append(fit.gpu.name)
    for remark, names in gpus.items():
        yield f"{', '.join(names)}: {remark}"


def _remarks_on(fit: GpuFit) -> tuple[str, ...]:
    needs = fit.needs
    refused = needs.refusal or (_why_not(fit) if fit.best is None else None)
    if refused is not None:
        return (refused,)
    differ = needs.experts not in {None, needs.mode}
    return (*((f"its experts compute {COMPUTES[needs.experts]}",) if differ else ()), *needs.notes)


def _why_not(fit: GpuFit) -> str | None:
    """Return why it cannot be served on any number of these GPUs."""
    large = [each.gpus for each in fit.fits if each.verdict == "too large"]
    if large and len(large) == len(fit.fits):
        return f"too large for {max(large)} of them"
    return next((each.reason for each in fit.fits if each.reason and each.verdict != "too large"), None)
