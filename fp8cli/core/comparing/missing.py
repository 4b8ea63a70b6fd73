"""Evaluates what a comparison lacks: checkpoints, simulations of the base, and runs without those tasks or settings.

The base comes first, and what it was run with (backend, dtype, batch size, …) is what the others are run with, unless
the user says otherwise. What is known already costs nothing: evaluations are answered from their records.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

from fp8cli.core.comparing.outlook import outlook_of_items, outlook_of_margin
from fp8cli.core.comparing.sides import Evidence, NamedSide, ReadySide, pick_tasks, recorded
from fp8cli.core.comparing.simulations import check_data, check_modules, data_of, for_simulations, modules_for, on_base
from fp8cli.core.evaluating.eval_events import EvalEvent, Noted, Prepared
from fp8cli.core.evaluating.evaluation import Evaluated, check_evaluation, evaluate
from fp8cli.core.evaluating.request import EvaluationRequest
from fp8cli.core.evaluating.simulation import modules_of, options_of
from fp8cli.core.evaluating.worker_events import TasksCounted
from fp8cli.errors import UsageError
from fp8cli.formats.run_record import RunRecord

Notify = Callable[[EvalEvent], None]

NOISE_DTYPE: Final = "float32"

_OPTIONS: Final = {
    "num_fewshot": "--num-fewshot",
    "limit": "--limit",
    "sample": "--sample",
    "seed": "--seed",
    "chat_template": "--apply-chat-template",
    "system_instruction": "--system-instruction",
    "fewshot_as_multiturn": "--fewshot-as-multiturn",
    "gen_kwargs": "--gen-kwargs",
    "batch_size": "--batch-size",
    "backend": "--backend",
    "max_length": "--max-length",
    "dtype": "--dtype",
    "model_args": "--model-arg",
    "text": "--text",
    "rerun": "--rerun",
}
"""Fields of a request that ask for other numbers than a record may have, and the options that set them."""


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """The sides, and what is asked of all of them."""

    named: tuple[NamedSide, ...]
    asked: tuple[str, ...]
    """Tasks as the user named them, else as the base was asked."""
    chosen: bool
    """Whether the user named them."""
    options: tuple[str, ...]
    """Options that only a new evaluation can follow."""


def ready_sides(
    named: Sequence[NamedSide], request: EvaluationRequest, notify: Notify = lambda _: None, *, margin: float
) -> tuple[ReadySide, ...]:
    """Return every side with what is compared of it, evaluated where it was not. Raises Fp8Error with what is wrong."""
    named = on_base(named)
    sides = _Sides(
        named=named,
        asked=request.task_names or _asked_of(named),
        chosen=bool(request.task_names),
        options=tuple(_given(request)),
    )
    check_data(sides.named, request)
    check_modules(sides.named, request)
    jobs = [_missing(side, sides) for side in sides.named]
    labels = _labels(sides.named)
    _refuse_unreadable(sides.named[1:], jobs[1:], request)
    tell = _with_outlook(notify, margin)
    ready: list[ReadySide] = []
    for side, names, label in zip(sides.named, jobs, labels, strict=True):
        if not names:
            ready.append(_from_record(side, sides))
            continue
        model = next((record for each in ready[:1] for record in each.records), None) or side.newest_record
        wanted = replace(
            for_simulations(request, sides.named) if model is None else _like(request, model),
            checkpoint=side.checkpoint,
            revision=None,
            tasks=names,
            label=label,
            simulate=side.simulate,
            calibration=data_of(side, request),
            modules=modules_for(side, request),
        )
        ready.append(_from_evaluation(side, sides, evaluate(wanted, tell)))
    return _told_apart(ready, sides.named)


def _refuse_unreadable(
    others: Sequence[NamedSide], jobs: Sequence[tuple[str, ...]], request: EvaluationRequest
) -> None:
    """Refuse what no backend here can evaluate before the base takes its time. Nothing is fetched from the Hub."""
    for side, names in zip(others, jobs, strict=True):
        if side.kind == "checkpoint" and names and side.checkpoint is not None and Path(side.checkpoint).is_dir():
            wanted = replace(
                request,
                checkpoint=side.checkpoint,
                revision=None,
                tasks=names,
                calibration=data_of(side, request),
                modules=modules_for(side, request),
            )
            check_evaluation(wanted)


def noise_side(base: ReadySide, request: EvaluationRequest, notify: Notify = lambda _: None) -> ReadySide:
    """Evaluate the base again in float32: what changes then is arithmetic, and no loss.

    Raises UsageError where the base is not an evaluation of a checkpoint that is here.
    """
    record = next(iter(base.records), None)
    if record is None or record.model.path is None:
        message = f"--noise-floor evaluates `{base.label}` once more, and its checkpoint is not known"
        raise UsageError(message, hint="give the base as a checkpoint, or as a label that fp8 eval made")
    if record.settings.dtype == NOISE_DTYPE:
        raise UsageError(f"`{base.label}` was evaluated in {NOISE_DTYPE} already", hint="leave --noise-floor out")
    label = f"{record.label}~{NOISE_DTYPE}"
    asked = tuple(dict.fromkeys(name for each in base.records for name in each.asked_tasks))
    like = replace(
        _like(request, record),
        checkpoint=record.model.path,
        tasks=asked,
        label=label,
        dtype=NOISE_DTYPE,
        simulate=None if record.simulated is None else record.simulated.scheme,
        calibration=options_of(record.simulated),
        modules=modules_of(record.simulated),
    )
    tasks = {task: each for task, each in _tasks_of(evaluate(like, notify)).items() if task in base.tasks}
    return ReadySide(label=label, tasks=tasks)


def _asked_of(named: Sequence[NamedSide]) -> tuple[str, ...]:
    """Return what the first side with results was asked. Raises UsageError where there is none."""
    for side in named:
        records = [each.record for each in side.evidence if each.record is not None]
        asked = [name for record in records for name in record.asked_tasks] or list(side.tasks())
        if asked:
            return tuple(dict.fromkeys(asked))
    message = "no task is named, and no side has results yet"
    raise UsageError(message, hint="name one: fp8 compare BASE OTHER --tasks fp8_stories, or lambada_openai, gsm8k, …")


def _given(request: EvaluationRequest) -> Iterator[str]:
    defaults = {field.name: field.default for field in fields(request)}
    return (option for name, option in _OPTIONS.items() if getattr(request, name) != defaults[name])


def _missing(side: NamedSide, sides: _Sides) -> tuple[str, ...]:
    """Names of tasks that the side must be evaluated on. Raises UsageError where it cannot be."""
    if side.kind in {"checkpoint", "simulation"}:
        return sides.asked
    _, lacking = pick_tasks(side, sides.asked)
    wanted = sides.asked if sides.options and side.kind == "label" else lacking if sides.chosen else ()
    can_run = side.kind == "label" and side.checkpoint is not None
    if wanted and not can_run:
        message = f"`{side.name}` has nothing for {', '.join(f'`{name}`' for name in wanted[:5])}"
        hint = "it cannot be evaluated again from here; give its checkpoint instead, or leave those tasks out"
        raise UsageError(message, hint=hint)
    if sides.options and not can_run:
        message = f"`{side.name}` is there as it is, and {sides.options[0]} asks for a new evaluation"
        raise UsageError(message, hint=f"give its checkpoint instead, or leave {sides.options[0]} out")
    return wanted


def _labels(named: Sequence[NamedSide]) -> list[str | None]:
    """Labels to evaluate under: a label keeps its own; of several other checkpoints each goes by its folder's name."""
    checkpoints = [side for side in named[1:] if side.kind == "checkpoint"]
    return [
        side.label
        if side.kind == "label"
        else side.label.rsplit("/", maxsplit=1)[-1].lstrip(".-")
        if len(checkpoints) > 1 and side in checkpoints
        else None
        for side in named
    ]


def _like(request: EvaluationRequest, record: RunRecord) -> EvaluationRequest:
    """Return the request with the settings of a record wherever the user left the choice to the tool."""
    settings = record.settings
    said: dict[str, object] = {
        "num_fewshot": settings.num_fewshot,
        "limit": settings.limit,
        "sample": settings.sample,
        "seed": settings.sample_seed,
        "chat_template": settings.chat_template,
        "system_instruction": settings.system_instruction,
        "fewshot_as_multiturn": settings.fewshot_as_multiturn if settings.chat_template else None,
        "gen_kwargs": settings.gen_kwargs,
        "batch_size": settings.batch_size,
        "backend": settings.backend,
        "max_length": settings.max_length,
        "dtype": settings.dtype or "auto",
        "python": Path(settings.python) if settings.backend == "vllm" else None,
    }
    if record.fidelity is not None:
        # Log-probabilities can only be compared over the same tokens.
        said["fidelity_positions"] = record.fidelity.positions
    if request.limit is not None or request.sample is not None:
        said.update(limit=None, sample=None)
    if settings.backend == "server" and request.server is None:
        # The server that answered then may have another model by now.
        said["backend"] = request.backend
    defaults = {field.name: field.default for field in fields(request)}
    changes = {name: value for name, value in said.items() if getattr(request, name) == defaults[name]}
    return replace(request, **changes)  # type: ignore[arg-type]


def _with_outlook(notify: Notify, margin: float) -> Notify:
    """Say, once, what the margin takes before anything is run, and what the items can settle once they are counted."""
    waiting = {Prepared, TasksCounted}

    def tell(event: EvalEvent) -> None:
        if isinstance(event, Prepared) and Prepared in waiting:
            waiting.remove(Prepared)
            notify(Noted(text=outlook_of_margin(margin)))
        notify(event)
        if isinstance(event, TasksCounted) and TasksCounted in waiting:
            waiting.remove(TasksCounted)
            for task in event.tasks:
                if (text := outlook_of_items(task.name, task.items, margin)) is not None:
                    notify(Noted(text=text))

    return tell


def _from_record(side: NamedSide, sides: _Sides) -> ReadySide:
    tasks = pick_tasks(side, sides.asked)[0] if sides.chosen else side.tasks()
    return ReadySide(label=side.label, tasks=tasks)


def _from_evaluation(side: NamedSide, sides: _Sides, done: Evaluated) -> ReadySide:
    known = pick_tasks(side, sides.asked)[0] if side.evidence and not sides.options else {}
    return ReadySide(label=done.label, tasks={**known, **_tasks_of(done)})


def _tasks_of(done: Evaluated) -> dict[str, Evidence]:
    tasks: dict[str, Evidence] = {}
    for answer in done.answers:
        evidence = recorded(answer.folder, answer.record)
        for task in answer.tasks:
            tasks.setdefault(task, evidence)
    return tasks


def _told_apart(ready: Sequence[ReadySide], named: Sequence[NamedSide]) -> tuple[ReadySide, ...]:
    """Return the sides with labels that are not the same: where they would be, each goes by the name it was given."""
    labels = [side.label for side in ready]
    return tuple(
        replace(side, label=name.name) if labels.count(side.label) > 1 else side
        for side, name in zip(ready, named, strict=True)
    )
