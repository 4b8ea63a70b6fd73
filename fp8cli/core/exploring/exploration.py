"""An exploration from request to report: forms planned from headers, measured in one loading of the model, one picked.

    request → forms, texts → checkpoint → plans → memory → measurer ⇄ forms → rows → pick → report

Everything that can be refused without the model is refused before it is fetched or loaded. A form that fails is a row
with its reason; only where all of them fail is that the end.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.calibrating.llm_compressor import forced_environment
from fp8cli.core.calibrating.ordering import interpreter_at, kind_of_device
from fp8cli.core.calibrating.outlook import check_package
from fp8cli.core.doctor.environment import Check, guard
from fp8cli.core.exploring.evaluation_job import evaluation_request, make_job
from fp8cli.core.exploring.forms import Form, default_forms, modified_forms, named_forms
from fp8cli.core.exploring.measured import Measured, read_measured
from fp8cli.core.exploring.picking import pick
from fp8cli.core.exploring.report import ExploreReport, Texts, candidate_of, in_order, make_row
from fp8cli.core.exploring.request import ExploreRequest, check_request, read_texts
from fp8cli.core.exploring.sizes import PlannedForm, RefusedForm, plan_form
from fp8cli.core.exploring.task_changes import TaskChange, read_changes
from fp8cli.core.machine.gpus import Gpu, find_gpus
from fp8cli.core.measuring.measurement import measure
from fp8cli.core.measuring.measuring_events import MeasuringEvent
from fp8cli.core.measuring.outlook import Memory, check_memory, estimate_memory
from fp8cli.core.model.attention import read_attention
from fp8cli.core.model.modeling import refuse_unknown
from fp8cli.core.model.multimodal import refuse_unless_it_predicts
from fp8cli.core.model.selection import Selection, rules_for, select
from fp8cli.core.quantizing.model_dtype import model_dtype
from fp8cli.core.quantizing.plan import Plan, build_plan
from fp8cli.core.sampling.data import CalibrationData
from fp8cli.core.simulating.modules import check_modules
from fp8cli.errors import BadInput, CannotRun
from fp8cli.formats import hub
from fp8cli.formats.checkpoint import Checkpoint, LocalFolder, open_checkpoint
from fp8cli.formats.quant_methods import recognise
from fp8cli.formats.safetensors import DTYPES
from fp8cli.formats.sources import resolve_files
from fp8cli.measurer.explore_protocol import ExploreWork
from fp8cli.measurer.protocol import LOG, MeasureJob
from fp8cli.schemes import FP8_DYNAMIC

BUDGET_BYTES: Final = 2 * 2**30
"""Of log-probabilities on disk while forms are measured."""

Notify = Callable[[MeasuringEvent], None]


@dataclass(frozen=True, kw_only=True)
class _Explored:
    """A checkpoint whose forms are planned."""

    checkpoint: Checkpoint
    dtype: str
    forms: tuple[PlannedForm | RefusedForm, ...]
    memory: Memory
    notes: tuple[str, ...]

    @property
    def is_modified(self) -> bool:
        """Whether llm-compressor prepares the weights of a form."""
        return any(each.form.scheme.modified for each in self.planned)

    @property
    def planned(self) -> tuple[PlannedForm, ...]:
        return tuple(each for each in self.forms if isinstance(each, PlannedForm))


def explore(request: ExploreRequest, notify: Notify = lambda _: None) -> ExploreReport:
    """Measure the forms of a model. Raises Fp8Error with what is wrong; nothing is left behind but a log."""
    check_request(request)
    forms = named_forms(request.schemes) if request.schemes else default_forms()
    forms = (*forms, *modified_forms(forms, request.modifiers))
    for form in forms if all(each.scheme.weights is None for each in forms) else ():
        check_modules(request.modules, form.scheme)
    python = None if request.python is None else interpreter_at(request.python)
    asked = evaluation_request(request.tasks, device=request.device, python=python)
    place = resolve_files(request.model, request.revision, for_what="exploring")
    checkpoint = open_checkpoint(place)
    data = read_texts(request, place.path if isinstance(place, LocalFolder) else None)
    explored = _plan(request, checkpoint, forms)
    warnings = _check_machine(explored, python)
    gpu = min(find_gpus().visible, key=lambda each: each.capability, default=None)
    commit = None if isinstance(place, LocalFolder) else place.commit
    if not isinstance(place, LocalFolder):
        place = hub.download(place, progress=request.download_bars)
    with _work_folder() as folder:
        evaluation = None if asked is None else make_job(asked, place.path, folder)
        work = ExploreWork(
            schemes=tuple(each.form.scheme for each in explored.planned),
            weights=next((each.weights for each in explored.planned if each.weights), ()),
            evaluation=evaluation,
        )
        job = _make_job(request, explored, data, place.path, work)
        environ = os.environ if evaluation is None else {**os.environ, **evaluation.environment}
        if explored.is_modified:
            environ = {**environ, **forced_environment(kind_of_device(request.device))}
        result = measure(job, data, folder, python=python, notify=notify, environ=environ)
        measured = read_measured(result, folder / LOG)
        changes = _read_changes(measured, folder)
    return _report(
        request,
        explored,
        measured,
        changes,
        data=data,
        commit=commit,
        gpu=gpu,
        # That the tasks ask about the texts matters only where there are tasks.
        notes=(*explored.notes, *warnings, *(data.notes if changes else ())),
    )


def _plan(request: ExploreRequest, checkpoint: Checkpoint, forms: Sequence[Form]) -> _Explored:
    """Plan every form. Raises BadInput for a checkpoint that is quantized, or the refusal where all are refused."""
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    quantized = recognise(checkpoint.config, checkpoint.side_files, ((name, tag) for name, (tag, _) in tensors.items()))
    if quantized is not None:
        message = f"`{request.model}` is quantized already: {quantized}"
        raise BadInput(message, hint="explore the original BF16 or FP16 checkpoint")
    rules = rules_for(checkpoint.config, tensors)
    refuse_unless_it_predicts(rules, "explored")
    refuse_unknown(rules, "explored")
    modules = request.modules
    selection = select(
        checkpoint.config,
        tensors,
        rules=rules,
        targets=modules.targets,
        ignore=modules.ignore,
        default_ignore=modules.default_ignore,
    )
    dtype = model_dtype(checkpoint)
    planned = [plan_form(form, checkpoint, selection, dtype) for form in forms]
    notes: tuple[str, ...] = ()
    if not request.schemes:
        planned, notes = _without_impossible_caches(planned)
    refused = [each for each in planned if isinstance(each, RefusedForm)]
    if len(refused) == len(planned):
        raise refused[0].error
    modified = any(form.scheme.modified for form in forms)
    return _Explored(
        checkpoint=checkpoint,
        dtype=dtype,
        forms=tuple(planned),
        memory=estimate_memory(
            _of_weights(checkpoint, selection, dtype),
            _length(request, checkpoint),
            copies=1 if modified else 0,
            rounded=0 if modified else 1,
        ),
        notes=notes,
    )


def _without_impossible_caches(
    planned: list[PlannedForm | RefusedForm],
) -> tuple[list[PlannedForm | RefusedForm], tuple[str, ...]]:
    """Leave out forms that nobody asked for by name where the model allows no FP8 KV cache, and say so once."""
    refused = [each for each in planned if isinstance(each, RefusedForm) and each.form.scheme.kv_cache is not None]
    if not refused:
        return planned, ()
    note = f"no form has an FP8 KV cache: {refused[0].error.message}"
    return [each for each in planned if each not in refused], (note,)


def _of_weights(checkpoint: Checkpoint, selection: Selection, dtype: str) -> Plan:
    return build_plan(checkpoint, FP8_DYNAMIC, selection, dtype)


def _length(request: ExploreRequest, checkpoint: Checkpoint) -> int:
    longest = read_attention(checkpoint.config).longest
    return request.max_seq_length if longest is None else min(request.max_seq_length, longest)


def _check_machine(explored: _Explored, python: Path | None) -> tuple[str, ...]:
    """Refuse a model that can never be loaded here, and forms that nothing here makes. Returns what is to be said."""
    if explored.is_modified:
        _refuse_failed(check_package(python))
    check = guard("memory", lambda: check_memory(explored.memory))
    _refuse_failed(check)
    return (f"{check.name}: {check.found}, wanted {check.wanted}",) if check.status == "warning" else ()


def _refuse_failed(check: Check) -> None:
    if check.status == "failed":
        raise CannotRun(f"{check.name}: {check.found}, wanted {check.wanted}", hint=check.fix)


@contextmanager
def _work_folder() -> Iterator[Path]:
    """Make a folder that is gone afterwards, unless what failed left a log in it that a message names."""
    folder = Path(tempfile.mkdtemp(prefix="fp8-explore-"))
    try:
        yield folder
    except (BadInput, CannotRun):
        for path in folder.iterdir():
            if path.name != LOG:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _make_job(
    request: ExploreRequest, explored: _Explored, data: CalibrationData, model: Path, work: ExploreWork
) -> MeasureJob:
    return MeasureJob(
        model=str(model.absolute()),
        dtype=DTYPES[explored.dtype].torch_name,
        device=request.device,
        samples=data.request(
            samples=request.samples,
            max_seq_length=request.max_seq_length,
            seed=request.seed,
            chat_template=None,
        ),
        positions=request.positions,
        budget_bytes=BUDGET_BYTES,
        work=work,
    )


def _read_changes(measured: Measured, folder: Path) -> Mapping[str, tuple[TaskChange, ...]]:
    """Return what each form changed on the tasks, by its name."""
    base = measured.base_answers
    if base is None:
        return {}
    return {
        form.name: read_changes(folder / base, folder / form.answers)
        for form in measured.forms
        if form.answers is not None
    }


def _report(
    request: ExploreRequest,
    explored: _Explored,
    measured: Measured,
    changes: Mapping[str, tuple[TaskChange, ...]],
    *,
    data: CalibrationData,
    commit: str | None,
    gpu: Gpu | None,
    notes: tuple[str, ...],
) -> ExploreReport:
    found = {form.name: form for form in measured.forms}
    revision = () if request.revision is None else ("--revision", request.revision)
    command = ("fp8", "quantize", request.model, *revision)
    options = () if request.data is None else ("--calibration-data", request.data)
    if request.data is not None and request.column is not None:
        options = (*options, "--text-column", request.column)
    rows = {
        plan.form.name: make_row(
            plan,
            found.get(plan.form.name),
            changes.get(plan.form.name, ()),
            gpu=gpu,
            command=command,
            modules=request.modules.words,
            data=options,
        )
        for plan in explored.forms
    }
    candidates = (candidate_of(rows[plan.form.name], plan, found[plan.form.name]) for plan in explored.planned)
    picked = pick(
        [each for each in candidates if each is not None],
        measured.lengths,
        weights_wanted=any(plan.form.scheme.weights is not None for plan in explored.forms),
    )
    return ExploreReport(
        model=request.model,
        revision=commit,
        dtype=DTYPES[explored.dtype].torch_name,
        device=measured.device,
        gpu=None if gpu is None else gpu.name,
        bytes_now=explored.checkpoint.weight_bytes,
        modules=request.modules,
        texts=Texts(
            source=data.source,
            fingerprint=data.fingerprint,
            samples=measured.samples,
            tokens=measured.tokens,
            max_seq_length=measured.max_seq_length,
            seed=request.seed,
            calibrated_on=measured.calibrated_on,
            measured_on=len(measured.lengths),
            positions=sum(measured.lengths),
            token_ids_sha256=measured.token_ids_sha256,
        ),
        rows=in_order(tuple(rows.values())),
        pick=picked,
        next_command=None if picked is None else rows[picked.name].command,
        memory_bytes=explored.memory.most,
        peak_memory_bytes=measured.peak_memory_bytes,
        peak_gpu_memory_bytes=measured.peak_gpu_memory_bytes,
        seconds=measured.seconds,
        versions=measured.versions,
        notes=notes,
    )
