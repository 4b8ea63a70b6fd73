"""Evaluations for tests: the real command in a process of its own, and records made by hand."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp8cli.formats.run_record import FidelityFacts, ModelFacts, RunRecord, Settings, Speed, TaskFacts

HEAVY = ("torch", "numpy", "pandas", "transformers", "lm_eval", "vllm", "datasets")

_PROGRAM = """
import atexit, json, pathlib, sys
report, heavy, sys.argv = pathlib.Path(sys.argv[1]), sys.argv[2].split(","), ["fp8", *sys.argv[3:]]
atexit.register(lambda: report.write_text(json.dumps([name for name in heavy if name in sys.modules])))
from fp8cli.cli.app import main
sys.exit(main())
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    code: int
    out: str
    err: str
    loaded: list[str]
    """Heavy libraries that the command itself had loaded at its end."""

    @property
    def report(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.out)["result"]
        return result


def words_of_eval(report: Path, *words: str | Path) -> list[str]:
    return [sys.executable, "-c", _PROGRAM, str(report), ",".join(HEAVY), "eval", *map(str, words)]


def fp8_eval(folder: Path, *words: str | Path, **environment: str) -> Run:
    """Run the command in a process of its own; `folder` is for a file of this function."""
    report = folder / "loaded.json"
    finished = subprocess.run(
        words_of_eval(report, *words),
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    return Run(
        code=finished.returncode,
        out=finished.stdout,
        err=finished.stderr,
        loaded=json.loads(report.read_text("utf-8")),
    )


def a_settings(**changes: Any) -> Settings:
    fields: dict[str, Any] = {
        "backend": "hf",
        "dtype": "bfloat16",
        "batch_size": 16,
        "max_length": 512,
        "bos": True,
        "num_fewshot": None,
        "limit": None,
        "sample": None,
        "sample_seed": 1234,
        "chat_template": False,
        "system_instruction": None,
        "fewshot_as_multiturn": False,
        "gen_kwargs": None,
        "seeds": {"random": 0},
        "model_args": {"softmax_dtype": "float32", "sizes": [1, 2]},
        "environment": {},
        "versions": {"lm_eval": "0.4.13", "transformers": "5.17.0", "torch": "2.13.0", "vllm": None},
        "safe": {"softmax_dtype": "float32: rounding to bfloat16 moves log-probabilities more than FP8 does"},
        "python": "/opt/python",
    }
    return Settings(**fields | changes)


def a_record(**changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "id": "2026-11-24T10-00-00.000000",
        "label": "base",
        "created": "2026-11-24T10:00:00+00:00",
        "model": ModelFacts(
            name="stories",
            path="/models/stories",
            revision=None,
            fingerprint="f" * 64,
            fingerprint_of="samples",
            stamp="5" * 64,
            bytes_on_disk=1_640_192,
            dtype="bfloat16",
            quantization=None,
        ),
        "tokenizer_sha256": "7" * 64,
        "chat_template_sha256": None,
        "settings": a_settings(),
        "executed_as": "unquantized",
        "executed_by": None,
        "tasks": {
            "fp8_stories": TaskFacts(
                key="k", version="1.0", hash="h", num_fewshot=0, items=40, samples="samples_fp8_stories.jsonl"
            )
        },
        "groups": {},
        "asked_tasks": ("fp8_stories",),
        "speed": Speed(
            seconds=12.5,
            loading_seconds=4.0,
            scoring_seconds=2.0,
            tokens=1981,
            tokens_per_second=990.5,
            peak_memory_bytes=2**29,
            peak_gpu_memory_bytes=None,
        ),
        "hardware": "a processor, 2 cores",
        "gpus": (),
        "fidelity": FidelityFacts(
            folder="fidelity_x",
            kind="all",
            positions=1,
            documents=1,
            vocabulary=2,
            tokens_sha256="t",
            of="tasks",
            key="q",
        ),
        "results": "results_2026-11-24T10-00-00.000000.json",
        "resumed": False,
    }
    return RunRecord(**fields | changes)
