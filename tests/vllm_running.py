"""What vLLM's CPU build computes with checkpoints: python -m tests.vllm_running OUT JOBS.json.

JOBS.json: {"tokens": [[id, …], …], "models": [[name, kind, folder], …]}, kind being what vLLM is asked for: `generate`,
`embed` or `classify`. Each folder is served by a real engine of its own, one after the other in this process: its
scheduler, its cache, its kernels for attention and for FP8. OUT/values.safetensors holds by name, in float32, what
came back: the log probabilities of two tokens in a row for `generate` (the second reads the cache the first has left)
[sequences, 2, vocabulary], or the vectors [sequences, width]. OUT/refused.json holds vLLM's words about the others.

Two things stand in for what this machine has not got or a test has not the time for. torchvision, which processors of
images import: every prompt is text, and no picture is allowed. The collection of garbage, which vLLM asks for eight
times per engine: with all that is imported here it takes longer than everything else, and the models are tiny.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="CRITICAL",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    HF_HUB_OFFLINE="1",
)

from tests import absent_torchvision  # noqa: F401 - before whatever would import the real one

# isort: split
import torch
from safetensors.torch import save_file
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.models import registry

# It would start a process for every model class to look at it; here one process is all there is.
registry._run_in_subprocess = lambda look: look()
gc.collect = lambda *_: 0

FORCED = 7
"""The token that every sequence goes on with, so that two runs stay comparable after it."""


def main(out: str, jobs: str) -> None:
    """Run every model and write down what it computed, or why it does not run."""
    asked = json.loads(Path(jobs).read_text())
    values: dict[str, torch.Tensor] = {}
    refused: dict[str, str] = {}
    for name, kind, folder in asked["models"]:
        try:
            values[name] = answer(kind, folder, asked["tokens"])
        except Exception as error:  # noqa: BLE001 - whatever vLLM raises is its refusal
            refused[name] = f"{type(error).__name__}: {error}"[:600]
        cleanup_dist_env_and_memory()
    save_file(values, Path(out) / "values.safetensors")
    (Path(out) / "refused.json").write_text(json.dumps(refused, indent=1))


def answer(kind: str, folder: str, tokens: list[list[int]]) -> torch.Tensor:
    """Start an engine and ask it about all sequences at once."""
    config = json.loads((Path(folder) / "config.json").read_text())
    without_pictures: dict[str, Any] = (
        {"limit_mm_per_prompt": {"image": 0, "video": 0}} if "vision_config" in config else {}
    )
    engine = LLM(
        model=folder,
        enforce_eager=True,
        max_model_len=32,
        max_num_seqs=len(tokens),
        kv_cache_memory_bytes=64 << 20,
        enable_prefix_caching=False,
        max_logprobs=-1,
        dtype="bfloat16",
        trust_remote_code=True,
        **without_pictures,
    )
    prompts = [{"prompt_token_ids": sequence} for sequence in tokens]
    if kind == "embed":
        return torch.tensor([each.outputs.embedding for each in engine.embed(prompts, use_tqdm=False)])
    if kind == "classify":
        return torch.tensor([each.outputs.probs for each in engine.classify(prompts, use_tqdm=False)])
    sampling = SamplingParams(
        max_tokens=2, logprobs=-1, allowed_token_ids=[FORCED], ignore_eos=True, detokenize=False, temperature=0
    )
    answers = engine.generate(prompts, sampling, use_tqdm=False)
    return torch.tensor(
        [
            [[step[token].logprob for token in range(vocabulary(config))] for step in each.outputs[0].logprobs]
            for each in answers
        ]
    )


def vocabulary(config: dict[str, Any]) -> int:
    """Return the number of tokens, which models of pictures keep in a config within theirs."""
    return int(config.get("text_config", config)["vocab_size"])


if __name__ == "__main__":
    main(*sys.argv[1:])
