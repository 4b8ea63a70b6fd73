"""The worker on vLLM's CPU build: the same figures as lm-eval itself on the same settings, for every kind of task."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fp8cli.commands import quantize
from fp8cli.worker.protocol import answers_file
from tests.working import DOCUMENTS, MODEL, PACKAGE, TASKS, fidelity, finish, job, result, start, write_tasks

pytestmark = pytest.mark.slow

ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

PLAIN = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from fp8cli.worker.lm_eval_vllm import answer_for_the_cpu_build
answer_for_the_cpu_build()
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
job, out = json.load(open(sys.argv[2])), sys.argv[3]
found = simple_evaluate(
    model="vllm", model_args=job["model_args"], tasks=job["tasks"], batch_size=job["batch_size"],
    task_manager=TaskManager(include_path=job["include_paths"], include_defaults=False), bootstrap_iters=0,
)
json.dump({key: found[key] for key in ("results", "samples")}, open(out, "w"), default=handle_non_serializable)
sys.stdout.flush()
os._exit(0)
"""
"""lm-eval by itself. Only the name of vLLM's CPU build is explained to it, without which it cannot be imported."""


def test_all_kinds_of_task_on_an_fp8_checkpoint_equal_lm_eval_by_itself(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    quantize.run(quantize.QuantizeRequest(model=str(MODEL), out=tmp_path / "fp8"))
    arguments = {
        "pretrained": str(tmp_path / "fp8"),
        "dtype": "bfloat16",
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "max_model_len": 256,
        "add_bos_token": True,
        "seed": 1234,
        "gpu_memory_utilization": 0.8,
    }
    folder = tmp_path / "job"
    todo = job(
        tasks, backend="vllm", model_args=arguments, batch_size=64, device=None, fidelity=fidelity(positions=100)
    )
    assert finish(start(folder, todo, **ENVIRONMENT)) == 0, result(folder)
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN, str(PACKAGE.parent), str(folder / "job.json"), str(tmp_path / "plain.json")],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "plain.json").exists(), plain.stdout[-2000:] + plain.stderr[-2000:]
    expected = json.loads((tmp_path / "plain.json").read_text(encoding="utf-8"))
    ours = result(folder)
    for task in TASKS:
        rows = (folder / f"samples_{task}.jsonl").read_text(encoding="utf-8").splitlines()
        for row, sample in zip(map(json.loads, rows), expected["samples"][task], strict=True):
            assert row["resps"] == json.loads(json.dumps(_as_saved(sample["resps"])))
            assert (row["doc_id"], row["doc_hash"]) == (sample["doc_id"], sample["doc_hash"])
        values = ours["results"]["results"][task]  # type: ignore[index]
        without_errors = {name: value for name, value in expected["results"][task].items() if "_stderr" not in name}
        assert {name: values[name] for name in without_errors} == without_errors
    facts = ours["facts"]
    assert facts["executed_as"] in {"fp8-kernel", "emulated"}
    assert str(facts["executed_by"]).startswith("CompressedTensorsW8A8Fp8, ")
    assert str(facts["versions"]["vllm"]).endswith("+cpu")  # type: ignore[index]
    # vLLM's class names generations by other options than it was asked with; every answer is in the journal once.
    keys = [json.loads(line)["key"] for line in (folder / answers_file(0)).read_text(encoding="utf-8").splitlines()]
    assert len(set(keys)) == len(keys) == 7 * DOCUMENTS
    logprobs = np.load(folder / "fidelity" / "logprobs.npy")
    assert logprobs.shape == (100, 1280)
    assert np.allclose(np.exp(logprobs.astype(np.float64)).sum(axis=1), 1, atol=1e-5)


def _as_saved(answers: object) -> object:
    """Return answers as lm-eval writes them: every number a text."""
    return [_as_saved(each) for each in answers] if isinstance(answers, list | tuple) else str(answers)
