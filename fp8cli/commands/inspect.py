"""`fp8 inspect`: what lies in a checkpoint, what is wrong with it, and whether it will run.

Source → survey (files, index, headers) → dialect (how it is quantized) → roles, consistency, values of scales,
serving → report. With `verify` every weight is read as well, with `against` every tensor is compared with the
checkpoint this one was made from. Damage is a finding in the report, never an error.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fp8cli.core import kernel
from fp8cli.core.findings import Finding, any_failed
from fp8cli.core.inspection.accounting import Fate
from fp8cli.core.inspection.anatomy import dissect
from fp8cli.core.inspection.consistency import check_consistency
from fp8cli.core.inspection.default_checkpoint import find_checkpoint
from fp8cli.core.inspection.dialect import Dialect, recognise_dialect
from fp8cli.core.inspection.fidelity import Fidelity, WeightFidelity, measure_fidelity
from fp8cli.core.inspection.fidelity_verdict import judge_fidelity
from fp8cli.core.inspection.inventory import (
    DtypeRow,
    TensorGroup,
    TensorRow,
    Totals,
    fold_tensors,
    list_tensors,
    sum_by_dtype,
    sum_tensors,
)
from fp8cli.core.inspection.provenance_check import check_provenance
from fp8cli.core.inspection.reading import BytesRead, ReadingBegins
from fp8cli.core.inspection.roles import RoleRow, role_table
from fp8cli.core.inspection.scale_values import ScaleStats, check_scales
from fp8cli.core.inspection.stored_hashes import check_hashes
from fp8cli.core.inspection.survey import Survey, survey
from fp8cli.core.inspection.weight_scan import scan_weights
from fp8cli.core.machine.gpus import find_gpus
from fp8cli.core.machine.probes import usable_cpus
from fp8cli.core.serving.command_line import served_as
from fp8cli.core.serving.gpu_models import GpuModel, default_gpus, find_gpu_model, models_found
from fp8cli.core.serving.preflight import check_size
from fp8cli.core.serving.served import serving_of
from fp8cli.core.serving.serving_report import ServingReport
from fp8cli.errors import CannotRun, ExitCode, UsageError
from fp8cli.formats.checkpoint import LocalFile, LocalFolder
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.sources import Source, fetch_command, resolve_anything

Verdict = Literal["healthy", "no fault found", "doubtful", "damaged"]
"""Every check passed; some were not made; some warn; some failed."""
Notify = Callable[[ReadingBegins | BytesRead], None]


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """What to look at, and how closely."""

    source: str | Path | None = None
    """A checkpoint folder, a .safetensors file, a Hub id or an address. None looks for a checkpoint in `start`."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    details: bool = False
    """List the tensors too, repeated layers folded."""
    full: bool = False
    """List every tensor by itself."""
    verify: bool = False
    """Read every weight, and compare the files with their stored hashes."""
    against: str | None = None
    """The checkpoint this one was made from; a Hub id is read in full, by range requests."""
    contexts: tuple[int, ...] = ()
    """Lengths of context in tokens to be served; none: as long as the model goes."""
    gpus: tuple[str, ...] = ()
    """Models of GPU to be served on; none: those found here, else a short list."""
    tp: int | None = None
    """How many GPUs must be able to share it; None: any number will do."""
    start: Path = Path()
    """The folder to look in when no source is given."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How it is quantized, or that it is not; see `core.inspection.dialect.Dialect`."""

    dialect: str
    scheme: str | None
    words: str
    format: str | None
    kv_cache: str | None
    ignored: tuple[str, ...]
    fp8_weights: int


@dataclass(frozen=True, kw_only=True)
class Against:
    """The comparison with its source."""

    base: str
    tensors: Mapping[Fate, int]
    """How many were copied, quantized, …; every tensor of both counts once."""
    bytes_read: int
    sqnr_db: float | None
    """Signal to noise of all quantized weights together; None if none was compared or nothing differs."""
    weights: tuple[WeightFidelity, ...]
    """Worst first."""


@dataclass(frozen=True, kw_only=True)
class InspectReport:
    """What a checkpoint holds, and what is wrong with it. Sizes in bytes; a `share` is a part of 1."""

    name: str
    path: str
    architecture: str | None
    verdict: Verdict
    quantization: Quantization
    dtypes: tuple[DtypeRow, ...]
    roles: tuple[RoleRow, ...]
    total: Totals
    files: int
    """Number of weight files whose header could be read."""
    header_bytes: int
    """What the weight files hold besides tensors."""
    findings: tuple[Finding, ...]
    scales: tuple[ScaleStats, ...]
    serving: ServingReport
    against: Against | None
    groups: tuple[TensorGroup, ...] | None
    """With `details`, but not `full`: the tensors, repeated ones folded."""
    tensors: tuple[TensorRow, ...] | None
    """With `details` or `full`: every tensor."""

    @property
    def exit_code(self) -> ExitCode:
        """1 when anything failed or a requirement is not met; warnings and what was not checked do not count."""
        required = self.serving.required
        unmet = required is not None and required.split.verdict == "refused"
        return ExitCode.NEGATIVE if unmet or any_failed(self.findings) else ExitCode.DONE


def run(request: InspectRequest, notify: Notify = lambda _: None) -> InspectReport:
    """Inspect. Raises Fp8Error only where there is nothing to look at, or the request makes no sense."""
    name = request.source if request.source is not None else find_checkpoint(request.start)
    source = resolve_anything(str(name), request.revision)
    gpus = _gpus(request.gpus)
    _refuse_what_cannot_be(request, source)
    seen = survey(source)
    dialect = recognise_dialect(seen)
    anatomy = dissect(seen, dialect)
    scales, about_scales = check_scales(seen, dialect)
    findings = [*seen.findings, *check_consistency(seen, dialect, anatomy), *about_scales]
    findings += check_provenance(source, seen)
    if request.verify:
        findings += _verify(source, seen, dialect, notify)
    against = None
    if request.against is not None:
        fidelity = _compare(seen, dialect, request.against, notify)
        findings += judge_fidelity(fidelity)
        against = _summarize(fidelity)
    roles = role_table(seen, dialect, anatomy)
    rows = list_tensors(seen, dialect, anatomy) if request.details or request.full else None
    return InspectReport(
        name=_name(seen.label),
        path=seen.label,
        architecture=_architecture(seen.config or {}),
        verdict=_verdict(findings),
        quantization=Quantization(
            dialect=dialect.name,
            scheme=dialect.scheme,
            words=dialect.words,
            format=dialect.format,
            kv_cache=dialect.kv_cache,
            ignored=dialect.ignored,
            fp8_weights=len(dialect.weights),
        ),
        dtypes=sum_by_dtype(roles),
        roles=roles,
        total=sum_tensors(roles),
        files=len(seen.headers),
        header_bytes=sum(header.data_begin for header in seen.headers.values()),
        findings=tuple(findings),
        scales=scales,
        serving=serving_of(
            seen, dialect, path=served_as(seen.label), contexts=request.contexts, gpus=gpus, required=request.tp
        ),
        against=against,
        groups=fold_tensors(rows) if rows is not None and not request.full else None,
        tensors=rows,
    )


def _gpus(names: tuple[str, ...]) -> tuple[GpuModel, ...]:
    """The GPUs that were asked for, else those found here, else a short list. Raises UsageError for an unknown one."""
    if names:
        return tuple(dict.fromkeys(find_gpu_model(name) for name in names))
    return models_found(find_gpus().visible) or default_gpus()


def _refuse_what_cannot_be(request: InspectRequest, source: Source) -> None:
    """Refuse before anything is read what could only fail later."""
    check_size(request.tp)
    for tokens in request.contexts:
        if tokens < 1:
            message = f"--context {tokens} is no length of context"
            raise UsageError(message, hint="give a number of tokens, such as --context 32768")
    if request.verify and not isinstance(source, LocalFolder | LocalFile):
        where = "on the Hub" if isinstance(source, HubRepo) else "in a store"
        message = f"--verify reads every weight, and `{source.label}` lies {where}"
        raise UsageError(message, hint=f"fetch it first: {fetch_command(source)}")
    if (request.verify or request.against is not None) and kernel.load() is None:
        message = "the compiled kernel, which reads weights, is not there"
        hint = "install fp8 anew, where a C compiler or the package index can be reached; or unset FP8_KERNEL"
        raise CannotRun(message, hint=hint)


def _verify(source: Source, seen: Survey, dialect: Dialect, notify: Notify) -> tuple[Finding, ...]:
    workers, reader = usable_cpus(), _kernel()
    folder = source.path if isinstance(source, LocalFolder) else Path(seen.label).parent
    hashes = check_hashes(folder, seen.headers, workers=workers, notify=notify)
    return (*hashes, *scan_weights(seen, dialect, reader, workers=workers, notify=notify).findings)


def _compare(seen: Survey, dialect: Dialect, against: str, notify: Notify) -> Fidelity:
    base = survey(resolve_anything(against))
    return measure_fidelity(seen, dialect, base, _kernel(), workers=usable_cpus(), notify=notify)


def _kernel() -> kernel.Kernel:
    loaded = kernel.load()
    assert loaded is not None  # noqa: S101 - refused at the start
    return loaded


def _summarize(fidelity: Fidelity) -> Against:
    return Against(
        base=fidelity.base,
        tensors=fidelity.fates,
        bytes_read=fidelity.bytes_read,
        sqnr_db=fidelity.sqnr_db,
        weights=fidelity.weights,
    )


def _verdict(findings: Sequence[Finding]) -> Verdict:
    if any_failed(findings):
        return "damaged"
    statuses = {finding.status for finding in findings}
    if "warning" in statuses:
        return "doubtful"
    return "no fault found" if "not checked" in statuses else "healthy"


def _name(label: str) -> str:
    """Last part of a path or Hub id; `.` and links are resolved first."""
    path = Path(label)
    return path.resolve().name or label if path.exists() else label.rsplit("/", maxsplit=1)[-1]


def _architecture(config: Mapping[str, object]) -> str | None:
    match config.get("architectures"):
        case [str() as name, *_]:
            return name
        case _:
            return None
