"""Whether two evaluations can be compared: everything that changes numbers, and is not the model, must be the same.

Each setting has a key, which `--allow` takes. What only one side says is not checked, and listed as such; plain
lm-eval keeps no hash of the tokenizer, for one. Some differences change numbers by arithmetic noise alone, or not at
all: they are listed, and allowed by themselves.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.core.comparing.comparison import Difference
from fp8cli.core.comparing.items import PairedItems
from fp8cli.core.comparing.sides import Evidence
from fp8cli.errors import NotComparable, UsageError
from fp8cli.formats.lm_eval_results import Results, TaskResults

KEYS: Final[Mapping[str, str]] = {
    "task-version": "version of the task",
    "task-hash": "hash over documents, prompts and targets",
    "shots": "number of examples in the prompt",
    "items": "documents that were asked",
    "documents": "documents, item by item",
    "prompts": "prompts, item by item",
    "targets": "targets, item by item",
    "gen-kwargs": "settings of generation",
    "tokenizer": "tokenizer",
    "chat-template": "chat template",
    "system-instruction": "system instruction",
    "multiturn": "examples as turns of a conversation",
    "bos": "BOS in front of every prompt",
    "backend": "backend",
    "lm_eval": "version of lm_eval",
    "transformers": "version of transformers",
    "torch": "version of torch",
    "vllm": "version of vllm",
    "compressed-tensors": "version of compressed-tensors",
    "dtype": "dtype",
    "max-length": "longest input in tokens",
    "seeds": "seeds",
    "model-args": "arguments of the model class",
    "environment": "environment variables of the worker",
    "batch-size": "batch size",
    "hardware": "hardware",
}
"""Every setting that is compared, in words."""

VERSIONS: Final = ("lm_eval", "transformers", "torch", "vllm", "compressed-tensors")
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {"versions": VERSIONS, "task": ("task-version", "task-hash")}
"""Keys that stand for several."""

HARMLESS: Final = frozenset(("batch-size", "hardware"))
"""Listed, and allowed by themselves: they move numbers by rounding alone."""

PER_TASK: Final = frozenset(("task-version", "task-hash", "shots", "gen-kwargs"))

_BACKENDS: Final[Mapping[str, str]] = {
    "huggingface": "hf",
    "hf-auto": "hf",
    "local-completions": "server",
}
_OTHER_KEYS: Final = frozenset(
    # These have keys of their own here,
    "dtype max_length max_model_len add_bos_token batch_size tokenizer "
    # say which model it is and how it is quantized, which is what the comparison is about,
    "pretrained model path revision quantization allow_deprecated_quantization trust_remote_code base_url "
    "tokenizer_backend "
    # or where and how fast it runs.
    "device device_map gpu_memory_utilization max_batch_size num_concurrent max_retries timeout max_logprobs "
    "disable_log_stats swap_space tensor_parallel_size pipeline_parallel_size data_parallel_size parallelize "
    "distributed_executor_backend enforce_eager".split()
)
_SILENT_VARIABLES: Final = (
    "VLLM_CPU_KVCACHE_SPACE VLLM_CPU_OMP_THREADS_BIND VLLM_ENABLE_V1_MULTIPROCESSING VLLM_LOGGING_LEVEL "
    "VLLM_NO_USAGE_STATS VLLM_WORKER_MULTIPROC_METHOD CUDA_VISIBLE_DEVICES LMEVAL_LOG_LEVEL TQDM_DISABLE "
    "TOKENIZERS_PARALLELISM DISABLE_MULTIPROC PYTHONUNBUFFERED"
).split()
"""Environment variables that decide where a worker runs and what it prints, but no number."""
_WIDTH: Final = 60

Facts = Mapping[str, str | None]
"""A text for every key; None where nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What two evaluations have not in common, and what nobody can tell."""

    differences: tuple[Difference, ...]
    not_checked: tuple[str, ...]
    """In words of KEYS."""


def check_allowed(allow: Iterable[str]) -> frozenset[str]:
    """Return the keys that `--allow` names, each word perhaps several joined by commas. Raises UsageError."""
    words = [word.strip() for given in allow for word in given.split(",") if word.strip()]
    for word in words:
        if word not in KEYS and word not in GROUPS:
            message = f"--allow {word}: there is no such setting"
            raise UsageError(message, hint=f"the settings are {', '.join((*KEYS, *GROUPS))}")
    return frozenset(key for word in words for key in GROUPS.get(word, (word,)))


def facts_of(evidence: Evidence, task: str) -> Facts:
    """Everything about an evaluation that must be the same on both sides."""
    results, record = evidence.results, evidence.record
    of_task = results.tasks[task]
    settings = None if record is None else record.settings
    model_args = results.model_args if settings is None else settings.model_args
    versions = results.versions if settings is None else settings.versions
    backend = results.backend if settings is None else settings.backend
    facts: dict[str, str | None] = {
        "task-version": of_task.version,
        "task-hash": of_task.hash,
        "shots": _text(of_task.num_fewshot),
        "gen-kwargs": _generation(results, of_task),
        "tokenizer": None if record is None else record.tokenizer_sha256,
        "chat-template": (results.chat_template_sha256 or "none") if results.says_template else None,
        "system-instruction": (results.system_instruction or "none") if results.says_template else None,
        "multiturn": _text(results.fewshot_as_multiturn if settings is None else settings.fewshot_as_multiturn),
        "bos": _bos(model_args.get("add_bos_token") if settings is None else settings.bos),
        "backend": None if backend is None else _BACKENDS.get(backend, backend),
        "dtype": (settings.dtype if settings is not None else None) or results.dtype,
        "max-length": _text(results.max_length if settings is None else settings.max_length),
        "seeds": _pairs(results.seeds if settings is None else settings.seeds),
        "model-args": _pairs({key: value for key, value in model_args.items() if key not in _OTHER_KEYS}) or "none",
        "environment": None if settings is None else _pairs(_speaking(settings.environment)) or "none",
        "batch-size": results.batch_size if settings is None else str(settings.batch_size),
        "hardware": None if record is None else ", ".join(record.gpus) or record.hardware,
    }
    # A version that a record knows to be missing is known; one that plain lm-eval leaves out is not.
    missing = None if settings is None else "none"
    facts.update({key: versions.get(key) or missing for key in VERSIONS})
    if results.backend is None and record is None:
        # A pasted table says nothing of its model.
        facts["model-args"] = _pairs(model_args)
    return facts


def compare_settings(base: Evidence, other: Evidence, task: str, allow: frozenset[str], *, hashed: bool) -> Findings:
    """Compare two evaluations as far as one task goes; `hashed`: items are compared one by one, so need no sum."""
    ours, theirs = facts_of(base, task), facts_of(other, task)
    differences, unknown = [], []
    for key, what in KEYS.items():
        if key not in ours or (key == "task-hash" and hashed) or _is_idle(key, ours, theirs):
            continue
        here, there = ours[key], theirs[key]
        if here is None or there is None:
            unknown.append(what)
        elif here != there:
            named = f"{what} (`{task}`)" if key in PER_TASK else what
            differences.append(_difference(key, named, here, there, allow))
    return Findings(differences=tuple(differences), not_checked=tuple(unknown))


def _is_idle(key: str, ours: Facts, theirs: Facts) -> bool:
    """Whether a setting has no effect: turns without a template, versions of what is on neither side."""
    if key == "multiturn":
        return ours["chat-template"] == theirs["chat-template"] == "none"
    if key in VERSIONS:
        return key == "vllm" and {ours["backend"], theirs["backend"]} == {"hf"}
    return False


def compare_items(task: str, items: PairedItems, allow: frozenset[str]) -> Findings:
    """Compare what was asked, item by item."""
    differences = []
    if items.only_base or items.only_other:
        ours = _numbers(items.only_base, "only here")
        theirs = _numbers(items.only_other, "only here")
        differences.append(_difference("items", f"{KEYS['items']} (`{task}`)", ours, theirs, allow))
    for part, differing in items.differing.items():
        first = differing[0]
        what = f"{part} of {len(differing):,} items of `{task}`"
        ours, theirs = (f"{text[:8]}… (document {first.doc_id})" for text in (first.base, first.other))
        differences.append(_difference(part, what, ours, theirs, allow))
    unknown = tuple(KEYS[part] for part in ("documents", "prompts", "targets")) if items.unhashed else ()
    return Findings(differences=tuple(differences), not_checked=unknown)


def compare_counts(task: str, base: int | None, other: int | None, allow: frozenset[str]) -> Findings:
    """Compare how many items there were, where nothing is known of each."""
    if base is None or other is None:
        return Findings(differences=(), not_checked=(KEYS["items"],))
    if base == other:
        return Findings(differences=(), not_checked=())
    difference = _difference("items", f"{KEYS['items']} (`{task}`)", f"{base:,}", f"{other:,}", allow)
    return Findings(differences=(difference,), not_checked=())


def joined(findings: Iterable[Findings]) -> Findings:
    """All findings as one, each once."""
    every = tuple(findings)
    return Findings(
        differences=tuple(dict.fromkeys(each for found in every for each in found.differences)),
        not_checked=tuple(dict.fromkeys(each for found in every for each in found.not_checked)),
    )


def refuse(contests: Sequence[tuple[str, Findings]], base: str) -> None:
    """Raise NotComparable, naming every difference that is not allowed; `contests`: other side and what was found."""
    lines, keys = [], dict[str, None]()
    for other, found in contests:
        where = "" if len(contests) == 1 else f" in `{other}`"
        for each in found.differences:
            if not each.allowed:
                lines.append(f"{each.what} ({each.base} / {each.other}){where}")
                keys[each.key] = None
    if lines:
        who = f"`{base}` and `{contests[0][0]}`" if len(contests) == 1 else f"`{base}` and the others"
        message = f"{who} cannot be compared; they differ in: {'; '.join(lines)}"
        hint = f"evaluate them alike, or say that it does not matter: --allow {','.join(keys)}"
        raise NotComparable(message, hint=hint)


def _difference(key: str, what: str, base: str, other: str, allow: frozenset[str]) -> Difference:
    allowed = key in allow or key in HARMLESS
    return Difference(key=key, what=what, base=_short(base), other=_short(other), allowed=allowed)


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _numbers(numbers: Sequence[int], what: str) -> str:
    if not numbers:
        return "none"
    few = ", ".join(map(str, numbers[:3]))
    return f"{len(numbers):,} {what} ({few}{', …' if len(numbers) > 3 else ''})"


def _text(value: object) -> str | None:
    match value:
        case None:
            return None
        case bool():
            return "yes" if value else "no"
        case _:
            return str(value)


def _bos(value: object) -> str | None:
    """Whether BOS was asked for; older results hold it as text, and None is the tokenizer's own choice."""
    return _text(value.lower() == "true" if isinstance(value, str) else value)


def _speaking(environment: Mapping[str, str]) -> dict[str, str]:
    quiet = {name: value for name, value in environment.items() if name not in _SILENT_VARIABLES}
    return {name: value for name, value in quiet.items() if not name.startswith("HF_")}


def _generation(results: Results, task: TaskResults) -> str | None:
    texts = [text for text in (task.generation, results.gen_kwargs) if text is not None]
    # Without the task's own settings, as in a pasted table, nobody knows what they were.
    return "; ".join(texts) or (None if task.output_type is None else "none")


def _pairs(values: Mapping[str, object]) -> str | None:
    return ", ".join(f"{key}={_plain(values[key])}" for key in sorted(values)) or None


def _plain(value: object) -> str:
    """A value as JSON writes it; on lm-eval's command line it was a text, and True a word."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text.lower() if text in {"True", "False"} else text
