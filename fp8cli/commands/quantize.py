"""`fp8 quantize`: a checkpoint in, its FP8 form out, whole or not at all.

    source → Checkpoint (headers) → Selection → Plan → checks → staging ← engine → side files, config → published

Everything that can be refused is refused before the staging folder exists.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.doctor import environment
from fp8cli.core.findings import Finding
from fp8cli.core.inspection.gate import pass_gate, refuse_broken_files
from fp8cli.core.model.selection import rules_for, select
from fp8cli.core.quantizing.engine import HarmedRows, Progress, Written, check_duplicates, execute
from fp8cli.core.quantizing.outlook import block_shape_warnings
from fp8cli.core.quantizing.plan import Plan, build_plan, model_dtype
from fp8cli.core.quantizing.resources import DEFAULT_MAX_MEMORY, PIECE_BYTES, Resources, plan_resources
from fp8cli.core.quantizing.side_files import Provenance, carry_over, describe
from fp8cli.core.quantizing.tensor_rows import TensorRow, by_torch_name, tensor_rows, torch_name
from fp8cli.core.serving.command_line import serve_command, serve_note
from fp8cli.errors import BadInput, CannotRun, UsageError
from fp8cli.formats import hub
from fp8cli.formats.checkpoint import CONFIG, Checkpoint, LocalFolder, open_checkpoint
from fp8cli.formats.quant_methods import recognise
from fp8cli.formats.sources import resolve_source
from fp8cli.formats.staging import check_output, discard, disk_errors, partial_folder, stage
from fp8cli.schemes import DEFAULT_SCHEME, SCHEMES, Scheme

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


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """What was done, or with `dry_run` what would be done."""

    model: str
    revision: str | None
    out: Path
    scheme: Scheme
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
    checks: tuple[environment.Check, ...]
    warnings: tuple[str, ...]
    harmed: tuple[HarmedRows, ...]
    findings: tuple[Finding, ...]
    """Of the gate before publishing; nothing with `dry_run`."""
    seconds: float
    """Measured, or with `dry_run` estimated from `ASSUMED_BYTES_PER_SECOND`."""
    bytes_resumed: int
    serve_command: str
    serve_note: str
    tensors: tuple[TensorRow, ...]


@dataclass(frozen=True, kw_only=True)
class Started:
    """Told to `notify` once, before the first piece: what the progress will add up to."""

    tensors: int
    bytes_read: int


Notify = Callable[[Started | Progress], None]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint whose files are on this machine."""

    folder: LocalFolder
    checkpoint: Checkpoint
    commit: str | None


def run(request: QuantizeRequest, notify: Notify = lambda _: None) -> QuantizeReport:
    """Quantize a checkpoint. Raises Fp8Error with what is wrong; then nothing is published."""
    begun = time.monotonic()
    scheme = find_scheme(request.scheme)
    place = resolve_source(request.model, request.revision)
    out = request.out or Path(f"{_name(request.model)}-{scheme.suffix}")
    local = place.path if isinstance(place, LocalFolder) else None
    check_output(out, overwrite=request.overwrite or request.dry_run, source=local)
    checkpoint = open_checkpoint(place)
    plan = _plan(checkpoint, scheme, request)
    resources = plan_resources(
        plan,
        device=request.device,
        workers=request.workers,
        max_memory=request.max_memory,
        cpus=environment.usable_cpus(),
        piece_bytes=request.piece_bytes,
    )
    checks = _check_machine(plan, out, resources, dry_run=request.dry_run)
    commit = None if isinstance(place, LocalFolder) else place.commit
    written: tuple[Written, tuple[Finding, ...]] | None = None
    seconds = (plan.bytes_read + plan.bytes_written) / ASSUMED_BYTES_PER_SECOND
    if not request.dry_run:
        if not isinstance(place, LocalFolder):
            place = hub.download(place, progress=request.download_bars)
            checkpoint = open_checkpoint(place)
        refuse_broken_files(place, checkpoint.side_files)
        notify(Started(tensors=len(plan.tensors) - plan.counts.get("drop", 0), bytes_read=plan.bytes_read))
        source = Source(folder=place, checkpoint=checkpoint, commit=commit)
        written = _write(request, source, plan, out, resources, notify)
        seconds = time.monotonic() - begun
    return _report(request, checkpoint, plan, out, resources, checks, commit=commit, seconds=seconds, done=written)


def find_scheme(name: str) -> Scheme:
    """Return the scheme of that name, in any case. Raises UsageError for one that cannot be made without data."""
    scheme = SCHEMES.get(name.upper().replace("-", "_"))
    if scheme is None:
        message = f"`{name}` is no scheme"
        raise UsageError(message, hint=f"--scheme takes one of {', '.join(SCHEMES)}")
    if scheme.needs_calibration:
        message = f"`{scheme.name}` has static activation scales, which need calibration; that is not supported yet"
        raise CannotRun(message, hint=f"use --scheme {DEFAULT_SCHEME}: it needs no data and is usually more accurate")
    return scheme


def _plan(checkpoint: Checkpoint, scheme: Scheme, request: QuantizeRequest) -> Plan:
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    tags = ((name, tag) for name, (tag, _) in tensors.items())
    quantized = recognise(checkpoint.config, checkpoint.side_files, tags)
    if quantized is not None:
        message = f"`{request.model}` is quantized already: {quantized}"
        hint = "start from the original BF16 or FP16 checkpoint; fp8 inspect shows what this one holds"
        raise BadInput(message, hint=hint)
    selection = select(
        checkpoint.config,
        tensors,
        rules=rules_for(checkpoint.config, tensors),
        targets=request.targets,
        ignore=request.ignore,
        default_ignore=request.default_ignore,
    )
    return build_plan(checkpoint, scheme, selection, model_dtype(checkpoint, request.dtype))


def _check_machine(plan: Plan, out: Path, resources: Resources, *, dry_run: bool) -> tuple[environment.Check, ...]:
    checks = environment.check_quantize(
        out,
        bytes_to_write=plan.bytes_written,
        bytes_already=_bytes_on_disk(partial_folder(out)),
        memory_cap_bytes=resources.memory_bytes,
        scheme=plan.scheme,
    )
    failed = next((check for check in checks if check.status == "failed"), None)
    if failed is not None and not dry_run:
        message = f"{failed.name}: {failed.found}, wanted {failed.wanted}"
        raise CannotRun(message, hint=failed.fix)
    return checks


def _write(
    request: QuantizeRequest,
    source: Source,
    plan: Plan,
    out: Path,
    resources: Resources,
    notify: Notify,
) -> tuple[Written, tuple[Finding, ...]]:
    """Write the output beside its final place and publish it when it is whole."""
    state = _source_state(source)
    identity = {
        "the source": state,
        "the scheme": plan.scheme.name,
        "the dtype": plan.dtype,
        "the plan": plan.fingerprint(),
    }
    provenance = Provenance(
        model=_name(request.model) if source.commit is None else request.model,
        commit=source.commit,
        torch_version=environment.versions().get("torch"),
        targets=request.targets,
        ignore=(*DEFAULT_IGNORE, *request.ignore) if request.default_ignore else request.ignore,
    )
    try:
        with stage(out, identity, restart=request.restart) as staging:
            check_duplicates(plan, source.folder.resolve)
            with disk_errors(out):
                carry_over(source.checkpoint, source.folder, staging)
            written = execute(plan, source.folder.resolve, staging, resources, notify)
            if _source_state(source) != state:
                message = f"`{request.model}` was changed while it was being read"
                raise BadInput(message, hint="run the command again when nothing writes to it")
            with disk_errors(out):
                describe(source.checkpoint, source.folder, plan, staging, provenance)
            findings = pass_gate(LocalFolder(staging.checkpoint))
            with disk_errors(out):
                staging.publish(overwrite=request.overwrite)
    except BadInput:
        # The source itself is at fault: there is nothing to go on from.
        discard(out)
        raise
    return written, findings


def _source_state(source: Source) -> dict[str, list[int]]:
    """Size and time of last change of every file the output depends on."""
    names = (CONFIG, *source.checkpoint.side_files, *(shard.name for shard in source.checkpoint.shards))
    stats = {name: source.folder.resolve(name).stat() for name in names}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _report(  # noqa: PLR0913 - one argument for each thing a report is made of
    request: QuantizeRequest,
    checkpoint: Checkpoint,
    plan: Plan,
    out: Path,
    resources: Resources,
    checks: tuple[environment.Check, ...],
    *,
    commit: str | None,
    seconds: float,
    done: tuple[Written, tuple[Finding, ...]] | None = None,
) -> QuantizeReport:
    written, findings = done or (Written(harmed=(), bytes_resumed=0), ())
    return QuantizeReport(
        model=request.model,
        revision=commit,
        out=out,
        scheme=plan.scheme,
        dtype=torch_name(plan.dtype),
        dry_run=request.dry_run,
        counts=plan.counts,
        bytes_before=by_torch_name(plan.bytes_before),
        bytes_after=by_torch_name(plan.bytes_after),
        bytes_read=plan.bytes_read,
        bytes_written=plan.bytes_written,
        shards=len(plan.shards),
        workers=resources.workers,
        memory_bytes=resources.memory_bytes,
        ignored_modules=plan.ignored_modules,
        left_behind=checkpoint.left_behind,
        checks=checks,
        warnings=block_shape_warnings(plan),
        harmed=written.harmed,
        findings=findings,
        seconds=seconds,
        bytes_resumed=written.bytes_resumed,
        serve_command=serve_command(str(out)),
        serve_note=serve_note(plan.scheme),
        tensors=tensor_rows(plan),
    )


def _name(model: str) -> str:
    """Return the last part of a Hub id or path; `.` and links are resolved first."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model.rstrip("/").rsplit("/", maxsplit=1)[-1]


def _bytes_on_disk(folder: Path) -> int:
    """Bytes an unfinished run already takes: what it allocated, not how long its sparse files are."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
