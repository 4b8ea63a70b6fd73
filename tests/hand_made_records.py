"""Records of runs made by hand."""

from typing import Any

from fp8cli.formats.run_record import FidelityFacts, ModelFacts, RunRecord, Settings, Speed, TaskFacts


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
