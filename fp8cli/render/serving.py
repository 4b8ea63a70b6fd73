"""Will it run: weights, KV cache, tensor-parallel sizes, and a row for each GPU with the line that serves it there."""

from collections.abc import Iterator
from typing import Final

from fp8cli.core.serving_report import Context, GpuFit, ServingReport
from fp8cli.core.tensor_parallel import TensorParallel
from fp8cli.render.sections import Command, Section
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, gb, gib

_COLUMNS: Final = (
    Column(title="GPU"),
    Column(title="GPUs", right=True),
    Column(title="longest context", right=True),
    Column(title="what it does", shortens=True, rank=1),
)


def serving_section(serving: ServingReport, *, details: bool) -> Section:
    """Describe what serving takes; with `details` why each tensor-parallel size is refused."""
    lines = [f"weights {gb(serving.weight_bytes)} = {gib(serving.weight_bytes)}", _cache(serving)]
    lines += [_context(context) for context in serving.contexts]
    lines += list(_parallel(serving.parallel, serving.not_judged, details=details))
    note = f"estimates: {serving.utilization:.0%} of the memory, less a reserve for activations".replace("%", " %", 1)
    return Section(
        title="will it run",
        parts=(
            *lines,
            Table(columns=_COLUMNS, rows=tuple(_row(fit) for fit in serving.gpus)),
            note,
            *_commands(serving.gpus),
        ),
    )


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


def _parallel(sizes: tuple[TensorParallel, ...], not_judged: tuple[str, ...], *, details: bool) -> Iterator[str]:
    works = [str(each.size) for each in sizes if each.verdict == "works"]
    others = [each for each in sizes if each.verdict != "works"]
    line = f"tensor parallel: {', '.join(works) or 'no size'} work{'s' if len(works) == 1 else ''}"
    if others and not details:
        first, rest = others[0], others[1:]
        line += f"; {first.size} {first.verdict}: {'; '.join(first.reasons)}"
        line += f"; {', '.join(str(each.size) for each in rest)} neither" if rest else ""
    yield line
    for each in others if details else ():
        remedy = f"; {each.remedy}" if each.remedy else ""
        yield f"tensor parallel {each.size} {each.verdict}: {'; '.join(each.reasons)}{remedy}"
    if not_judged:
        yield f"how vLLM splits {', '.join(not_judged[:3])} is not known here"


def _row(fit: GpuFit) -> tuple[str, ...]:
    best = fit.best
    words = fit.needs.refusal or "; ".join((fit.needs.words, *fit.needs.notes))
    if best is None:
        return (fit.gpu.name, "-", "-", fit.needs.refusal or _why_not(fit) or words)
    context = "unknown" if best.context is None else count(best.context)
    return (fit.gpu.name, str(best.gpus), context, words)


def _why_not(fit: GpuFit) -> str | None:
    """Return why it cannot be served on any number of these GPUs."""
    large = [each.gpus for each in fit.fits if each.verdict == "too large"]
    if large and len(large) == len(fit.fits):
        return f"too large for {max(large)} of them"
    return next((each.reason for each in fit.fits if each.reason and each.verdict != "too large"), None)
