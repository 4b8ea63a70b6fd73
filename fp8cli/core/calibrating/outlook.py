"""What a calibration will need of the machine, said and judged before a model is loaded.

Where the weights lie while the samples go through is decided here: in memory, or on disk where memory does not do.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Final

from fp8cli.core.calibrating.calibration import CalibrationFacts
from fp8cli.core.calibrating.footprint import Memory, read_footprint
from fp8cli.core.calibrating.ordering import CalibrationOrder
from fp8cli.core.doctor.environment import Check, gib, guard
from fp8cli.core.machine.interpreters import Interpreter, ask, this_interpreter
from fp8cli.core.machine.probes import ROOT, read_memory
from fp8cli.core.model.attention import read_attention
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.checkpoint import Checkpoint

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
    processes: int
    memory_bytes: int
    """Estimated, at most, with the weights where they are."""
    offload: bool
    """Whether the weights stay on disk."""
    offload_why: str
    """The reason for either, as the end of a sentence."""
    memory_loaded_bytes: int
    """Estimated, with all weights in memory."""
    memory_offloaded_bytes: int
    """Estimated, with the weights on disk."""
    offload_files_bytes: int
    """New files on disk while that lasts: copies of experts, which are fused and split again; links take nothing."""
    notes: tuple[str, ...]
    facts: CalibrationFacts | None = None
    """None with a dry run."""
    known: bool = False
    """Whether an unfinished run had found the scales already."""
    nodes: tuple[str, ...] = ()
    """Of a cluster, the one that each process was on; none where all were on this machine."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a calibration needs, and the place of the weights that follows from it."""

    loaded: Memory
    """With all weights in memory."""
    offloaded: Memory
    """With the weights on disk."""
    offload: bool
    """Whether the weights stay on disk."""
    why: str
    """The reason, as the end of a sentence."""
    files_bytes: int
    """Disk that it takes for a while, beside the output in the making."""

    @property
    def memory(self) -> Memory:
        """What is needed with the weights in the place that was chosen."""
        return self.offloaded if self.offload else self.loaded


def estimate_memory(order: CalibrationOrder, plan: Plan, checkpoint: Checkpoint, *, root: Path = ROOT) -> Needs:
    """Estimate what the calibration of a plan needs, and decide where its weights lie, unless that is settled."""
    footprint = read_footprint(plan, checkpoint, samples=order.samples, length=_length(order, checkpoint))
    loaded, offloaded = footprint.loaded(), footprint.offloaded(order.processes)
    offload, why = _place(order, loaded, offloaded, root)
    return Needs(
        loaded=loaded,
        offloaded=offloaded,
        offload=offload,
        why=why,
        files_bytes=footprint.files if offload else 0,
    )


def settle(order: CalibrationOrder, plan: Plan, checkpoint: Checkpoint, *, root: Path = ROOT) -> CalibrationOrder:
    """Return the order with the place of the weights decided, from the memory that is available now."""
    needs = estimate_memory(order, plan, checkpoint, root=root)
    alone = estimate_memory(replace(order, processes=1), plan, checkpoint, root=root)
    return replace(
        order,
        offload="disk" if needs.offload else "none",
        offload_why=needs.why,
        process_bytes=alone.offloaded.least,
    )


def _place(order: CalibrationOrder, loaded: Memory, offloaded: Memory, root: Path) -> tuple[bool, str]:
    if order.offload != "auto":
        return order.offload == "disk", order.offload_why or f"--offload {order.offload}"
    try:
        available = read_memory(root).available_bytes
    except (OSError, ValueError):
        return False, "how much memory is available is not known"
    if loaded.most > available:
        return True, f"about {gib(offloaded.most)} in all, {gib(loaded.most)} with them in memory"
    return False, f"about {gib(loaded.most)} in all, {gib(offloaded.most)} with them on disk"


def foresee(order: CalibrationOrder, plan: Plan, checkpoint: Checkpoint) -> CalibrationReport:
    """Say what the calibration of a plan will need."""
    needs = estimate_memory(order, plan, checkpoint)
    return CalibrationReport(
        source=order.seen.source,
        fingerprint=order.seen.fingerprint,
        samples=order.samples,
        max_seq_length=_length(order, checkpoint),
        seed=order.seed,
        scales=len(plan.calibrated),
        processes=order.processes,
        memory_bytes=needs.memory.most,
        offload=needs.offload,
        offload_why=needs.why,
        memory_loaded_bytes=needs.loaded.most,
        memory_offloaded_bytes=needs.offloaded.most,
        offload_files_bytes=needs.files_bytes,
        notes=order.seen.notes,
    )


def check_calibration(
    order: CalibrationOrder, needs: Needs, *, root: Path = ROOT, here: Interpreter | None = None
) -> tuple[Check, ...]:
    """Judge whether the calibration can be made here. Never raises. here: this interpreter, if it is known already."""
    if order.placed:
        # Theirs is looked at when the nodes are asked.
        found = f"of the nodes that {order.processes:,} processes go to"
        wanted = f"about {gib(order.process_bytes)} for each"
        memory = Check(name="calibration memory", status="not checked", found=found, wanted=wanted)
    else:
        memory = guard("calibration memory", lambda: check_memory(needs, root))
    return memory, check_package(order.python, here)


def check_package(python: Path | None, here: Interpreter | None = None) -> Check:
    """Judge whether an interpreter, None for this one, has llm-compressor. Never raises."""
    return guard(_PACKAGE, lambda: _check_package(_worker(python, here)))


def check_memory(needs: Needs, root: Path = ROOT) -> Check:
    """Check main memory against the estimate: too small for the weights fails, too full just now is a warning."""
    seen, memory = read_memory(root), needs.memory
    name, place = "calibration memory", "for one part of the model at a time" if needs.offload else "to load the model"
    wanted = f"about {gib(memory.most)} {place} and to keep the samples"
    whose = "this machine" if seen.group is None else f"the control group `{seen.group}`"
    weights = f"weights {'on disk' if needs.offload else 'in memory'}: {needs.why}"
    found = f"{gib(seen.available_bytes)} available of the {gib(seen.total_bytes)} of {whose}; {weights}"
    if seen.total_bytes < memory.least:
        less = (
            "calibrate where there is more memory, or choose FP8_DYNAMIC without --kv-cache, which needs no data"
            if needs.offload
            else "leave the weights on disk: --offload disk"
        )
        return Check(name=name, status="failed", found=found, wanted=wanted, fix=less)
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
