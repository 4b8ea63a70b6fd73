"""What an exploration says, as data: a row for each form, the one to take, and how it was measured."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fp8cli.core.exploring.measured import MeasuredForm, Why
from fp8cli.core.exploring.picking import Candidate, Pick
from fp8cli.core.exploring.sizes import PlannedForm, RefusedForm
from fp8cli.core.exploring.task_changes import TaskChange
from fp8cli.core.machine.gpus import Gpu
from fp8cli.core.serving.modes import Capability
from fp8cli.core.simulating.modules import EVERY_LINEAR, ModuleOptions


@dataclass(frozen=True, kw_only=True)
class Module:
    """One rounded Linear."""

    name: str
    sqnr_db: float
    """Infinite where rounding changed nothing."""


@dataclass(frozen=True, kw_only=True)
class FormRow:
    """One form of the model. What was not measured is None."""

    name: str
    summary: str
    written: bool
    """Whether `fp8 quantize` writes it; if not, it can only be simulated."""
    command: str | None
    """What makes it."""
    needs_data: bool
    native_from: Capability | None
    """Lowest CUDA compute capability on which vLLM computes all of it in FP8; None: on none."""
    native_here: bool | None
    """Whether the GPU at hand does; None without one."""
    file_bytes: int | None = None
    """Of all shards, headers included: computed, not written. None for what the checkpoint cannot be."""
    bits_per_parameter: float | None = None
    sqnr_db: float | None = None
    """Signal to noise of all rounded weights together, in the model dtype, which rounds what FP8 decodes to once more:
    in bfloat16 0.01 dB below the figure of `fp8 inspect --against`. None where no weight is rounded, and where channels
    were moved into weights, which then cannot be set beside those of the checkpoint."""
    worst: Module | None = None
    """The Linear that rounding hurts most."""
    kl: float | None = None
    """Mean of KL(model as it is ‖ this form) over the positions, nats."""
    kl_se: float | None = None
    """Its standard error, clustered by text."""
    same_top: float | None = None
    """Share of the positions where both hold the same token for the likeliest."""
    tasks: tuple[TaskChange, ...] = ()
    seconds: float | None = None
    failure: Why | None = None


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What the forms were measured on."""

    source: str
    fingerprint: str
    """See `CalibrationData.fingerprint`."""
    samples: int
    tokens: int
    max_seq_length: int
    seed: int
    calibrated_on: int
    """Texts that static scales were found with; no form is measured on any of them."""
    measured_on: int
    positions: int
    token_ids_sha256: str


@dataclass(frozen=True, kw_only=True)
class ExploreReport:
    """All forms of one model, measured in one loading of it."""

    model: str
    revision: str | None
    dtype: str
    device: str
    """What the model was on."""
    gpu: str | None
    """The GPU at hand that counts for `native_here`: the oldest one. None without one."""
    bytes_now: int
    """Of the weights as they are."""
    modules: ModuleOptions = EVERY_LINEAR
    """What was rounded."""
    texts: Texts
    rows: tuple[FormRow, ...]
    """Measured ones by KL, lowest first; then those that failed."""
    pick: Pick | None
    next_command: str | None
    memory_bytes: int
    """Estimated beforehand."""
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None
    seconds: float
    versions: Mapping[str, str | None]
    notes: tuple[str, ...]


def make_row(
    plan: PlannedForm | RefusedForm,
    measured: MeasuredForm | None,
    tasks: tuple[TaskChange, ...],
    *,
    gpu: Gpu | None,
    command: Sequence[str],
    modules: Sequence[str],
    data: Sequence[str],
) -> FormRow:
    """Put what was planned and what was measured together.

    measured: None for a form that was not. command: `fp8 quantize MODEL`; modules: the options that say what is
    rounded; data: those that name calibration data, for a form that needs it.
    """
    form = plan.form
    scheme = form.scheme
    options = (*(modules if scheme.weights is not None else ()), *(data if scheme.needs_data else ()))
    row = FormRow(
        name=form.name,
        summary=form.scheme.summary,
        written=form.choice is not None,
        command=shlex.join([*command, *form.words, *options]) if form.words else None,
        needs_data=form.scheme.needs_data,
        native_from=form.native_from,
        native_here=None if gpu is None else form.is_native_on(gpu.capability),
    )
    if isinstance(plan, RefusedForm):
        return replace(row, failure=Why(message=plan.error.message, hint=plan.error.hint))
    row = replace(row, file_bytes=plan.file_bytes, bits_per_parameter=plan.bits_per_parameter)
    if measured is None:
        return row
    worst = measured.worst()
    return replace(
        row,
        sqnr_db=measured.sqnr_db,
        worst=None if worst is None else Module(name=worst[0], sqnr_db=worst[1]),
        kl=measured.kl,
        kl_se=measured.kl_se,
        same_top=measured.same_top,
        tasks=tasks,
        seconds=measured.seconds,
        failure=measured.failure,
    )


def in_order(rows: Sequence[FormRow]) -> tuple[FormRow, ...]:
    """Return rows by KL, lowest first, and those without one last."""
    return tuple(sorted(rows, key=lambda row: math.inf if row.kl is None else row.kl))


def candidate_of(row: FormRow, plan: PlannedForm, measured: MeasuredForm) -> Candidate | None:
    """Return a row as the rule that picks one sees it; None for one that was not measured."""
    if measured.kl is None:
        return None
    return Candidate(
        name=row.name,
        file_bytes=plan.file_bytes,
        kl=measured.kl,
        per_sample=measured.per_sample,
        written=row.written,
        has_weights=plan.form.scheme.weights is not None,
        has_cache=plan.form.scheme.kv_cache is not None,
        needs_data=row.needs_data,
        native_from=row.native_from,
        native=row.native_here,
    )
