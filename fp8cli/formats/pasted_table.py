"""A table that lm-eval printed, pasted into a text or Markdown file: all that is left of many evaluations.

    |    Tasks     |Version|Filter|n-shot|  Metric  |   |Value |   |Stderr|
    |--------------|------:|------|-----:|----------|---|-----:|---|-----:|
    |lambada_openai|      1|none  |     5|acc       |↑  |0.7120|±  |0.0287|

The line that lm-eval prints above it, with the model's arguments and the limit, is read too where it was pasted.
Scores of groups are left out: their tasks are there.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from fp8cli.errors import BadInput
from fp8cli.formats.lm_eval_results import Results, Score, TaskResults

MAX_BYTES: Final = 2**20

_RULE: Final = re.compile(r":?-+:?")
_HEADLINE: Final = re.compile(
    r"^(?P<backend>[\w-]+) \((?P<model_args>.*)\), gen_kwargs: \((?P<gen_kwargs>.*)\), limit: (?P<limit>[\w.]+), "
    r"num_fewshot: \w+, batch_size: (?P<batch_size>\S+)",
    re.MULTILINE,
)
_PERPLEXITIES: Final = frozenset(("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"))
_ARROWS: Final[Mapping[str, bool]] = {"↑": True, "↓": False}
_HINT: Final = "paste one table of lm-eval, from its line of `Tasks` to its end, into a file of its own"


def read_table(path: Path) -> Results:
    """Read the table of a file. Raises BadInput where there is none, or more than one score for the same thing."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadInput(f"`{path}` has {size:,} bytes, and no pasted table has", hint=_HINT)
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise BadInput(f"`{path}` cannot be read: {problem.strerror}", hint=_HINT) from problem
    except UnicodeDecodeError as problem:
        raise BadInput(f"`{path}` is not UTF-8 at byte {problem.start:,}", hint=_HINT) from problem
    head = _HEADLINE.search(text)
    said: Mapping[str, str] = {} if head is None else head.groupdict()
    limit = said.get("limit", "")
    tasks = _tasks(path, text, items=int(float(limit)) if _is_count(limit) else None)
    if not tasks:
        raise BadInput(f"`{path}` holds no table of lm-eval", hint=_HINT)
    pairs = (part.partition("=") for part in said.get("model_args", "").split(","))
    model_args: dict[str, object] = {key: value for key, equals, value in pairs if equals}
    model, dtype = model_args.pop("pretrained", None), model_args.get("dtype")
    generation = said.get("gen_kwargs")
    return Results(
        path=path,
        date=None,
        tasks=tasks,
        groups={},
        model=None if model is None else str(model),
        backend=said.get("backend"),
        model_args=model_args,
        dtype=None if dtype in {None, "auto"} else str(dtype),
        batch_size=said.get("batch_size"),
        device=None,
        max_length=None,
        seeds={},
        gen_kwargs=None if generation in {None, "None", ""} else generation,
        system_instruction=None,
        chat_template_sha256=None,
        says_template=False,
        fewshot_as_multiturn=None,
        versions={},
        seconds=None,
    )


def _is_count(limit: str) -> bool:
    """Whether a limit counts documents; below 1 it is a share of them, and `None` is no limit."""
    return re.fullmatch(r"\d+(?:\.0)?", limit) is not None and float(limit) >= 1


def _tasks(path: Path, text: str, *, items: int | None) -> dict[str, TaskResults]:
    tasks: dict[str, TaskResults] = {}
    name = version = ""
    for row in _rows(text):
        if row["task"]:
            name, version = row["task"], row.get("version", "")
        score = _score(path, name, row)
        known = tasks.get(name)
        if known and any((each.metric, each.filter) == (score.metric, score.filter) for each in known.scores):
            raise BadInput(f"`{path}` has more than one {score.metric} of `{name}`", hint=_HINT)
        tasks[name] = TaskResults(
            name=name,
            version=version if version not in {"", "N/A", "Yaml"} else None,
            num_fewshot=int(shots) if (shots := row.get("n-shot", "")).isdecimal() else None,
            items=items,
            items_of_task=None,
            hash=None,
            output_type=None,
            generation=None,
            scores=(*(known.scores if known else ()), score),
            samples=None,
        )
    return tasks


def _rows(text: str) -> Iterator[dict[str, str]]:
    """Rows of the tables of tasks, by heading; the column of the arrow has none, and is called `arrow` here."""
    headings: list[str] | None = None
    for line in text.splitlines():
        if not line.strip().startswith("|"):
            headings = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        lower = [cell.lower() for cell in cells]
        if "metric" in lower and "value" in lower:
            lower[0] = "task" if lower[0] in {"task", "tasks"} else ""
            if (arrow := lower.index("metric") + 1) < lower.index("value"):
                lower[arrow] = "arrow"
            headings = lower if lower[0] else None
        elif headings is not None and len(cells) == len(headings) and not all(map(_RULE.fullmatch, cells)):
            row = dict(zip(headings, cells, strict=True))
            # Tasks of a group are printed below it, as ` - name`.
            row["task"] = re.sub(r"^(?:-\s+)+", "", row["task"])
            yield row


def _score(path: Path, task: str, row: Mapping[str, str]) -> Score:
    metric = row["metric"]
    value, stderr = _number(row["value"]), _number(row.get("stderr", ""))
    if not task or not metric or value is None:
        message = f"`{path}` has `{row['value']}` as {metric or 'metric'} of `{task}`, which is no number"
        raise BadInput(message, hint=_HINT)
    return Score(
        metric=metric,
        filter=row.get("filter") or "none",
        value=value,
        stderr=stderr,
        higher_is_better=_ARROWS.get(row.get("arrow", ""), False if metric in _PERPLEXITIES else None),
    )


def _number(text: str) -> float | None:
    try:
        number = float(text.strip("± "))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
