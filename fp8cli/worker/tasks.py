"""The tasks of a job: found in lm-eval's index and the user's files, loaded, and counted before a model is.

A subset is drawn here too: the same documents for every model, whatever order tasks are named in.
"""

import difflib
import math
import random
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lm_eval.tasks import TaskManager

from fp8cli.worker.failures import Failure, sentence
from fp8cli.worker.protocol import Job

YAML: Final = (".yaml", ".yml")

CLOSE_NAMES: Final = 3

LONGEST_NAME: Final = 200
"""Bytes: its samples get a file of that name, with a date."""


@dataclass(frozen=True, kw_only=True)
class LoadedTasks:
    """What lm-eval loaded for a job."""

    specs: tuple[str, ...]
    manager: Any
    """lm-eval's TaskManager; asked to load, it returns what is loaded already."""
    tasks: Mapping[str, Any]
    groups: Mapping[str, tuple[str, ...]]
    """The tasks of each group, those of its subgroups too."""
    samples: Mapping[str, tuple[int, ...]] | None
    """Documents of each task where a subset was asked for; a task that is not in it is used whole."""
    items: Mapping[str, int]
    """Documents of each task that will be used."""


def load_tasks(job: Job) -> LoadedTasks:
    """Load the tasks of a job. Raises Failure for a name nobody knows, a broken task, and a missing data set."""
    _check_counts(job)
    manager = TaskManager(
        include_path=list(job.include_paths),
        include_defaults=job.include_defaults,
        # lm-eval's own command hands the arguments of the model to the tasks: some read the tokenizer's name there.
        metadata=dict(job.model_args),
    )
    specs = tuple(dict.fromkeys(spec for name in job.tasks for spec in _resolve(name, manager)))
    loaded = _load(manager, specs)
    manager.load = lambda _: loaded
    tasks = loaded["tasks"]
    _check_names(tasks)
    sizes = {name: _count_documents(task) for name, task in tasks.items()}
    samples = None if job.sample is None else _draw(sizes, job.sample, job.sample_seed)
    return LoadedTasks(
        specs=specs,
        manager=manager,
        tasks=tasks,
        groups={
            name: tuple(task.task_name for task in group.get_all_tasks()) for name, group in loaded["groups"].items()
        },
        samples=samples,
        items={
            name: len(samples[name]) if samples is not None and name in samples else _limited(size, job.limit)
            for name, size in sizes.items()
        },
    )


def count_requests(name: str, loaded: LoadedTasks) -> int:
    """Return how often a task asks the model, without building the requests; of a task written in Python, at least.

    To build them would use up the random numbers that few-shot examples are drawn with.
    """
    task, items = loaded.tasks[name], loaded.items[name]
    repeats = int(getattr(task.config, "repeats", None) or 1)
    if task.OUTPUT_TYPE != "multiple_choice" or getattr(task, "multiple_input", True):
        return items * repeats
    twice = 2 if "acc_mutual_info" in task._metric_fn_list else 1
    documents = task.eval_docs
    drawn = (loaded.samples or {}).get(name, range(items))
    return sum(len(task.doc_to_choice(documents[index])) for index in drawn) * twice * repeats


def _check_counts(job: Job) -> None:
    if job.limit is not None and job.sample is not None:
        raise Failure(kind="task", message="the first documents and a random subset exclude each other")
    for what, count in (("limit", job.limit), ("sample", job.sample)):
        if count is not None and count <= 0:
            raise Failure(kind="task", message=f"a {what} of {count} leaves no document to evaluate")


def _check_names(tasks: Iterable[str]) -> None:
    for name in tasks:
        if "/" in name or len(name.encode()) > LONGEST_NAME:
            raise Failure(kind="task", message=f"task `{name}` has a name that no file can have", hint="rename it")


def _resolve(name: str, manager: Any) -> Sequence[str]:
    path = Path(name)
    if path.suffix in YAML:
        if not path.is_file():
            raise Failure(kind="task", message=f"no task file `{name}` was found")
        return [str(path.absolute())]
    if names := manager.match_tasks([name]):
        return sorted(names)
    if path.is_dir() and (files := sorted(path.glob("*.yaml"))):
        return [str(file.absolute()) for file in files]
    close = difflib.get_close_matches(name, manager.all_tasks, n=CLOSE_NAMES)
    *others, last = [f"`{known}`" for known in close] or [""]
    meant = f"{', '.join(others)} or {last}" if others else last
    raise Failure(
        kind="task",
        message=f"no task, group or tag is named `{name}`",
        hint=f"names like it: {meant}" if close else "name a task of lm-eval (`lm-eval ls tasks`) or a YAML file",
    )


def _load(manager: Any, specs: Sequence[str]) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = manager.load(list(specs))
    except Exception as error:
        raise _explain(error) from error
    return loaded


def _explain(error: Exception) -> Failure:
    """Say whether a task is broken or its data set could not be had: who was at work when it failed knows."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        task: Any = frame.f_locals.get("self")
        if frame.f_code.co_name == "download" and hasattr(task, "DATASET_PATH"):
            name = task.config.task
            return Failure(
                kind="data",
                message=f"the data set `{_data_set(task)}` of task `{name}` could not be loaded ({sentence(error)})",
            )
    return Failure(kind="task", message=f"a task could not be loaded ({sentence(error)})")


def _data_set(task: Any) -> str:
    files = (task.config.dataset_kwargs or {}).get("data_files")
    if files:
        return str(next(iter(files.values())) if isinstance(files, dict) else files)
    return " ".join(part for part in (task.DATASET_PATH, task.DATASET_NAME) if part)


def _count_documents(task: Any) -> int:
    try:
        return len(task.eval_docs)
    except Exception as error:
        raise Failure(kind="task", message=f"task `{task.task_name}` is broken ({sentence(error)})") from error


def _limited(size: int, limit: float | None) -> int:
    """Return how many of `size` documents lm-eval uses: below 1, a limit is a share of them."""
    if limit is None:
        return size
    return min(size, math.ceil(size * limit) if limit < 1 else int(limit))


def _draw(sizes: Mapping[str, int], count: int, seed: int) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(sorted(random.Random(f"{seed} {name}").sample(range(size), count)))  # noqa: S311 - no secret
        for name, size in sizes.items()
        if count < size
    }
