"""`fp8 compare` on the real vLLM (its CPU build): one command evaluates BF16 and FP8 in it and judges."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from fp8cli.commands import quantize

pytestmark = pytest.mark.slow

MODEL = Path(str(files("fp8cli"))) / "bundled" / "stories-llama"
ITEMS = 400


def test_one_command_evaluates_both_checkpoints_in_vllm_and_judges_them(tmp_path: Path) -> None:
    quantize.run(quantize.QuantizeRequest(model=str(MODEL), out=tmp_path / "fp8"))
    words = ["compare", str(MODEL), str(tmp_path / "fp8"), "--tasks", "fp8_stories", "--sample", str(ITEMS)]
    words += ["--backend", "vllm", "--margin", "0.03", "--runs", str(tmp_path / "runs"), "--json"]
    finished = subprocess.run(
        [sys.executable, "-m", "fp8cli", *words],
        capture_output=True,
        text=True,
        check=False,
        # Of the conftest's processes each has one thread; the engine needs no more.
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    comparison = json.loads(finished.stdout)["result"]["comparison"]
    (contest,) = comparison["contests"]
    assert (comparison["base"]["backend"], contest["other"]["backend"]) == ("vllm", "vllm")
    assert comparison["base"]["executed_as"] == "unquantized"
    assert contest["other"]["executed_as"] in {"fp8-kernel", "emulated"}
    (task,) = contest["tasks"]
    assert (task["verdict"], task["items"], task["metrics"][0]["paired"]) == ("pass", ITEMS, True)
    # The last word of a story, as measured on all 2,500 with transformers, and three standard errors of 400 items.
    assert abs(task["metrics"][0]["base"] - 0.7656) < 3 * 0.0212
    fidelity = contest["fidelity"]
    assert fidelity["exact"]
    assert 1e-5 < fidelity["kl_mean"] < 5e-3
    assert fidelity["same_top"] > 0.95
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").glob("*/run_*.json"))]
    for record in records:
        arguments = record["settings"]["model_args"]
        assert arguments["enable_prefix_caching"] is False
        assert arguments["add_bos_token"] is True
        assert record["settings"]["batch_size"] == 256
