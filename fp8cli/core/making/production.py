"""From a plan to a checkpoint under its name: calibrated where the plan needs it, written, examined, renamed.

    staging ← side files ← scales (calibration) ← weights (streaming engine) ← config → gate → published

The streaming engine writes the weights of every scheme; calibration adds nothing but scales, and keeps them beside the
output in the making, so that a run that goes on need not calibrate again.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.calibrating.calibration import Calibrated, CalibrationEvent, CalibrationFacts, calibrate
from fp8cli.core.calibrating.ordering import CalibrationOrder, environment_of
from fp8cli.core.findings import Finding
from fp8cli.core.inspection.gate import pass_gate
from fp8cli.core.machine.probes import versions
from fp8cli.core.quantizing.engine import Progress, Written, check_duplicates, execute
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import Resources
from fp8cli.core.quantizing.side_files import Provenance, carry_over, describe
from fp8cli.errors import BadInput, Fp8Error, Interrupted
from fp8cli.formats.calibration_note import CalibrationNote
from fp8cli.formats.checkpoint import CONFIG, Checkpoint, LocalFolder
from fp8cli.formats.staging import Staging, discard, disk_errors, stage

CALIBRATION: Final = "calibration"
"""The folder, beside the output in the making, in which a calibration works and keeps what it found."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """Told to `notify` once, before the first piece: what the progress will add up to."""

    tensors: int
    bytes_read: int


ProductionEvent = CalibrationEvent | Started | Progress
Notify = Callable[[ProductionEvent], None]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint whose files are on this machine."""

    folder: LocalFolder
    checkpoint: Checkpoint
    commit: str | None

    def state(self) -> dict[str, list[int]]:
        """Size and time of last change of every file the output depends on."""
        checkpoint = self.checkpoint
        names = (CONFIG, *checkpoint.side_files, *(shard.name for shard in checkpoint.shards))
        stats = {name: self.folder.resolve(name).stat() for name in names}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


@dataclass(frozen=True, kw_only=True)
class Production:
    """What is to be made, from what, and where; nothing speaks against it any more."""

    model: str
    """The source as the user named it."""
    name: str
    """The source as the card names it: a Hub id, or the name of the folder."""
    source: Source
    plan: Plan
    calibration: CalibrationOrder | None
    """None where the plan needs no data."""
    out: Path
    resources: Resources
    targets: Sequence[str]
    ignore: Sequence[str]
    overwrite: bool
    restart: bool


@dataclass(frozen=True, kw_only=True)
class Produced:
    """What came of it."""

    written: Written
    findings: tuple[Finding, ...]
    """Of the gate."""
    calibrated: Calibrated | None


def produce(production: Production, notify: Notify) -> Produced:
    """Make the output beside its final place and publish it when it is whole and sound.

    Raises Fp8Error with what is wrong. Nothing is published then; what is done is kept unless the source is at fault.
    """
    source, plan, out = production.source, production.plan, production.out
    state = source.state()
    identity = {
        "the source": state,
        "the scheme": plan.scheme.name if plan.scheme is not None else "none",
        "the dtype": plan.dtype,
        "the plan": plan.fingerprint(),
    }
    with stage(out, identity, restart=production.restart) as staging:
        with _discarded_if_unfit(out):
            check_duplicates(plan, source.folder.resolve)
            with disk_errors(out):
                carry_over(source.checkpoint, source.folder, staging)
        calibrated = _calibrate(production, staging, notify)
        with _discarded_if_unfit(out):
            notify(Started(tensors=len(plan.tensors) - plan.counts.get("drop", 0), bytes_read=plan.bytes_read))
            scales = {} if calibrated is None else calibrated.values
            written = execute(plan, source.folder.resolve, staging, production.resources, notify, scales=scales)
            if source.state() != state:
                message = f"`{production.model}` was changed while it was being read"
                raise BadInput(message, hint="run the command again when nothing writes to it")
            with disk_errors(out):
                describe(source.checkpoint, source.folder, plan, staging, _provenance(production, calibrated))
            findings = pass_gate(LocalFolder(staging.checkpoint))
            with disk_errors(out):
                staging.publish(overwrite=production.overwrite)
    return Produced(written=written, findings=findings, calibrated=calibrated)


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
        model=production.source.folder.path,
        folder=folder,
        targets=production.targets,
        ignore=production.ignore,
        device=device,
    )
    try:
        with disk_errors(staging.out):
            return calibrate(request, notify, environ=environment_of(device))
    except Interrupted:
        if not staging.done:
            discard(staging.out)
        message = "interrupted while calibrating, of which nothing is kept"
        raise Interrupted(message, hint="run the same command again; fewer samples take less time") from None
    except Fp8Error:
        if not staging.done:
            # Other data, or another scheme, may be what helps: the next run need not be the same.
            staging.forget()
        raise


def _provenance(production: Production, calibrated: Calibrated | None) -> Provenance:
    return Provenance(
        model=production.name,
        commit=production.source.commit,
        torch_version=versions().get("torch"),
        targets=production.targets,
        ignore=production.ignore,
        calibration=None if calibrated is None else _note(calibrated.facts, production.calibration),
    )


def _note(facts: CalibrationFacts, order: CalibrationOrder | None) -> CalibrationNote:
    on_hub = order is not None and order.seen.kind == "hub"
    return CalibrationNote(
        source=facts.source if on_hub else Path(facts.source).name,
        samples=facts.samples,
        tokens=facts.tokens,
        max_seq_length=facts.max_seq_length,
        seed=facts.seed,
        token_ids_sha256=facts.token_ids_sha256,
        versions=facts.versions,
    )
