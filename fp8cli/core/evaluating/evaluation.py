"""One evaluation from request to record: answered from what is known, or run by a worker, checked before and after.

    request → subject → workplace → settings → keys → known? → doctor's checks → work folder ⇄ worker → published

`fp8 eval` and `fp8 compare` both come here.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fp8cli.core.evaluating.answers import Answer, find_answers
from fp8cli.core.evaluating.backends import Workplace, choose_workplace, examine
from fp8cli.core.evaluating.eval_events import EvalEvent, Noted, Prepared
from fp8cli.core.evaluating.keys import Keys, fidelity_key, make_keys
from fp8cli.core.evaluating.publishing import Finished, publish, read_outcome
from fp8cli.core.evaluating.request import EvaluationRequest, check_request
from fp8cli.core.evaluating.runs import check_label, find_records, simulated_label
from fp8cli.core.evaluating.servers import ask_server
from fp8cli.core.evaluating.settings import Chosen, choose_settings
from fp8cli.core.evaluating.simulation import SimulationOrder, check_simulation, order_simulation, settle
from fp8cli.core.evaluating.splitting import cluster_environment, refuse_split
from fp8cli.core.evaluating.subject import Subject, open_subject
from fp8cli.core.evaluating.supervising import WorkerFailed, run_workers
from fp8cli.core.evaluating.task_sources import STORIES, TaskSources, find_sources, hash_contents, write_bundled
from fp8cli.core.evaluating.work_folder import Work, discard, hold, runs_errors
from fp8cli.formats.run_record import RunRecord
from fp8cli.worker.protocol import FidelityJob, Job, log_file

FIDELITY_BYTES: Final = 512 * 2**20
TOP_K: Final = 100
"""Most likely tokens that are kept where not all can be had."""

_TASKS: Final = "tasks"
_LESS_MEMORY: Final = 0.85
"""What a second try of vLLM takes of the share of the first."""

Notify = Callable[[EvalEvent], None]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What came of a request."""

    folder: Path
    """Of the record."""
    record: RunRecord
    """The run that was made, or the newest that answered."""
    answered: bool
    """Whether records answered all of it, and nothing was run."""
    answers: tuple[Answer, ...]
    """Every record that takes part, with its tasks, `record` first: more than one where some tasks were known."""
    label: str
    """What the run is, or would have been, called."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """An evaluation, settled to the last setting."""

    request: EvaluationRequest
    subject: Subject
    workplace: Workplace
    chosen: Chosen
    sources: TaskSources
    keys: Keys
    label: str
    fidelity: FidelityJob | None


def evaluate(request: EvaluationRequest, notify: Notify = lambda _: None) -> Evaluated:
    """Evaluate a checkpoint, or say what is known already. Raises Fp8Error with what is wrong."""
    check_request(request)
    check_simulation(request)
    plan = _plan(request)
    answers = _known(plan, notify)
    known = {name for answer in answers for name in answer.names}
    missing = tuple(name for name in plan.sources.names if name not in known)
    if not missing:
        newest = answers[0]
        return Evaluated(folder=newest.folder, record=newest.record, answered=True, answers=answers, label=plan.label)
    _prepare(plan, missing, tuple(name for name in plan.sources.names if name in known), notify)
    folder = request.runs / plan.label
    record = _run(plan, missing, folder, notify)
    own = Answer(names=missing, folder=folder, record=record, tasks=tuple(record.tasks))
    return Evaluated(folder=folder, record=record, answered=False, answers=(own, *answers), label=plan.label)


def check_evaluation(request: EvaluationRequest) -> None:
    """Refuse now what `evaluate` would refuse before it loads a model. Raises Fp8Error; records answer here too."""
    check_request(request)
    plan = _plan(request)
    known = {name for answer in _known(plan, lambda _: None) for name in answer.names}
    if known < set(plan.sources.names):
        examine(plan.workplace, plan.subject)
        refuse_split(request, plan.subject, plan.workplace)


def _plan(request: EvaluationRequest) -> _Plan:
    served = None if request.server is None else ask_server(request.server)
    subject = open_subject(
        request.checkpoint,
        request.revision,
        served=served is not None,
        full_hash=request.full_hash,
        download_bars=request.download_bars,
    )
    simulation = order_simulation(request, subject)
    label = request.label or _label(subject, simulation)
    check_label(label)
    workplace = choose_workplace(request, subject)
    fidelity = _fidelity_job(request)
    chosen = choose_settings(request, subject, workplace, served)
    if simulation is not None:
        simulation = settle(simulation, workplace.worker, chosen.settings.dtype)
    chosen = replace(chosen, fidelity_key=fidelity_key(fidelity), simulation=simulation)
    sources = find_sources(request.task_names, request.include_paths)
    gpus = [gpu.name for gpu in workplace.gpus.visible] + [gpu.name for gpu in workplace.amd]
    keys = make_keys(subject, chosen, gpus if workplace.on_gpu else (), hash_contents(sources))
    return _Plan(
        request=request,
        subject=subject,
        workplace=workplace,
        chosen=chosen,
        sources=sources,
        keys=keys,
        label=label,
        fidelity=fidelity,
    )


def _label(subject: Subject, simulation: SimulationOrder | None) -> str:
    if simulation is None:
        return subject.label
    return simulated_label(simulation.plan.scheme.name, simulation.plan.modules.mark)


def _known(plan: _Plan, notify: Notify) -> tuple[Answer, ...]:
    """Return what records answer. Which weights a server has nobody knows, so nothing answers for it."""
    if plan.request.rerun or plan.subject.path is None:
        return ()
    records = find_records(plan.request.runs, complain=lambda text: notify(Noted(text=text)))
    wanted = None if plan.request.text is None else plan.chosen.fidelity_key
    return find_answers(records, plan.keys, plan.sources.names, wanted)


def _prepare(plan: _Plan, missing: tuple[str, ...], known: tuple[str, ...], notify: Notify) -> None:
    """Refuse what cannot work, and say what is about to be done."""
    said = examine(plan.workplace, plan.subject)
    refuse_split(plan.request, plan.subject, plan.workplace)
    simulation = plan.chosen.simulation
    notes = () if simulation is None or simulation.data is None else simulation.data.seen.notes
    notify(
        Prepared(
            checkpoint=plan.subject.name,
            label=plan.label,
            backend=plan.workplace.backend,
            why=plan.workplace.why,
            simulated=None if plan.chosen.simulation is None else plan.chosen.simulation.plan.scheme.name,
            tasks=missing,
            known=known,
        )
    )
    for text in (*said, *notes, *plan.chosen.overridden):
        notify(Noted(text=text))


def _run(plan: _Plan, names: tuple[str, ...], folder: Path, notify: Notify) -> RunRecord:
    begun = time.monotonic()
    runs = plan.request.runs
    key = plan.keys.of_run(names, plan.chosen.fidelity_key)
    with hold(runs, key, anew=plan.request.rerun) as work:
        if work.resumed:
            notify(Noted(text=f"going on with a run of {work.started.created[:19]} UTC that was cut off"))
        with runs_errors(runs):
            write_bundled(work.folder / _TASKS)
            if plan.chosen.simulation is not None and plan.chosen.simulation.data is not None:
                plan.chosen.simulation.data.seen.hand_over(work.folder)
        chosen, result, notes = _work(plan, names, work, notify)
        results, outcome = read_outcome(result, work.folder / log_file(0))
        if outcome.known_answers:
            notes = (*notes, f"{outcome.known_answers:,} answers are those of an earlier run that was cut off")
        finished = Finished(
            asked=names,
            results=results,
            outcome=outcome,
            seconds=time.monotonic() - begun,
            chosen=chosen,
            notes=(*plan.chosen.overridden, *notes),
        )
        with runs_errors(runs):
            record = publish(finished, plan.subject, plan.keys, work, folder)
        discard(work)
    return record


def _work(
    plan: _Plan, names: tuple[str, ...], work: Work, notify: Notify
) -> tuple[Chosen, Mapping[str, object], tuple[str, ...]]:
    """Let the worker do it; when memory runs out, once more with less. Returns what it wrote, and how it was done."""
    notes: tuple[str, ...] = ()
    while True:
        chosen = _lowered(plan.chosen, work)
        if chosen is not plan.chosen:
            notes = (f"memory ran out, so this run has {_less(chosen)}",)
        try:
            result = run_workers(
                _job(plan, chosen, names, work),
                work.folder,
                python=plan.workplace.worker.python,
                notify=notify,
                stall_seconds=plan.request.stall_timeout,
                environ={**plan.workplace.environ, **cluster_environment(plan.request, plan.workplace.environ)},
            )
        except WorkerFailed as failure:
            if failure.cause.kind != "memory" or work.started.batch_size is not None or not _can_lower(chosen):
                raise
            is_vllm = chosen.settings.backend == "vllm"
            work.remember(
                replace(
                    work.started,
                    batch_size=max(1, chosen.settings.batch_size // 2),
                    gpu_memory=round(plan.request.gpu_memory * _LESS_MEMORY, 2) if is_vllm else None,
                )
            )
            notify(Noted(text=f"{failure.message}; once more, with {_less(_lowered(plan.chosen, work))}"))
            continue
        return chosen, result, notes


def _can_lower(chosen: Chosen) -> bool:
    return chosen.settings.batch_size > 1 or chosen.settings.backend == "vllm"


def _lowered(chosen: Chosen, work: Work) -> Chosen:
    """Return the settings with what memory has room for."""
    started = work.started
    if started.batch_size is None:
        return chosen
    args = dict(chosen.settings.model_args)
    if started.gpu_memory is not None:
        args["gpu_memory_utilization"] = started.gpu_memory
    return replace(chosen, settings=replace(chosen.settings, batch_size=started.batch_size, model_args=args))


def _less(chosen: Chosen) -> str:
    settings = chosen.settings
    share = settings.model_args.get("gpu_memory_utilization")
    return f"batches of {settings.batch_size}" + (f" and {share} of the GPU" if settings.backend == "vllm" else "")


def _job(plan: _Plan, chosen: Chosen, names: tuple[str, ...], work: Work) -> Job:
    settings, request = chosen.settings, plan.request
    # Always, so that a mistyped name is told which it resembles; a task of the user's own with its name goes first.
    bundled = () if STORIES in plan.sources.own_names else (work.folder / _TASKS,)
    folders = (*(path.absolute() for path in bundled), *plan.sources.folders)
    return Job(
        backend=settings.backend,
        model_args={**chosen.place, **settings.model_args},
        tasks=tuple(str(Path(name).absolute()) if plan.sources.is_file(name) else name for name in names),
        include_paths=tuple(map(str, folders)),
        include_defaults=plan.sources.include_defaults,
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        sample=settings.sample,
        sample_seed=settings.sample_seed,
        apply_chat_template=settings.chat_template,
        system_instruction=settings.system_instruction,
        fewshot_as_multiturn=settings.fewshot_as_multiturn,
        batch_size=settings.batch_size,
        device=chosen.device,
        gen_kwargs=settings.gen_kwargs,
        seeds=settings.seeds,
        confirm_unsafe_code=request.confirm_unsafe_code,
        fidelity=plan.fidelity,
        simulation=None if chosen.simulation is None else chosen.simulation.job,
        world=settings.world,
        environment={**settings.environment, **_of_simulation(chosen)},
    )


def _of_simulation(chosen: Chosen) -> Mapping[str, str]:
    return {} if chosen.simulation is None else chosen.simulation.environment(chosen.device)


def _fidelity_job(request: EvaluationRequest) -> FidelityJob | None:
    if not request.fidelity:
        return None
    return FidelityJob(
        texts=None if request.text is None else str(request.text.absolute()),
        positions=request.fidelity_positions,
        budget_bytes=FIDELITY_BYTES,
        top_k=TOP_K,
    )
