"""Verdicts on one checkpoint on this machine: is it whole, in which mode does it run, does it fit, is there room.

The arithmetic is core.serving.fit's. It goes by the memory a GPU has; what is taken of it just now is a warning,
because vLLM refuses to start when less is free than it means to use.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Final

from fp8cli.core.doctor.candidate import Candidate
from fp8cli.core.doctor.environment import Check, check_disk, gb, gib
from fp8cli.core.doctor.gpu_checks import KIND_NAMES
from fp8cli.core.findings import Status
from fp8cli.core.machine.amd import AmdGpu
from fp8cli.core.machine.gpus import Gpu, Gpus
from fp8cli.core.machine.probes import Memory
from fp8cli.core.serving.fit import UTILIZATION, judge_serving
from fp8cli.core.serving.gpu_models import GpuModel, models_found
from fp8cli.core.serving.modes import MODE_WORDS, mode_on_cpu
from fp8cli.core.serving.serving_report import Fit, GpuFit
from fp8cli.errors import BadInput, CannotRun

_BEST_FIRST: Final[tuple[Status, ...]] = ("passed", "warning", "failed", "not checked")
_EXPERTS: Final = ".experts."


def check_whole(candidate: Candidate) -> Check:
    """Say whether files, index and headers agree, and what the checkpoint is."""
    name, wanted = "checkpoint", "files, index, headers and config that agree"
    findings, dialect = candidate.survey.findings, candidate.dialect
    inspect = f"fp8 inspect {quote(candidate.survey.label)}"
    for status in ("failed", "warning"):
        found = [finding for finding in findings if finding.status == status]
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            return Check(name=name, status=status, found=f"{found[0].found}{more}", wanted=wanted, fix=inspect)
    open_ = next((finding for finding in findings if finding.status == "not checked"), None)
    if open_ is not None:
        return Check(name=name, status="not checked", found=open_.found, wanted=wanted)
    words = f"{dialect.name}, {gb(candidate.served.weight_bytes)}: {dialect.words}"
    if dialect.weights:  # A NaN among them is as bad as a missing one, and no header tells.
        words += f"; the values of its scales are for {inspect}"
    return Check(name=name, status="passed", found=words, wanted=wanted)


def check_room(candidate: Candidate, out: Path) -> Check:
    """Check that the checkpoint can be quantized, and that what comes of it fits beside `out`."""
    name, wanted = "disk space", "room for the output"
    if candidate.dialect.is_quantized:
        found = f"nothing to write: `{candidate.survey.label}` is quantized already ({candidate.dialect.name})"
        return Check(name=name, status="not checked", found=found, wanted=wanted)
    try:
        needed = candidate.output_bytes()
    except CannotRun as unknown:
        return Check(name=name, status="not checked", found=unknown.message, wanted=wanted)
    except BadInput as refusal:
        fix = refusal.hint
        return Check(name=name, status="failed", found=refusal.message, wanted="what can be quantized", fix=fix)
    return check_disk(out, needed)


def check_unpacked(candidate: Candidate, memory: Memory, gpus: Gpus) -> Check:
    """Check that the weights, unpacked to 16 bits, fit into one memory: transformers keeps FP8 only while it loads."""
    name, needed = "unpacked", candidate.wide_bytes
    wanted = f"{gib(needed)} for the weights in 16 bits, as transformers computes with them"
    on_gpus = [gpu.free_bytes for gpu in gpus.visible if gpu.free_bytes is not None]
    found = f"{gib(memory.available_bytes)} of main memory available"
    found += f", {gib(max(on_gpus))} on the GPU with most" if on_gpus else ""
    if needed <= max([memory.available_bytes, *on_gpus]):
        return Check(name=name, status="passed", found=found, wanted=wanted)
    fix = "evaluate on vLLM, which keeps them in FP8, or on a machine with more memory"
    return Check(name=name, status="warning", found=found, wanted=wanted, fix=fix)


def check_mode(candidate: Candidate, gpus: Gpus, amd: Sequence[AmdGpu], *, amx: Callable[[], bool]) -> Check:
    """Say in which mode vLLM runs the checkpoint on each kind of GPU here, or on the processor."""
    name, wanted = "serving", "a GPU whose vLLM kernels take this kind of FP8"
    if not candidate.dialect.weights:
        found = f"nothing is in FP8: {candidate.dialect.name}, served as it is"
        return Check(name=name, status="passed", found=found, wanted="nothing")
    if gpus.unknown is not None:
        return Check(name=name, status="not checked", found=gpus.unknown, wanted=wanted)
    if not gpus.visible and not amd:
        return _mode_on_processor(candidate, amx=amx())
    if candidate.served.kind is None:
        found = f"how vLLM runs {candidate.dialect.name} is not known here: {candidate.dialect.words}"
        return Check(name=name, status="not checked", found=found, wanted=wanted)
    report = judge_serving(candidate.served, contexts=(), gpus=_models(gpus, amd))
    needs = [(fit.gpu.name, fit.needs) for fit in report.gpus]
    words = [f"{gpu}: {each.refusal or each.words}{_notes(each.notes)}" for gpu, each in needs]
    status: Status = "passed"
    if any(each.refusal is not None for _, each in needs):
        status = "failed" if all(each.refusal is not None for _, each in needs) else "warning"
    elif any(each.mode is None for _, each in needs):
        status = "not checked"
    fix = "serve it on another GPU, or name the better one in CUDA_VISIBLE_DEVICES" if status != "passed" else None
    return Check(name=name, status=status, found="; ".join(words), wanted=wanted, fix=fix)


def check_fit(candidate: Candidate, gpus: Gpus, amd: Sequence[AmdGpu]) -> Check:
    """Say on how many of the GPUs here it fits, with which context, and the line that serves it so."""
    name, wanted = "fit", f"{gib(candidate.served.weight_bytes)} for weights, and room for the KV cache"
    if gpus.unknown is not None:
        return Check(name=name, status="not checked", found=gpus.unknown, wanted=wanted)
    if not gpus.visible and not amd:
        return Check(name=name, status="not checked", found="no GPU to fit it on", wanted=wanted)
    report = judge_serving(candidate.served, contexts=(), gpus=_models(gpus, amd))
    verdicts = [_fit_on(each, gpus.visible, report.longest) for each in report.gpus]
    best = min((status for status, _, _ in verdicts), key=_BEST_FIRST.index)
    found = "; ".join(words for _, words, _ in verdicts)
    fix = next((fix for status, _, fix in verdicts if status == best and fix is not None), None)
    return Check(name=name, status=best, found=found, wanted=wanted, fix=fix)


def _fit_on(of: GpuFit, visible: Sequence[Gpu], longest: int | None) -> tuple[Status, str, str | None]:
    """Return status, words and what to do for one kind of GPU."""
    here, gpu = of.gpu.count or 0, of.gpu.name
    if of.here is not None:
        busy = _busy(of.here, [each for each in visible if each.name == gpu])
        if busy is not None:
            return busy
        words = f"{of.here.verdict} on {of.here.gpus} × {gpu}, {_context(of.here, longest)}"
        return ("passed", words, None) if of.here.verdict == "fits" else ("warning", words, of.here.command)
    if of.best is not None:
        words = f"{of.best.verdict} on {of.best.gpus} × {gpu}, and here are {here}"
        return "failed", words, f"serve it on {of.best.gpus} GPUs: {of.best.command}"
    largest = [fit for fit in of.fits if fit.gpus <= max(here, 1)][-1]
    reason = largest.reason or largest.verdict
    if largest.verdict == "unknown":
        return "not checked", f"{gpu}: {reason}", None
    return "failed", f"{largest.verdict} on {largest.gpus} × {gpu}: {reason}", "serve it on larger or other GPUs"


def _busy(fit: Fit, gpus: Sequence[Gpu]) -> tuple[Status, str, str | None] | None:
    """Say that too little is free for vLLM to start as it would; None: enough is, or it is not known."""
    known = [gpu for gpu in gpus if gpu.free_bytes is not None and gpu.memory_bytes is not None]
    idle = [gpu for gpu in known if (gpu.free_bytes or 0) >= UTILIZATION * (gpu.memory_bytes or 0)]
    if len(known) < fit.gpus or len(idle) >= fit.gpus:
        return None
    gpu = min(known, key=lambda each: (each.free_bytes or 0) / (each.memory_bytes or 1))
    words = (
        f"would fit on {fit.gpus} × {gpu.name}, but {gib(gpu.free_bytes or 0)} of {gib(gpu.memory_bytes or 0)} are "
        f"free, and vLLM wants {UTILIZATION:.0%}"
    )
    return "warning", words, "end what else uses the GPU, or lower --gpu-memory-utilization"


def _context(fit: Fit, longest: int | None) -> str:
    if fit.context is None:
        return "context unknown"
    return f"context {fit.context:,}" + (f" of {longest:,}" if longest not in {None, fit.context} else "")


def _mode_on_processor(candidate: Candidate, *, amx: bool) -> Check:
    name, wanted = "serving", "a GPU, or what vLLM's CPU build can do"
    kind = candidate.served.kind
    if kind is None:
        found = f"no GPU, and how vLLM's CPU build runs {candidate.dialect.name} is not known here"
        return Check(name=name, status="not checked", found=found, wanted=wanted)
    experts = any(_EXPERTS in each.name for each in candidate.dialect.weights)
    processor = f"no GPU; vLLM's CPU build {'with' if amx else 'without'} AMX"
    declaration = candidate.dialect.declaration
    if declaration is not None and declaration.method == "fbgemm_fp8":
        found = f"{processor} does not run {candidate.dialect.name}, for which it takes Marlin's kernels"
        return Check(name=name, status="failed", found=found, wanted=wanted, fix="serve it on a GPU")
    one_scale = any(each.granularity == "tensor" for each in candidate.dialect.weights)
    mode = mode_on_cpu(kind, amx=amx, experts=experts, one_scale=one_scale)
    if mode != "unsupported":
        fix = "serve it on a GPU: the CPU build is for trying things out"
        found = f"{processor} runs it" if mode == "native" else f"{processor} {MODE_WORDS[mode]}"
        return Check(name=name, status="warning", found=found, wanted=wanted, fix=fix)
    what = "experts in FP8" if experts else KIND_NAMES[kind]
    what = "FP8 with one scale for a whole weight" if one_scale else what
    found = f"{processor} does not run {what}"
    return Check(name=name, status="failed", found=found, wanted=wanted, fix="serve it on a GPU")


def _models(gpus: Gpus, amd: Sequence[AmdGpu]) -> tuple[GpuModel, ...]:
    # Of a GPU that is cut into slices no process gets all.
    whole = [replace(gpu, memory_bytes=None) if gpu.mig else gpu for gpu in gpus.visible]
    counted = Counter((gpu.name, gpu.gfx, gpu.memory_bytes) for gpu in amd)
    return (
        *models_found(whole),
        *(
            GpuModel(name=name, memory_bytes=memory, gfx=gfx, count=count)
            for (name, gfx, memory), count in counted.items()
        ),
    )


def _notes(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""
