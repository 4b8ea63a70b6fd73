"""What serving takes before a GPU is chosen: tensor-parallel sizes, the release of vLLM, generations of GPUs."""

from collections.abc import Iterator, Mapping
from typing import Final

from fp8cli.core.serving.gpu_needs import OnGeneration
from fp8cli.core.serving.modes import Mode
from fp8cli.core.serving.preflight import Preflight
from fp8cli.core.serving.releases import ReleaseNeed, VllmNeed
from fp8cli.core.serving.requirement import Fallback, required_words
from fp8cli.core.serving.serving_report import ServingReport
from fp8cli.core.serving.tensor_parallel import TensorParallel
from fp8cli.render.console import Output
from fp8cli.render.table import Column, Table

COMPUTES: Final[Mapping[Mode | None, str]] = {
    "native": "in FP8 (W8A8)",
    "weight-only": "in 16 bits (W8A16)",
    "unsupported": "not at all",
    None: "unknown",
}
"""How a GPU computes with FP8 weights."""

_BY_GENERATION: Final = (
    Column(title="capability"),
    Column(title="GPUs", rank=1, shortens=True),
    Column(title="computes"),
    Column(title="options", rank=2),
)
_BY_NEED: Final = (
    Column(title="vLLM"),
    Column(title="for", shortens=True),
    Column(title="not in", rank=1),
    Column(title="seen in", rank=2, shortens=True),
)


def show_preflight(preflight: Preflight, output: Output, *, fp8: bool, details: bool) -> None:
    """Print it; `fp8`: whether anything is in FP8, so that generations of GPUs differ."""
    for table in preflight_tables(preflight, fp8=fp8) if details else ():
        output.table(table)
        output.line()
    for line in preflight_lines(preflight, details=details):
        output.line(line)


def warn_of_fallback(fallback: Fallback | None, output: Output) -> None:
    """Say that another scheme was taken than the one that was asked for, and why."""
    if fallback is not None:
        output.warning(f"{fallback.sentence}: {fallback.reason}")


def preflight_lines(preflight: Preflight | ServingReport, *, details: bool) -> Iterator[str]:
    """Yield what is known in sentences; with `details` every reason against each tensor-parallel size."""
    yield from _parallel(preflight.parallel, preflight.not_judged, details=details)
    if preflight.required is not None:
        yield required_words(preflight.required)
    yield _release(preflight.vllm)


def preflight_tables(preflight: Preflight | ServingReport, *, fp8: bool) -> Iterator[Table]:
    """Yield what each generation of GPUs does, where something is in FP8, and what asks for which release of vLLM."""
    if fp8:
        rows = tuple(_generation(each) for each in preflight.generations)
        yield Table(columns=_BY_GENERATION, rows=rows)
    yield Table(columns=_BY_NEED, rows=tuple(_need(need) for need in preflight.vllm.needs))


def _parallel(sizes: tuple[TensorParallel, ...], not_judged: tuple[str, ...], *, details: bool) -> Iterator[str]:
    works = [str(each.size) for each in sizes if each.verdict == "works"]
    others = [each for each in sizes if each.verdict != "works"]
    line = f"tensor parallel: {', '.join(works) or 'no size'} work{'s' if len(works) < 2 else ''}"
    if others and not details:
        first, rest = others[0], [str(each.size) for each in others[1:]]
        line += f"; {first.size} {first.verdict}: {first.reasons[0]}"
        line += f"; nor {', '.join(rest)}" if rest else ""
        line += "; --details has all reasons" if len(first.reasons) > 1 else ""
    yield line
    for each in others if details else ():
        remedy = f"; {each.remedy}" if each.remedy else ""
        yield f"tensor parallel {each.size} {each.verdict}: {'; '.join(each.reasons)}{remedy}"
    if not_judged:
        yield f"how vLLM splits {', '.join(not_judged[:3])} is not known here"


def _release(vllm: VllmNeed) -> str:
    """Say which release it takes, and what asks for it."""
    unknown = next((need for need in vllm.needs if need.known == "unknown"), None)
    if unknown is not None:
        return f"which vLLM it takes is not known: {unknown.what}: {unknown.source}"
    deciding = next(need for need in vllm.needs if need.release == vllm.least and need.below is None)
    more = "".join(f", {need.release} {_below(need)}" for need in vllm.needs if need.below is not None)
    if deciding.known == "at most":
        return f"vLLM {vllm.least} or later{more}: {deciding.what}, for which older ones were not looked at"
    return f"vLLM {vllm.least} or later{more}: {deciding.what}"


def _need(need: ReleaseNeed) -> tuple[str, ...]:
    what = need.what if need.below is None else f"{need.what} ({_below(need)})"
    return (need.release or "unknown", what, need.lacking or "not looked at", need.source)


def _below(need: ReleaseNeed) -> str:
    major, minor = need.below or (0, 0)
    return f"below compute capability {major}.{minor}"


def _generation(each: OnGeneration) -> tuple[str, ...]:
    generation, needs = each.generation, each.needs
    major, minor = generation.capability
    words = COMPUTES[needs.mode]
    if needs.experts not in {None, needs.mode}:
        words += f"; experts {COMPUTES[needs.experts]}"
    words = "not at all" if needs.refusal is not None else words
    return (f"{major}.{minor}", f"{generation.name}: {generation.examples}", words, " ".join(needs.options))
