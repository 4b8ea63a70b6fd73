"""The proof that counts: real vLLM (its CPU build) and real transformers load what `fp8 quantize` made."""

import json
import math
import statistics
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fp8cli.commands.quantize import QuantizeRequest, run

pytestmark = pytest.mark.slow

MODEL = Path(str(files("fp8cli"))) / "bundled" / "stories-llama"
ROOT = Path(__file__).parent.parent
STORIES = 24

# E4M3 keeps 3 bits of mantissa: a relative error of at most 2⁻⁴ per weight and per activation, about 2.6 % rms, of
# random sign. Through this model's layers that moves a token's log-probability by a hundredth or two; a wrong scale,
# a swapped row or a lost tensor moves it by whole units. Measured on 2026-11-24 with vLLM 0.32.0 (CPU build): 0.014 on
# average, 0.25 at most, and the same first token in 24 of 24 stories.
LARGEST_MEAN_SHIFT = 0.04
LARGEST_SHIFT = 1.0
SMALLEST_AGREEMENT = 0.9


def prompts() -> list[str]:
    lines = (MODEL / "heldout.jsonl").read_text().splitlines()[:STORIES]
    return [json.loads(line)["text"].rsplit(" ", 1)[0] for line in lines]


def in_vllm(model: Path, folder: Path) -> tuple[list[dict], str]:
    """Run the worker; return its answers and vLLM's log."""
    (folder / "prompts.json").write_text(json.dumps(prompts()))
    words = [str(model), str(folder / "prompts.json"), str(folder / "answers.json")]
    command = [sys.executable, "-m", "tests.vllm_worker", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return json.loads((folder / "answers.json").read_text()), result.stdout + result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def quantized(folder: Path) -> Path:
    return run(QuantizeRequest(model=str(MODEL), out=folder / "stories-FP8-dynamic")).out


def test_vllm_serves_the_result_and_says_what_the_original_says(folder: Path, quantized: Path) -> None:
    original, _ = in_vllm(MODEL, folder)
    answers, log = in_vllm(quantized, folder)
    assert "CompressedTensorsW8A8Fp8" in log, "vLLM names the scheme it runs"
    shifts = [
        abs(ours - theirs)
        for answer, base in zip(answers, original, strict=True)
        for ours, theirs in zip(answer["prompt_logprobs"], base["prompt_logprobs"], strict=True)
    ]
    assert all(math.isfinite(shift) for shift in shifts)
    assert 0 < statistics.mean(shifts) < LARGEST_MEAN_SHIFT
    assert max(shifts) < LARGEST_SHIFT
    same = sum(answer["tokens"][0] == base["tokens"][0] for answer, base in zip(answers, original, strict=True))
    assert same / len(answers) >= SMALLEST_AGREEMENT
    assert all(answer["text"].strip() for answer in answers)


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_transformers_loads_the_result_and_its_logits_stay_close(folder: Path, scheme: str) -> None:
    """vLLM's CPU build has no block kernels without AMX, so this is the check of FP8_BLOCK."""
    out = run(QuantizeRequest(model=str(MODEL), out=folder / scheme, scheme=scheme)).out
    tokenizer = AutoTokenizer.from_pretrained(out)
    batch = tokenizer(prompts(), return_tensors="pt", padding=True)
    with torch.no_grad():
        scores = [
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)(**batch).logits.float().log_softmax(-1)
            for model in (MODEL, out)
        ]
    chosen = batch["input_ids"][:, 1:].unsqueeze(-1)
    base, ours = (score[:, :-1].gather(-1, chosen)[batch["attention_mask"][:, 1:].bool()] for score in scores)
    shifts = (ours - base).abs()
    assert 0 < shifts.mean() < LARGEST_MEAN_SHIFT
    assert shifts.max() < LARGEST_SHIFT
