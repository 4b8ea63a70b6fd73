"""Calibrated checkpoints in vLLM: its CPU build runs the FP8 cache."""

import math
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.calibrated import MODEL, plan_of, write
from tests.test_serving import LARGEST_MEAN_SHIFT, LARGEST_SHIFT, in_vllm, prompts
from tests.test_static_oneshot import reference, scales_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules"),
]


def with_tokenizer(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(MODEL / name, folder / name)
    return folder


def test_vllm_reads_the_scales_of_the_cache_and_says_what_the_original_says(tmp_path: Path) -> None:
    scales = scales_of(reference(MODEL, tmp_path / "theirs", None, "tensor", ["lm_head"]))
    out = tmp_path / "out"
    write(MODEL, out, plan_of(MODEL, "FP8_DYNAMIC", "tensor"), scales)
    answers, log = in_vllm(with_tokenizer(out), tmp_path)
    # One GiB holds twice the tokens that it holds of a cache in BF16: 3 layers × 4 heads × 32 × 2 numbers of a byte.
    assert f"CPU KV cache size: {2**30 // 768 // 128 * 128:,} tokens" in log
    batch = AutoTokenizer.from_pretrained(MODEL)(prompts(), return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)(**batch).logits
    chosen = batch["input_ids"][:, 1:].unsqueeze(-1)
    base = logits.float().log_softmax(-1)[:, :-1].gather(-1, chosen).squeeze(-1)
    lengths = batch["attention_mask"].sum(1).tolist()
    shifts = [
        abs(ours - theirs)
        for answer, row, length in zip(answers, base.tolist(), lengths, strict=True)
        for ours, theirs in zip(answer["prompt_logprobs"], row[: length - 1], strict=True)
    ]
    assert all(math.isfinite(shift) for shift in shifts)
    # With scales a sixty-fourth of these it is 5.0 on average: keys and values then saturate.
    assert 0 < statistics.mean(shifts) < LARGEST_MEAN_SHIFT
    assert max(shifts) < LARGEST_SHIFT
