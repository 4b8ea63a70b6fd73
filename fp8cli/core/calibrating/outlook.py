"""What a calibration will need of the machine, said and judged before a model is loaded.

Memory is estimated from headers and config. All of the model is loaded; then the samples go through it layer by layer,
and what the layers hand on is kept for every sample:

    1 GB + weights + samples · length · width · bytes per number + length · vocabulary · 4

The first term is Python with torch, transformers and llm-compressor (0.7 GB measured with 16 samples, 1.0 GB with 512,
of a model of 2 MB; llm-compressor 0.14, CPU build of torch 2.13), the third an upper bound: texts may be shorter.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Final

from fp8cli.core.calibrating.calibration import CalibrationFacts
from fp8cli.core.calibrating.ordering import CalibrationOrder
from fp8cli.core.doctor.environment import Check, gib, guard
from fp8cli.core.machine.interpreters import Interpreter, ask, this_interpreter
from fp8cli.core.machine.probes import ROOT, read_memory
from fp8cli.core.model.attention import read_attention
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.safetensors import DTYPES

PROGRAM_BYTES: Final = 10**9
_LOGIT_BYTES: Final = 4
_TABLES: Final = frozenset({"embedding", "output head"})
_PACKAGE: Final = "llmcompressor"
_INSTALL: Final = "llmcompressor>=0.14.0.1,<0.14.1"


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """What a calibration needs, and once it is made how it went."""

    source: str
    """The data, as it was named."""
    fingerprint: str
    """Of the rows that were drawn, see `data.CalibrationData`."""
    samples: int
    max_seq_length: int
    """At most so many tokens a sample: what was asked for, or the positions that the model has."""
    seed: int
    scales: int
    """Tensors of scales to be found."""
    memory_bytes: int
    """Estimated, at most."""
    notes: tuple[str, ...]
    facts: CalibrationFacts | None = None
    """None with a dry run."""
    known: bool = False
    """Whether an unfinished run had found the scales already."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Main memory of a calibration, estimated in bytes."""

    least: int
    """Without the samples: less cannot do."""
    most: int


def foresee(order: CalibrationOrder, plan: Plan, checkpoint: Checkpoint) -> CalibrationReport:
    """Say what the calibration of a plan will need."""
    return CalibrationReport(
        source=order.seen.source,
        fingerprint=order.seen.fingerprint,
        samples=order.samples,
        max_seq_length=_length(order, checkpoint),
        seed=order.seed,
        scales=len(plan.calibrated),
        memory_bytes=estimate_memory(order, plan, checkpoint).most,
        notes=order.seen.notes,
    )


def estimate_memory(order: CalibrationOrder, plan: Plan, checkpoint: Checkpoint) -> Memory:
    """Estimate the main memory of the calibrator, see above."""
    kept = [tensor for tensor in plan.tensors if tensor.action != "drop"]
    weights = sum(tensor.source.elements * DTYPES[tensor.compute_dtype].bits // 8 for tensor in kept)
    attention = read_attention(checkpoint.config)
    width = (attention.heads or 0) * (attention.head_size or 0)
    length = _length(order, checkpoint)
    handed_on = order.samples * length * width * DTYPES[plan.dtype].bits // 8
    vocabulary = max((tensor.source.shape[0] for tensor in kept if tensor.role in _TABLES), default=0)
    least = PROGRAM_BYTES + weights
    return Memory(least=least, most=least + handed_on + length * vocabulary * _LOGIT_BYTES)


def check_calibration(
    order: CalibrationOrder, memory: Memory, *, root: Path = ROOT, here: Interpreter | None = None
) -> tuple[Check, ...]:
    """Judge whether the calibration can be made here. Never raises. here: this interpreter, if it is known already."""
    return (
        guard("calibration memory", lambda: check_memory(memory, root)),
        check_package(order.python, here),
    )


def check_package(python: Path | None, here: Interpreter | None = None) -> Check:
    """Judge whether an interpreter, None for this one, has llm-compressor. Never raises."""
    return guard(_PACKAGE, lambda: _check_package(_worker(python, here)))


def check_memory(memory: Memory, root: Path = ROOT) -> Check:
    """Check main memory against the estimate: too small for the weights fails, too full just now is a warning."""
    seen = read_memory(root)
    name, wanted = "calibration memory", f"about {gib(memory.most)} to load the model and to keep the samples"
    whose = "this machine" if seen.group is None else f"the control group `{seen.group}`"
    found = f"{gib(seen.available_bytes)} available of the {gib(seen.total_bytes)} of {whose}"
    if seen.total_bytes < memory.least:
        fix = "calibrate where there is more memory, or choose FP8_DYNAMIC without --kv-cache, which needs no data"
        return Check(name=name, status="failed", found=found, wanted=wanted, fix=fix)
    if seen.available_bytes < memory.most:
        fix = "end other programs, or take less: --num-calibration-samples, --max-seq-length"
        return Check(name=name, status="warning", found=found, wanted=wanted, fix=fix)
    return Check(name=name, status="passed", found=found, wanted=wanted)


def _worker(python: Path | None, here: Interpreter | None) -> Interpreter:
    if python is None or python.absolute() == Path(sys.executable).absolute():
        return here or this_interpreter()
    return ask(python, "--python")


def _check_package(worker: Interpreter) -> Check:
    where = f"`{worker.python}`"
    wanted = f"{_INSTALL}, which finds the scales"
    if worker.problem is not None:
        fix = "name another interpreter with --python"
        return Check(name=_PACKAGE, status="failed", found=f"{where}: {worker.problem}", wanted=wanted, fix=fix)
    version = worker.version_of(_PACKAGE)
    if version is None:
        install = f"uv pip install --python {quote(str(worker.python))} {quote(_INSTALL)}"
        fix = f"{install}, or name an interpreter that has it with --python"
        return Check(name=_PACKAGE, status="failed", found=f"not installed in {where}", wanted=wanted, fix=fix)
    return Check(name=_PACKAGE, status="passed", found=f"{version} in {where}", wanted=wanted)


def _length(order: CalibrationOrder, checkpoint: Checkpoint) -> int:
    longest = read_attention(checkpoint.config).longest
    return order.max_seq_length if longest is None else min(order.max_seq_length, longest)
