"""What a run made, or with a dry run would make: assembled from the plan, what was foreseen, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fp8cli.core.budgeting.report import BudgetReport
from fp8cli.core.calibrating.outlook import CalibrationReport
from fp8cli.core.clustering.outlook import ClusterOutlook
from fp8cli.core.clustering.report import ClusterReport
from fp8cli.core.compressing.engines import Engine
from fp8cli.core.compressing.outlook import CompressionReport
from fp8cli.core.delivering.sending import Delivered
from fp8cli.core.doctor.environment import Check
from fp8cli.core.fetching.streaming import StreamReport
from fp8cli.core.findings import Finding
from fp8cli.core.making.production import Produced
from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.quantizing.engine import HarmedRows, Written
from fp8cli.core.quantizing.outlook import plan_note, serving_warnings
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import Resources
from fp8cli.core.quantizing.tensor_rows import TensorRow, by_torch_name, tensor_rows, torch_name
from fp8cli.core.serving.command_line import serve_command, served_as
from fp8cli.core.serving.preflight import Preflight
from fp8cli.core.serving.requirement import Fallback, serve_options
from fp8cli.formats.addresses import HUB
from fp8cli.schemes import KvCache, Scheme

UNKNOWN: Final = "What the recipe makes of the checkpoint is not known before it has run."


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """What was foreseen of processes; None where none is needed."""

    calibration: CalibrationReport | None
    compression: CompressionReport | None
    cluster: ClusterOutlook | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """What was done, or with `dry_run` what would be done."""

    model: str
    revision: str | None
    out: Path | str
    """A folder, or an address if nothing stays here."""
    name: str
    """What was chosen, in a word or two: `FP8_DYNAMIC`, `FP8 + FP8 KV cache`."""
    summary: str
    scheme: Scheme | None
    """None: the weights stay as they are."""
    kv_cache: KvCache | None
    calibration: CalibrationReport | None
    """None where nothing needs data, and where llm-compressor's engine reads them."""
    engine: Engine
    compression: CompressionReport | None
    """None where llm-compressor's engine is not used."""
    budget: BudgetReport | None
    """What was chosen to stay in 16 bits; None where nobody asked for a choice."""
    streamed: StreamReport | None
    """None where the source was read from files here."""
    dtype: str
    dry_run: bool
    counts: Mapping[str, int]
    bytes_before: Mapping[str, int]
    bytes_after: Mapping[str, int]
    bytes_read: int
    bytes_written: int
    shards: int
    workers: int
    memory_bytes: int
    ignored_modules: tuple[str, ...]
    left_behind: tuple[str, ...]
    checks: tuple[Check, ...]
    warnings: tuple[str, ...]
    harmed: tuple[HarmedRows, ...]
    findings: tuple[Finding, ...]
    """Of the gate before publishing; nothing with `dry_run`."""
    seconds: float
    """Measured, or with `dry_run` estimated from `ASSUMED_BYTES_PER_SECOND`: of llm-compressor's engine the least."""
    bytes_resumed: int
    serving: Preflight | None
    """What serving the result takes, from its headers alone; None: it is not known before a recipe has run."""
    fallback: Fallback | None
    """Why another scheme was taken than the one that was asked for."""
    delivery: Delivered | None
    """How it was sent elsewhere; None where it was not, and with `dry_run`."""
    serve_command: str
    serve_note: str
    tensors: tuple[TensorRow, ...]
    cluster_outlook: ClusterOutlook | None
    """What a cluster would make of it; None where the weights are made on this machine."""
    cluster: ClusterReport | None
    """What one did; None with `dry_run`."""

    @property
    def out_is_far(self) -> bool:
        """Whether a server has to be given a copy."""
        return isinstance(self.out, str) and not self.out.startswith(f"{HUB}://")


def assemble(  # noqa: PLR0913 - one argument for each thing a report is made of
    plan: Plan,
    choice: Choice,
    *,
    model: str,
    commit: str | None,
    out: Path | str,
    foreseen: Foreseen,
    budget: BudgetReport | None = None,
    serving: Preflight | None,
    fallback: Fallback | None,
    streamed: StreamReport | None = None,
    resources: Resources,
    checks: tuple[Check, ...],
    left_behind: tuple[str, ...],
    seconds: float,
    done: Produced | None,
) -> QuantizeReport:
    """Put a report together. model: the source as the user named it; done: None with a dry run."""
    calibration, compression = foreseen.calibration, foreseen.compression
    written = Written(harmed=(), bytes_resumed=0) if done is None else done.written
    # What a recipe makes of a checkpoint is not known before it has run.
    known = choice.recipe is None or done is not None
    if done is not None:
        plan = done.plan
        if calibration is not None and done.calibrated is not None:
            calibration = replace(
                calibration, facts=done.calibrated.facts, known=done.calibrated.known, nodes=done.calibrated.nodes
            )
        if compression is not None and done.whole is not None:
            made = done.whole.compressed
            compression = replace(compression, modifiers=made.facts.modifiers, facts=made.facts, known=made.known)
        if streamed is not None:
            # On a cluster the nodes do it, and nobody adds up what they saw.
            streamed = None if done.streamed is None else replace(streamed, facts=done.streamed)
    return QuantizeReport(
        model=model,
        revision=commit,
        out=out,
        name=choice.name,
        summary=choice.summary,
        scheme=plan.scheme,
        kv_cache=plan.kv_cache,
        calibration=calibration,
        engine="streaming" if compression is None else "llmcompressor",
        compression=compression,
        budget=budget,
        streamed=streamed,
        dtype=torch_name(plan.dtype),
        dry_run=done is None,
        counts=plan.counts if known else {},
        bytes_before=by_torch_name(plan.bytes_before),
        bytes_after=by_torch_name(plan.bytes_after) if known else {},
        bytes_read=plan.bytes_read,
        bytes_written=plan.bytes_written,
        shards=len(plan.shards),
        workers=resources.workers,
        memory_bytes=resources.memory_bytes,
        ignored_modules=plan.ignored_modules,
        left_behind=left_behind,
        checks=checks,
        warnings=(
            *(() if serving is None else serving_warnings(serving)),
            *(done.cluster.warnings if done is not None and done.cluster else ()),
        ),
        harmed=written.harmed,
        findings=() if done is None else done.findings,
        seconds=seconds,
        bytes_resumed=written.bytes_resumed,
        serving=serving,
        fallback=fallback,
        delivery=None if done is None else done.delivered,
        serve_command=serve_command(served_as(out), *serve_options(serving)),
        serve_note=plan_note(plan) if known else UNKNOWN,
        tensors=tensor_rows(plan) if known else (),
        cluster_outlook=foreseen.cluster,
        cluster=None if done is None else done.cluster,
    )
