"""Records of runs beside hand-made results of lm-eval: a run as `fp8 eval` leaves it, without the minutes it takes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fp8cli.formats.run_record import ModelFacts, RunRecord, Settings, Speed, TaskFacts, write_record
from tests.lm_eval_files import DATE, write_results

MODEL = ModelFacts(
    name="org/model",
    path="/models/model",
    revision=None,
    fingerprint="f" * 64,
    fingerprint_of="samples",
    stamp="5" * 64,
    bytes_on_disk=2000,
    dtype="bfloat16",
    quantization=None,
)
SETTINGS = Settings(
    backend="hf",
    dtype="bfloat16",
    batch_size=8,
    max_length=512,
    bos=True,
    num_fewshot=None,
    limit=None,
    sample=None,
    sample_seed=1234,
    chat_template=False,
    system_instruction=None,
    fewshot_as_multiturn=False,
    gen_kwargs=None,
    seeds={"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234},
    model_args={"dtype": "bfloat16", "softmax_dtype": "float32", "add_bos_token": True, "max_length": 512},
    environment={},
    versions={
        "lm_eval": "0.4.13",
        "transformers": "5.17.0",
        "torch": "2.13.0",
        "vllm": None,
        "compressed-tensors": "0.19.0",
        "datasets": "4.0.0",
    },
    safe={},
    python="/usr/bin/python",
)
SPEED = Speed(
    seconds=10.0,
    loading_seconds=1.0,
    scoring_seconds=5.0,
    tokens=1000,
    tokens_per_second=200.0,
    peak_memory_bytes=10**9,
    peak_gpu_memory_bytes=None,
)


def write_run(
    runs: Path,
    label: str,
    tasks: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    model: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    results: Mapping[str, object] | None = None,
    **changes: Any,
) -> RunRecord:
    """Write a run: results, samples and record. Keyword arguments change fields of the record and of its parts."""
    folder = runs / label
    path = write_results(folder, tasks, **(results or {}))
    fields: dict[str, Any] = {
        "id": DATE,
        "label": label,
        "created": "2026-01-02T03:04:05+00:00",
        "model": dataclasses.replace(MODEL, **(model or {"fingerprint": label.ljust(64, "0")})),
        "tokenizer_sha256": "7" * 64,
        "chat_template_sha256": None,
        "settings": dataclasses.replace(SETTINGS, **(settings or {})),
        "executed_as": "unquantized",
        "executed_by": None,
        "tasks": {
            task: TaskFacts(
                key="k" * 64,
                version="1.0",
                hash=None,
                num_fewshot=0,
                items=len(rows),
                samples=f"samples_{task}_{DATE}.jsonl",
            )
            for task, rows in tasks.items()
        },
        "groups": {},
        "asked_tasks": tuple(tasks),
        "speed": SPEED,
        "hardware": "a CPU, 2 cores",
        "gpus": (),
        "fidelity": None,
        "results": path.name,
        "resumed": False,
        "fp8_version": "0.1.0",
        **changes,
    }
    record = RunRecord(**fields)
    write_record(record, folder)
    return record
