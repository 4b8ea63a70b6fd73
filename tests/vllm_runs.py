"""What vLLM's engine makes of texts: python -m tests.vllm_runs OUT.pt FOLDERS.json.

FOLDERS.json: [[name, folder], …]. Each is served by an engine of its own, in this process, on the CPU and with FP8
kernels where the build has them. OUT.pt holds by name the log-probabilities that it gives to the whole vocabulary after
each of `TEXTS`, and after one token more, [texts, 2, vocabulary] in float32: the second is computed with what the first
left in the KV cache or in the states. Where the engine refuses, it holds the refusal.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import torch

VOCABULARY = 320
FORCED = 7
"""The token that comes after each text, whatever the model would choose."""
TEXTS = torch.randint(3, VOCABULARY, (16, 12), generator=torch.Generator().manual_seed(1)).tolist()


def main(out: str, folders: str) -> None:
    """Run every model and keep what it says."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="CRITICAL", HF_HUB_OFFLINE="1")
    os.environ.update(VLLM_CPU_OMP_THREADS_BIND="nobind")
    from tests import absent_torchvision  # noqa: F401 - before whatever would import the real one

    # isort: split
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.model_executor.models import registry

    # It would start a process for every model class to look at it; here one process is all there is.
    registry._run_in_subprocess = lambda look: look()
    found: dict[str, torch.Tensor | str] = {}
    for name, folder in json.loads(Path(folders).read_text()):
        try:
            found[name] = run(folder)
        except Exception as error:  # noqa: BLE001 - whatever vLLM raises is its refusal
            if os.environ.get("TRACEBACK"):
                traceback.print_exc()
            found[name] = f"{type(error).__name__}: {error}"[:600]
        cleanup_dist_env_and_memory()
    torch.save(found, out)


def run(folder: str) -> torch.Tensor:
    """Serve a checkpoint and let it go on."""
    from vllm import LLM, SamplingParams

    model = LLM(
        model=folder,
        enforce_eager=True,
        max_model_len=32,
        max_num_seqs=len(TEXTS),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        trust_remote_code=True,
        max_logprobs=-1,
        kv_cache_memory_bytes=64 << 20,
        enable_prefix_caching=False,
        seed=0,
    )
    sampling = SamplingParams(
        max_tokens=2, temperature=0, logprobs=-1, allowed_token_ids=[FORCED], ignore_eos=True, detokenize=False
    )
    answers = model.generate([{"prompt_token_ids": text} for text in TEXTS], sampling, use_tqdm=False)
    return torch.tensor(
        [
            [[position[token].logprob for token in range(VOCABULARY)] for position in answer.outputs[0].logprobs]
            for answer in answers
        ]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
