"""What llm-compressor's engine will need of the machine, said and judged before it is started.

Other than the streaming engine it holds the whole model, and at the end what is packed of it besides:

    weights + packed + what the samples leave (see `calibrating.footprint`) + GPTQ's Hessians of one layer

or, with the weights on disk, those of one part and a shard of what is packed in the place of the first two (1.17 GB
measured for a model of 0.86 GB, and 1.98 GB with it in memory; FP8_DYNAMIC, llm-compressor 0.14). On disk its result
lies beside the output until that is published, and so do the weights that are new, where they stay there.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fp8cli.core.calibrating.footprint import Memory, read_footprint
from fp8cli.core.calibrating.ordering import CalibrationOrder
from fp8cli.core.calibrating.outlook import check_package
from fp8cli.core.compressing.compression import CompressionFacts
from fp8cli.core.compressing.ordering import CompressionOrder
from fp8cli.core.doctor.environment import Check, gib, guard
from fp8cli.core.machine.probes import ROOT, read_memory
from fp8cli.core.model.attention import read_attention
from fp8cli.core.quantizing.hessians import largest_hessians
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.checkpoint import Checkpoint

SHARD_BYTES: Final = 10**9
"""What the compressor collects of its result before it writes it, `calibrator.compressing.SHARD`."""
_MEMORY: Final = "llm-compressor memory"


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The texts that samples are drawn from."""

    source: str
    """As they were named."""
    fingerprint: str
    """Of the rows that were drawn, see `data.CalibrationData`."""
    samples: int
    max_seq_length: int
    """At most so many tokens a sample: what was asked for, or the positions that the model has."""
    seed: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """What llm-compressor's engine needs, and once it is done how it went."""

    modifiers: tuple[str, ...]
    """As far as options or a recipe name them; llm-compressor's classes once it is done."""
    recipe: str | None
    """The file, by its name; None: options say what is to be done."""
    memory_bytes: int
    """Estimated, at most. With a recipe, of which it is not known how much it packs, as if it packed nothing."""
    offload: bool
    """Whether the weights stay on disk."""
    offload_why: str
    """The reason for either, as the end of a sentence."""
    data: DataReport | None
    """None where there is none, or no need of any."""
    facts: CompressionFacts | None = None
    """None with a dry run."""
    known: bool = False
    """Whether an unfinished run had done it already."""


def foresee_compression(order: CompressionOrder, plan: Plan, checkpoint: Checkpoint) -> CompressionReport:
    """Say what the compression of a plan will need."""
    recipe = order.recipe
    return CompressionReport(
        modifiers=order.choice.modifiers.names if recipe is None else recipe.modifiers,
        recipe=None if recipe is None else recipe.name,
        memory_bytes=estimate_compression(order, plan, checkpoint).most,
        offload=order.offload == "disk",
        offload_why=order.offload_why,
        data=_data(order, checkpoint),
    )


def _data(order: CompressionOrder, checkpoint: Checkpoint) -> DataReport | None:
    data = order.data
    if data is None:
        return None
    return DataReport(
        source=data.seen.source,
        fingerprint=data.seen.fingerprint,
        samples=data.samples,
        max_seq_length=_length(data, checkpoint),
        seed=data.seed,
        notes=data.seen.notes,
    )


def _length(data: CalibrationOrder, checkpoint: Checkpoint) -> int:
    longest = read_attention(checkpoint.config).longest
    return data.max_seq_length if longest is None else min(data.max_seq_length, longest)


def estimate_compression(order: CompressionOrder, plan: Plan, checkpoint: Checkpoint) -> Memory:
    """Estimate the main memory of the compressor, see above."""
    data = order.data
    samples, length = (0, 0) if data is None else (data.samples, _length(data, checkpoint))
    footprint = read_footprint(plan, checkpoint, samples=samples, length=length)
    hessians = largest_hessians(plan) if order.choice.modifiers.gptq else 0
    if order.offload == "disk":
        one, packed = footprint.offloaded(), min(plan.bytes_written, SHARD_BYTES)
    else:
        one, packed = footprint.loaded(), plan.bytes_written
    return Memory(least=one.least, most=one.most + packed + hessians)


def settle_place(order: CompressionOrder, plan: Plan, checkpoint: Checkpoint, *, root: Path = ROOT) -> CompressionOrder:
    """Return the order with the place of the weights decided: on disk where memory would not do."""
    if order.offload != "auto":
        return replace(order, offload_why=order.offload_why or f"--offload {order.offload}")
    try:
        available = read_memory(root).available_bytes
    except (OSError, ValueError):
        return replace(order, offload="none", offload_why="how much memory is available is not known")
    most = estimate_compression(order, plan, checkpoint).most
    why = f"{gib(most)} would hold them, what is packed and the samples, and {gib(available)} are available"
    return replace(order, offload="disk" if most > available else "none", offload_why=why)


def copies_of(order: CompressionOrder) -> int:
    """Return how many times the size of the output lies on disk at most, before it is published."""
    return 3 if order.offload == "disk" else 2


def check_compression(order: CompressionOrder, memory: Memory, *, root: Path = ROOT) -> tuple[Check, ...]:
    """Judge whether llm-compressor's engine can be used here. Never raises."""
    return (guard(_MEMORY, lambda: check_whole(order, memory, root)), check_package(order.python))


def check_whole(order: CompressionOrder, memory: Memory, root: Path = ROOT) -> Check:
    """Check main memory against the estimate: too small for the weights fails, too full just now is a warning."""
    seen = read_memory(root)
    on_disk = order.offload == "disk"
    holds = "one part of the model at a time, a shard of the result" if on_disk else "the model, what is packed of it"
    wanted = f"about {gib(memory.most)} to hold {holds}, and the samples"
    whose = "this machine" if seen.group is None else f"the control group `{seen.group}`"
    place = "the weights stay on disk" if on_disk else "the weights are loaded"
    available = f"{gib(seen.available_bytes)} available of the {gib(seen.total_bytes)} of {whose}"
    found = f"{available}; {place}: {order.offload_why}"
    if seen.total_bytes < memory.least:
        fix = "use --engine streaming, or go where there is more memory" if on_disk else "use --offload disk"
        return Check(name=_MEMORY, status="failed", found=found, wanted=wanted, fix=fix)
    if seen.available_bytes < memory.most:
        fix = "end other programs, or take less: --num-calibration-samples, --max-seq-length"
        return Check(name=_MEMORY, status="warning", found=found, wanted=wanted, fix=fix)
    return Check(name=_MEMORY, status="passed", found=found, wanted=wanted)
