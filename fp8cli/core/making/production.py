"""From a plan to a checkpoint under its name: calibrated where the plan needs it, written, examined, renamed.

    staging ← side files ← weights and scales (one of two engines) ← config ← fp8.json → gate → published, or delivered
    elsewhere

The streaming engine writes the weights of every scheme; calibration adds nothing but scales, and keeps them beside the
output in the making, so that a run that goes on need not calibrate again. llm-compressor's engine is core.compressing.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.budgeting.report import BudgetReport
from fp8cli.core.calibrating.calibration import Calibrated, CalibrationEvent
from fp8cli.core.calibrating.ordering import CalibrationOrder, environment_of
from fp8cli.core.clustering.driving import ClusterLabour, ClusterWork
from fp8cli.core.clustering.events import ClusterBegins
from fp8cli.core.clustering.report import ClusterReport
from fp8cli.core.compressing.compression_events import CompressionEvent
from fp8cli.core.compressing.ordering import CompressionOrder
from fp8cli.core.compressing.whole import Whole, compress_whole
from fp8cli.core.delivering.delivery import delivering
from fp8cli.core.delivering.delivery_events import DeliveryEvent
from fp8cli.core.delivering.ordering import DeliveryOrder
from fp8cli.core.delivering.sending import Delivered
from fp8cli.core.fetching.streaming import StreamFacts
from fp8cli.core.fetching.window_supply import WindowSupply
from fp8cli.core.findings import Finding
from fp8cli.core.inspection.gate import pass_gate
from fp8cli.core.inspection.reading import BytesRead, ReadingBegins
from fp8cli.core.making.attesting import Attestation, attest, note_of_quantization
from fp8cli.core.making.calibrating import find_scales
from fp8cli.core.making.joining import joined
from fp8cli.core.making.notes import note_budget, note_calibration, tools_of
from fp8cli.core.making.source import Source
from fp8cli.core.model.selection import Selection
from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.quantizing.crew import Together
from fp8cli.core.quantizing.engine import Progress, Written, execute
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import Resources
from fp8cli.core.quantizing.side_files import Provenance, carry_over, describe
from fp8cli.core.serving.requirement import Fallback
from fp8cli.errors import BadInput, Fp8Error, Interrupted
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.staging import Staging, discard, disk_errors, stage

CALIBRATION: Final = "calibration"
COMPRESSION: Final = "compression"
"""The folders, beside the output in the making, in which a process works and keeps what it found or made."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """Told to `notify` once, before the first piece: what the progress will add up to."""

    tensors: int
    bytes_read: int


ProductionEvent = (
    CalibrationEvent | ClusterBegins | CompressionEvent | Started | Progress | ReadingBegins | BytesRead | DeliveryEvent
)
Notify = Callable[[ProductionEvent], None]


@dataclass(frozen=True, kw_only=True)
class Production:
    """What is to be made, from what, and where; nothing speaks against it any more."""

    model: str
    """The source as the user named it."""
    name: str
    """The source as the card names it: a Hub id, or the name of the folder."""
    source: Source
    choice: Choice
    plan: Plan
    """With a recipe: of the source alone, for what comes of it is not known."""
    selection: Selection
    calibration: CalibrationOrder | None
    """For the streaming engine; None where the plan needs no data."""
    compression: CompressionOrder | None
    """For llm-compressor's engine; None: the streaming engine makes the weights."""
    out: Path
    resources: Resources
    targets: Sequence[str]
    ignore: Sequence[str]
    overwrite: bool
    restart: bool
    budget: BudgetReport | None = None
    """What was chosen to stay in 16 bits; its modules are in `ignore` already."""
    fallback: Fallback | None = None
    """Why another scheme was taken than the one that was asked for."""
    hashed: bool = True
    """Whether fp8.json has the SHA-256 of every file, or the sizes alone."""
    delivery: DeliveryOrder | None = None
    """Where it is to be sent; None: it stays here."""
    cluster: ClusterWork | None = None
    """None: the weights are made on this machine."""
    judge: Callable[[Whole], None] = lambda _: None
    """Raises CannotRun where what llm-compressor made is not what was required; it stays for a run without that."""


@dataclass(frozen=True, kw_only=True)
class Produced:
    """What came of it."""

    plan: Plan
    written: Written
    findings: tuple[Finding, ...]
    """Of the gate."""
    calibrated: Calibrated | None
    whole: Whole | None
    """What llm-compressor's engine made; None where it was not used."""
    delivered: Delivered | None
    """None where it stayed here."""
    streamed: StreamFacts | None
    """What was measured where the source is elsewhere; None where it is here."""
    cluster: ClusterReport | None = None
    """What the nodes of a cluster did; None where there was none."""


def produce(production: Production, notify: Notify) -> Produced:
    """Make the output beside its final place and publish it when it is whole and sound.

    Raises Fp8Error with what is wrong. Nothing is published then; what is done is kept unless the source is at fault.
    """
    source, plan, out = production.source, production.plan, production.out
    state = source.state()
    identity = _identity(production, state)
    with (
        stage(out, identity, restart=production.restart) as staging,
        delivering(
            production.delivery,
            staging,
            identity,
            workers=production.resources.workers,
            overwrite=production.overwrite,
            restart=production.restart,
            notify=notify,
        ) as delivery,
    ):
        with _discarded_if_unfit(out):
            source.check_duplicates(plan)
            with disk_errors(out):
                carry_over(source.checkpoint, source.folder, staging)
            source.check_carried(staging)
        whole = _compress(production, staging, notify)
        if whole is not None:
            production.judge(whole)
        calibrated = _calibrate(production, staging, notify)
        streamed = None
        nodes = joined(production.cluster, source, staging, production.resources, hashed=production.hashed)
        with _discarded_if_unfit(out), ExitStack() as cluster, ExitStack() as books:
            labour = cluster.enter_context(nodes)
            attestation = books.enter_context(_attest(production, staging, labour, calibrated))
            plan = plan if whole is None else whole.plan
            watch = Together((attestation, delivery.watch(plan, labour)))
            if whole is not None:
                written = Written(harmed=(), bytes_resumed=0)
                notify(Started(tensors=whole.tensors, bytes_read=plan.bytes_written))
                with disk_errors(out):
                    whole.write(source.local.resolve, staging, notify)
                for shard in plan.shards:
                    watch.finished(shard.name)
            else:
                notify(Started(tensors=len(plan.tensors) - plan.counts.get("drop", 0), bytes_read=plan.bytes_read))
                scales = {} if calibrated is None else calibrated.values
                resources = production.resources
                with source.supply(staging, hashed=production.hashed) as supply:
                    written = execute(
                        plan, supply, staging, resources, notify, scales=scales, watch=watch, labour=labour
                    )
                    attestation.learn_source(supply)
                streamed = supply.facts() if isinstance(supply, WindowSupply) else None
            attestation.complete(notify)
            source.refuse_changed(state, called=production.model)
            attestation.learn(delivery.wait())
            cluster.close()  # In what follows no node has a part.
            provenance = _provenance(production, calibrated, whole)
            with disk_errors(out):
                describe(source.checkpoint, source.folder, plan, staging, provenance)
                attestation.write(
                    note_of_quantization(provenance, plan, None if whole is None else whole.compressed.facts.modifiers),
                    name=provenance.model,
                    commit=provenance.commit,
                    tools=provenance.all_tools,
                )
            findings = pass_gate(LocalFolder(staging.checkpoint))
            delivered = delivery.publish()
    return Produced(
        plan=plan,
        written=written,
        findings=findings,
        calibrated=calibrated,
        whole=whole,
        delivered=delivered,
        streamed=streamed,
        cluster=None if labour is None else labour.report,
    )


def _attest(
    production: Production, staging: Staging, labour: ClusterLabour | None, calibrated: Calibrated | None
) -> AbstractContextManager[Attestation]:
    source = production.source
    return attest(
        source.checkpoint,
        source.folder,
        staging,
        threads=production.resources.workers,
        hashed=production.hashed,
        sent=production.delivery is not None,
        nodes=labour,
        # Scales may be found anew, and llm-compressor writes all of it anew.
        lasting=calibrated is None and production.compression is None,
    )


def _identity(production: Production, state: dict[str, list[int | str]]) -> dict[str, object]:
    plan, compression = production.plan, production.compression
    identity: dict[str, object] = {
        "the source": state,
        "the scheme": plan.scheme.name if plan.scheme is not None else "none",
        "the dtype": plan.dtype,
        "the plan": plan.fingerprint(),
        # Of what is sent elsewhere, the weights do not stay here.
        "the destination": None if production.delivery is None else production.delivery.identity,
    }
    if compression is not None:
        recipe = compression.recipe
        identity["the engine"] = "llmcompressor"
        identity["the modifiers"] = " and ".join(production.choice.modifiers.names) or "none"
        identity["the recipe"] = "none" if recipe is None else hashlib.sha256(recipe.text.encode()).hexdigest()
    return identity


@contextmanager
def _discarded_if_unfit(out: Path) -> Iterator[None]:
    """Leave nothing behind where the source itself is at fault: there is nothing to go on from."""
    try:
        yield
    except BadInput:
        discard(out)
        raise


def _calibrate(production: Production, staging: Staging, notify: Notify) -> Calibrated | None:
    """Find the scales, or take those that an unfinished run has found. Where that fails, the log stays."""
    if production.calibration is None:
        return None
    folder = staging.folder / CALIBRATION
    if production.restart:
        shutil.rmtree(folder, ignore_errors=True)
    device = production.resources.device
    request = production.calibration.request(
        production.plan,
        model=production.source.local.path,
        folder=folder,
        targets=production.targets,
        ignore=production.ignore,
        device=device,
    )
    with _kept_for_the_log(staging, "calibrating"), disk_errors(staging.out):
        return find_scales(request, production.calibration, production.cluster, notify, environ=environment_of(device))


def _compress(production: Production, staging: Staging, notify: Notify) -> Whole | None:
    """Let llm-compressor make the whole checkpoint, or take what it made for an unfinished run."""
    order = production.compression
    if order is None:
        return None
    folder = staging.folder / COMPRESSION
    if production.restart:
        shutil.rmtree(folder, ignore_errors=True)
    with _kept_for_the_log(staging, "llm-compressor was at work"), disk_errors(staging.out):
        return compress_whole(
            order,
            production.plan,
            production.selection,
            checkpoint=production.source.checkpoint,
            model=production.source.local.path,
            folder=folder,
            targets=production.targets,
            ignore=production.ignore,
            device=production.resources.device,
            notify=notify,
        )


@contextmanager
def _kept_for_the_log(staging: Staging, what: str) -> Iterator[None]:
    """Where a process fails, its log stays and the next run need not be the same; what is interrupted is gone."""
    try:
        yield
    except Interrupted:
        if not staging.done:
            discard(staging.out)
        message = f"interrupted while {what}, of which nothing is kept"
        raise Interrupted(message, hint="fewer samples take less time; begin again with") from None
    except Fp8Error:
        if not staging.done:
            # Other data, or another scheme, may be what helps.
            staging.forget()
        raise


def _provenance(production: Production, calibrated: Calibrated | None, whole: Whole | None) -> Provenance:
    order, facts = production.calibration, None if calibrated is None else calibrated.facts
    if whole is not None and production.compression is not None:
        order, facts = production.compression.data, whole.compressed.facts.data
    return Provenance(
        model=production.name,
        commit=production.source.commit,
        tools=tools_of(None if whole is None else whole.compressed),
        choice=production.choice,
        targets=production.targets,
        ignore=production.ignore,
        calibration=None if facts is None else note_calibration(facts, order),
        budget=None if production.budget is None else note_budget(production.budget),
        fallback=None if production.fallback is None else production.fallback.sentence,
        quantization=None if whole is None else whole.quantization,
        recipe=None if whole is None else whole.recipe,
    )
