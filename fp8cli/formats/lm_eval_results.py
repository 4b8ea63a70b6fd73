"""The results file of lm-eval, `results_DATE.json`: what each task scored, and under which settings.

Written against lm-eval 0.4.13, and lenient towards older ones: what a file does not say is None. Values are not:
a score that is no finite number makes the file worthless, and a file that is no results file is refused.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fp8cli.errors import BadInput

MAX_BYTES: Final = 256 * 2**20
"""The largest real results file, all of MMLU's prompts in it, is some megabytes."""

_NAME: Final = re.compile(r"(?:.*_)?(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:[.]\d+)?)[.]json")
_HINT: Final = "give a results_*.json that lm-eval wrote with --output_path, or the folder it lies in"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task, through one filter."""

    metric: str
    filter: str
    value: float
    stderr: float | None
    """None where lm-eval computed none."""
    higher_is_better: bool | None


@dataclass(frozen=True, kw_only=True)
class TaskResults:
    """One task of a results file."""

    name: str
    version: str | None
    num_fewshot: int | None
    items: int | None
    """Documents that were asked."""
    items_of_task: int | None
    """Documents that the task has."""
    hash: str | None
    output_type: str | None
    """`loglikelihood`, `multiple_choice`, `loglikelihood_rolling` or `generate_until`."""
    generation: str | None
    """Settings of generation, as canonical JSON."""
    scores: tuple[Score, ...]
    """In the order of the file."""
    samples: Path | None
    """The file of its samples, where it lies beside."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """A results file. None stands for what it does not say."""

    path: Path
    date: str | None
    """As it stands in the file's name."""
    tasks: Mapping[str, TaskResults]
    groups: Mapping[str, tuple[str, ...]]
    model: str | None
    """The model as it was named to lm-eval."""
    backend: str | None
    """lm-eval's name of the model class."""
    model_args: Mapping[str, object]
    """Without the model's name."""
    dtype: str | None
    batch_size: str | None
    device: str | None
    max_length: int | None
    seeds: Mapping[str, str]
    gen_kwargs: str | None
    system_instruction: str | None
    chat_template_sha256: str | None
    """Of the template that prompts were put into; None also where there was none: see `says_template`."""
    says_template: bool
    """Whether the file says which chat template was used, or that none was."""
    fewshot_as_multiturn: bool | None
    versions: Mapping[str, str]
    seconds: float | None
    of_groups: Mapping[str, TaskResults] = field(default_factory=dict)
    """What lm-eval made of the tasks of each group that has a score of its own."""


def read_results(path: Path) -> Results:
    """Read a results file. Raises BadInput, in one sentence, for a torn, foreign or worthless one."""
    document = _parse(path)
    results, config = document.get("results"), document.get("config")
    if not isinstance(results, dict) or not isinstance(config, dict | None) or not results:
        raise BadInput(f"`{path}` is not a results file of lm-eval", hint=_HINT)
    groups = _groups(document.get("group_subtasks"))
    config = config or {}
    named = _NAME.fullmatch(path.name)
    date = named.group("date") if named else None
    model, model_args = _split_model_args(config.get("model_args"))
    return Results(
        path=path,
        date=date,
        tasks={
            name: _task(path, document, name, scores, date)
            for name, scores in results.items()
            if name not in groups and isinstance(scores, dict)
        },
        groups=groups,
        of_groups={
            name: group
            for name, scores in results.items()
            if name in groups and isinstance(scores, dict)
            if (group := _task(path, document, name, scores, None)).scores
        },
        model=model,
        backend=_text(config.get("model")),
        model_args=model_args,
        dtype=_dtype(config, model_args),
        batch_size=_text(config.get("batch_size")),
        device=_text(config.get("device")),
        max_length=_whole(document.get("max_length")),
        seeds={key: str(config[f"{key}_seed"]) for key in _SEEDS if config.get(f"{key}_seed") is not None},
        gen_kwargs=_canonical(config.get("gen_kwargs")),
        system_instruction=_text(document.get("system_instruction")),
        chat_template_sha256=_text(document.get("chat_template_sha")),
        says_template="chat_template_sha" in document,
        fewshot_as_multiturn=flag if isinstance(flag := document.get("fewshot_as_multiturn"), bool) else None,
        versions={
            key: version
            for key in ("lm_eval", "transformers")
            if (version := _text(document.get(f"{key}_version"))) is not None
        },
        seconds=_number(document.get("total_evaluation_time_seconds")),
    )


_SEEDS: Final = ("random", "numpy", "torch", "fewshot")


def _parse(path: Path) -> dict[str, object]:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadInput(f"`{path}` has {size:,} bytes, and no results file of lm-eval has", hint=_HINT)
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise BadInput(f"`{path}` cannot be read: {problem.strerror}", hint=_HINT) from problem
    except UnicodeDecodeError as problem:
        raise BadInput(f"`{path}` is not UTF-8 at byte {problem.start:,}", hint=_HINT) from problem
    except RecursionError:
        raise BadInput(f"`{path}` is nested too deeply", hint=_HINT) from None
    except json.JSONDecodeError as problem:
        what = "breaks off" if problem.pos >= len(problem.doc.rstrip()) else "is not JSON"
        raise BadInput(f"`{path}` {what} at character {problem.pos:,}: {problem.msg}", hint=_HINT) from problem
    if not isinstance(document, dict):
        raise BadInput(f"`{path}` is not a results file of lm-eval", hint=_HINT)
    return document


def _task(
    path: Path, document: Mapping[str, object], name: str, scores: dict[str, object], date: str | None
) -> TaskResults:
    config = _member(document, "configs", name)
    config = config if isinstance(config, dict) else {}
    counts = _member(document, "n-samples", name)
    counts = counts if isinstance(counts, dict) else {}
    samples = path.with_name(f"samples_{name}_{date}.jsonl") if date is not None else None
    version = _member(document, "versions", name)
    return TaskResults(
        name=name,
        # "N/A" is what lm-eval writes for a task that has none.
        version=None if version in {None, "N/A"} else str(version),
        num_fewshot=_whole(_member(document, "n-shot", name)),
        items=_whole(counts.get("effective", scores.get("sample_len"))),
        items_of_task=_whole(counts.get("original")),
        hash=_text(_member(document, "task_hashes", name)) or None,
        output_type=_text(config.get("output_type")),
        generation=_canonical(config.get("generation_kwargs")),
        scores=tuple(_scores(path, name, scores, _member(document, "higher_is_better", name))),
        samples=samples if samples is not None and samples.is_file() else None,
    )


def _scores(path: Path, task: str, scores: Mapping[str, object], better: object) -> Iterator[Score]:
    directions = better if isinstance(better, dict) else {}
    for key, value in scores.items():
        metric, comma, through = key.partition(",")
        if not comma or metric.endswith("_stderr") or isinstance(value, str | None):
            continue
        number = _number(value)
        if number is None:
            message = f"`{path}` has {_shown(value)} as {metric} of `{task}`, which is no number"
            raise BadInput(message, hint="evaluate it again, and look into the log for what the model answered")
        stderr = _number(scores.get(f"{metric}_stderr,{through}"))
        direction = directions.get(metric)
        yield Score(
            metric=metric,
            filter=through,
            value=number,
            stderr=stderr,
            higher_is_better=direction if isinstance(direction, bool) else None,
        )


def _shown(value: object) -> str:
    return str(value)[:40]


def _member(document: Mapping[str, object], table: str, name: str) -> object:
    rows = document.get(table)
    return rows.get(name) if isinstance(rows, dict) else None


def _groups(subtasks: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(subtasks, dict):
        return {}
    # Older versions list every task as a group of its own, with nothing in it.
    return {name: tuple(map(str, inner)) for name, inner in subtasks.items() if isinstance(inner, list) and inner}


def _split_model_args(given: object) -> tuple[str | None, dict[str, object]]:
    """Name of the model, and the other arguments; older versions keep them as the text that was typed."""
    if isinstance(given, str):
        pairs = (part.partition("=") for part in given.split(","))
        given = {key.strip(): value.strip() for key, equals, value in pairs if equals}
    if not isinstance(given, dict):
        return None, {}
    named = next((given[key] for key in ("pretrained", "model", "path") if isinstance(given.get(key), str)), None)
    return named, {key: value for key, value in given.items() if key not in {"pretrained", "model", "path"}}


def _dtype(config: Mapping[str, object], model_args: Mapping[str, object]) -> str | None:
    said = _text(config.get("model_dtype")) or _text(model_args.get("dtype"))
    return None if said in {None, "auto"} else str(said).removeprefix("torch.")


def _text(value: object) -> str | None:
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def _canonical(value: object) -> str | None:
    return None if value in (None, "", {}) else json.dumps(value, sort_keys=True)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(value: object) -> float | None:
    """A finite number, or None; times are written as text."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
