"""`fp8 quantize`: a checkpoint in, its FP8 form out, whole or not at all.

    choice, source → Checkpoint (headers) → Selection → Plan → checks → production → report

Everything that can be refused is refused before anything is written: options, calibration data, checkpoint, plan,
machine. The making is core.making's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fp8cli.core.calibrating.ordering import CalibrationOptions, CalibrationOrder, order_calibration
from fp8cli.core.calibrating.outlook import check_calibration, estimate_memory, foresee
from fp8cli.core.doctor import environment
from fp8cli.core.inspection.gate import refuse_broken_files
from fp8cli.core.making.production import Production, ProductionEvent, Source, Started, produce
from fp8cli.core.making.report import QuantizeReport, assemble
from fp8cli.core.model.selection import rules_for, select
from fp8cli.core.quantizing.choices import Choice, choose
from fp8cli.core.quantizing.model_dtype import model_dtype
from fp8cli.core.quantizing.plan import Plan, build_plan
from fp8cli.core.quantizing.resources import DEFAULT_MAX_MEMORY, PIECE_BYTES, Resources, plan_resources
from fp8cli.errors import BadInput, CannotRun, UsageError
from fp8cli.formats import hub
from fp8cli.formats.checkpoint import Checkpoint, LocalFolder, open_checkpoint
from fp8cli.formats.quant_methods import recognise
from fp8cli.formats.sources import resolve_source
from fp8cli.formats.staging import check_output, partial_folder
from fp8cli.schemes import DEFAULT_SCHEME

__all__ = [
    "CalibrationOptions",
    "QuantizeReport",
    "QuantizeRequest",
    "Started",
    "run",
]

ASSUMED_BYTES_PER_SECOND: Final = 1_000_000_000
"""For the estimate of a dry run: bytes read plus bytes written, on two cores and a page cache (see README)."""

DEFAULT_IGNORE: Final = ("lm_head",)
"""What the recipe names as ignored by default, as llm-compressor's own examples do."""

DEFAULT_TARGETS: Final = ("Linear",)


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    """What the user asked for."""

    model: str
    out: Path | None = None
    scheme: str = DEFAULT_SCHEME
    kv_cache: str | None = None
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    revision: str | None = None
    dtype: str = "auto"
    targets: tuple[str, ...] = DEFAULT_TARGETS
    ignore: tuple[str, ...] = ()
    default_ignore: bool = True
    device: str = "auto"
    workers: int | None = None
    max_memory: str = DEFAULT_MAX_MEMORY
    dry_run: bool = False
    overwrite: bool = False
    restart: bool = False
    download_bars: bool = True
    piece_bytes: int = PIECE_BYTES


Notify = Callable[[ProductionEvent], None]


def run(request: QuantizeRequest, notify: Notify = lambda _: None) -> QuantizeReport:
    """Quantize a checkpoint. Raises Fp8Error with what is wrong; then nothing is published."""
    begun = time.monotonic()
    choice = choose(request.scheme, request.kv_cache)
    _refuse_idle_patterns(request, choice)
    place = resolve_source(request.model, request.revision)
    out = request.out or Path(f"{_name(request.model)}-{choice.suffix}")
    local = place.path if isinstance(place, LocalFolder) else None
    check_output(out, overwrite=request.overwrite or request.dry_run, source=local)
    order = order_calibration(request.calibration, choice, model=local)
    checkpoint = open_checkpoint(place)
    plan = _plan(checkpoint, choice, request)
    resources = plan_resources(
        plan,
        device=request.device,
        workers=request.workers,
        max_memory=request.max_memory,
        cpus=environment.usable_cpus(),
        piece_bytes=request.piece_bytes,
    )
    checks = _check_machine(plan, checkpoint, order, out, resources, dry_run=request.dry_run)
    commit = None if isinstance(place, LocalFolder) else place.commit
    done = None
    seconds = (plan.bytes_read + plan.bytes_written) / ASSUMED_BYTES_PER_SECOND
    if not request.dry_run:
        if not isinstance(place, LocalFolder):
            place = hub.download(place, progress=request.download_bars)
            checkpoint = open_checkpoint(place)
        refuse_broken_files(place, checkpoint.side_files)
        production = Production(
            model=request.model,
            name=_name(request.model) if commit is None else request.model,
            source=Source(folder=place, checkpoint=checkpoint, commit=commit),
            plan=plan,
            calibration=order,
            out=out,
            resources=resources,
            targets=request.targets,
            ignore=_ignore(request),
            overwrite=request.overwrite,
            restart=request.restart,
        )
        done = produce(production, notify)
        seconds = time.monotonic() - begun
    foreseen = None if order is None else foresee(order, plan, checkpoint)
    return assemble(
        plan,
        model=request.model,
        commit=commit,
        out=out,
        foreseen=foreseen,
        resources=resources,
        checks=checks,
        left_behind=checkpoint.left_behind,
        seconds=seconds,
        done=done,
    )


def _refuse_idle_patterns(request: QuantizeRequest, choice: Choice) -> None:
    if choice.scheme is None and (request.targets != DEFAULT_TARGETS or request.ignore or not request.default_ignore):
        message = "no weight is quantized, so --targets, --ignore and --no-default-ignore would have no effect"
        raise UsageError(message, hint="leave them out, or choose a scheme")


def _plan(checkpoint: Checkpoint, choice: Choice, request: QuantizeRequest) -> Plan:
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    tags = ((name, tag) for name, (tag, _) in tensors.items())
    quantized = recognise(checkpoint.config, checkpoint.side_files, tags)
    if quantized is not None:
        message = f"`{request.model}` is quantized already: {quantized}"
        hint = (
            "start from the original BF16 or FP16 checkpoint; fp8 convert takes FP8 from one dialect to another, "
            "fp8 dequantize back to 16 bits"
        )
        raise BadInput(message, hint=hint)
    selection = select(
        checkpoint.config,
        tensors,
        rules=rules_for(checkpoint.config, tensors),
        targets=request.targets,
        ignore=request.ignore,
        default_ignore=request.default_ignore,
    )
    dtype = model_dtype(checkpoint, request.dtype)
    return build_plan(checkpoint, choice.scheme, selection, dtype, kv_cache=choice.kv_cache)


def _check_machine(
    plan: Plan,
    checkpoint: Checkpoint,
    order: CalibrationOrder | None,
    out: Path,
    resources: Resources,
    *,
    dry_run: bool,
) -> tuple[environment.Check, ...]:
    checks = environment.check_quantize(
        out,
        bytes_to_write=plan.bytes_written,
        bytes_already=_bytes_on_disk(partial_folder(out)),
        memory_cap_bytes=resources.memory_bytes,
        scheme=plan.scheme,
    )
    if order is not None:
        checks = (*checks, *check_calibration(order, estimate_memory(order, plan, checkpoint)))
    failed = next((check for check in checks if check.status == "failed"), None)
    if failed is not None and not dry_run:
        message = f"{failed.name}: {failed.found}, wanted {failed.wanted}"
        raise CannotRun(message, hint=failed.fix)
    return checks


def _ignore(request: QuantizeRequest) -> tuple[str, ...]:
    return (*DEFAULT_IGNORE, *request.ignore) if request.default_ignore else request.ignore


def _name(model: str) -> str:
    """Return the last part of a Hub id or path; `.` and links are resolved first."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model.rstrip("/").rsplit("/", maxsplit=1)[-1]


def _bytes_on_disk(folder: Path) -> int:
    """Bytes an unfinished run already takes: what it allocated, not how long its sparse files are."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
