"""The evaluation that every form of a model is asked, in the settings that `fp8 eval` would choose for the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.evaluating.backends import choose_workplace, examine
from fp8cli.core.evaluating.request import EvaluationRequest, check_request
from fp8cli.core.evaluating.settings import choose_settings
from fp8cli.core.evaluating.subject import open_subject
from fp8cli.core.evaluating.task_sources import STORIES, find_sources, write_bundled
from fp8cli.errors import UsageError
from fp8cli.worker.protocol import Job

_TASKS: Final = "tasks"


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What the user said of tasks."""

    names: tuple[str, ...] = ()
    """Tasks, groups, tags, globs or YAML files, some joined by commas; nothing: none is asked."""
    limit: float | None = None
    sample: int | None = None
    seed: int = 1234
    include_paths: tuple[Path, ...] = ()


def evaluation_request(options: TaskOptions, *, device: str, python: Path | None) -> EvaluationRequest | None:
    """Return the request, None where there are no tasks. Raises UsageError for what makes no sense."""
    request = EvaluationRequest(
        tasks=options.names,
        limit=options.limit,
        sample=options.sample,
        seed=options.seed,
        include_paths=options.include_paths,
        backend="hf",
        device=None if device == "auto" else device,
        python=python,
        fidelity=False,
    )
    if not request.task_names:
        if options.limit is not None or options.sample is not None:
            message = "--limit and --sample choose items of tasks, and no task is named"
            raise UsageError(message, hint="name one with --tasks, or leave them out")
        return None
    check_request(request)
    return request


def make_job(request: EvaluationRequest, model: Path, folder: Path) -> Job:
    """Make every setting explicit. folder: of the measurement. Raises CannotRun where lm-eval cannot be used."""
    subject = open_subject(str(model), None, served=False, full_hash=False, download_bars=False)
    workplace = choose_workplace(request, subject)
    examine(workplace, subject)
    chosen = choose_settings(request, subject, workplace, None)
    sources = find_sources(request.task_names, request.include_paths)
    settings = chosen.settings
    own: Sequence[Path] = ()
    if STORIES not in sources.own_names:
        write_bundled(folder / _TASKS)
        own = (folder / _TASKS,)
    names = (str(Path(name).absolute()) if sources.is_file(name) else name for name in sources.names)
    return Job(
        backend=settings.backend,
        model_args={**chosen.place, **settings.model_args},
        tasks=tuple(names),
        include_paths=tuple(str(path.absolute()) for path in (*own, *sources.folders)),
        include_defaults=sources.include_defaults,
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
        confirm_unsafe_code=False,
        fidelity=None,
        environment=settings.environment,
    )
