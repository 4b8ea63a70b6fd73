"""Jobs for workers on the bundled model: one small task of each kind that lm-eval has, and the worker's own program."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import fp8cli
from fp8cli.worker.bootstrap import BOOTSTRAP
from fp8cli.worker.protocol import FidelityJob, Job, events_file, log_file, write_job

PACKAGE = Path(fp8cli.__file__).parent
MODEL = PACKAGE / "bundled" / "stories-llama"
DOCUMENTS = 40
TASKS = ("story_end", "story_choice", "story_whole", "story_on")

_HEAD = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
metadata: {{version: 1.0}}
"""

_KINDS = {
    "story_end": (
        "loglikelihood",
        """\
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' ' + text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    ),
    "story_choice": (
        "multiple_choice",
        """\
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    ),
    "story_whole": (
        "loglikelihood_rolling",
        """\
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
""",
    ),
    "story_on": (
        "generate_until",
        """\
doc_to_text: "{{text.split(' ')[:-6]|join(' ')}}"
doc_to_target: "{{text.split(' ')[-6:]|join(' ')}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    ),
}


def stories() -> list[str]:
    """Return the first texts that the bundled model was not trained on."""
    lines = (MODEL / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:DOCUMENTS]
    return [json.loads(line)["text"] for line in lines]


def write_tasks(folder: Path) -> Path:
    """Write one task of each kind over the same stories; in a choice, the right ending stands last."""
    folder.mkdir()
    texts = stories()
    endings = [text.rsplit(" ", 1)[-1] for text in texts]
    documents = [
        {"text": text, "choices": ["dog.", endings[index - 1], "small happy tree.", endings[index]], "label": 3}
        for index, text in enumerate(texts)
    ]
    data = folder / "stories.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    for name, (kind, rest) in _KINDS.items():
        text = _HEAD.format(name=name, kind=kind, data=data) + rest
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def hf_args(model: Path = MODEL) -> dict[str, object]:
    """Return arguments of lm-eval's class for transformers."""
    return {
        "pretrained": str(model),
        "dtype": "bfloat16",
        "softmax_dtype": "float32",
        "add_bos_token": True,
        "max_length": 256,
    }


def job(folder: Path, **changes: object) -> Job:
    """Return a job on transformers, over all tasks of a folder."""
    fields: dict[str, object] = {
        "backend": "hf",
        "model_args": hf_args(),
        "tasks": TASKS,
        "include_paths": (str(folder),),
        "include_defaults": False,
        "num_fewshot": None,
        "limit": None,
        "sample": None,
        "sample_seed": 1234,
        "apply_chat_template": False,
        "system_instruction": None,
        "fewshot_as_multiturn": False,
        "batch_size": 8,
        "device": "cpu",
        "gen_kwargs": None,
        "seeds": {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234},
        "confirm_unsafe_code": False,
        "fidelity": None,
    }
    return Job(**{**fields, **changes})  # type: ignore[arg-type]


def fidelity(**changes: object) -> FidelityJob:
    """Return an order for some hundred distributions."""
    fields: dict[str, object] = {"texts": None, "positions": 300, "budget_bytes": 1 << 26, "top_k": 20}
    return FidelityJob(**{**fields, **changes})  # type: ignore[arg-type]


def start(folder: Path, todo: Job, rank: int = 0, **environment: str) -> "subprocess.Popen[bytes]":
    """Start a worker as its parent does."""
    folder.mkdir(exist_ok=True)
    write_job(todo, folder)
    log: IO[bytes]
    with (folder / log_file(rank)).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", BOOTSTRAP, str(PACKAGE), "fp8cli.worker.main", str(folder), str(rank)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def finish(worker: "subprocess.Popen[bytes]") -> int:
    """Wait for a worker while its parent lives, and return its exit code."""
    code = worker.wait()
    if worker.stdin is not None:
        worker.stdin.close()
    return code


def events(folder: Path, rank: int = 0) -> list[dict[str, object]]:
    """Return what a worker said."""
    return [json.loads(line) for line in (folder / events_file(rank)).read_text(encoding="utf-8").splitlines()]


def result(folder: Path) -> Mapping[str, dict[str, object]]:
    """Return what a worker found out, or show the end of its log."""
    path = folder / "result.json"
    assert path.exists(), (folder / log_file(0)).read_text(encoding="utf-8", errors="replace")[-3000:]
    found: Mapping[str, dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    return found
