"""Load a checkpoint in vLLM and print what it writes: `python scripts/generate.py MODEL [--prompt TEXT]`.

This is the proof that matters to a user: not that a file looks right, but that vLLM serves it. Without a GPU it
runs on vLLM's CPU build. Below the text it names the class that vLLM chose to multiply the FP8 weights.
"""

import argparse
import logging
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DEFAULT_PROMPT = "Once upon a time"

VLLM_SETTINGS = {
    "HF_HUB_OFFLINE": "1",  # the model is a folder: nothing here needs the network
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process starts twice as fast as an engine in a second one
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, plenty for one prompt
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # the CPU build warns on every start about the memory node it binds to
    "VLLM_NO_USAGE_STATS": "1",
}
"""Read by vLLM and torch when they are imported; a value that is already in the environment wins."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line; a model that is not a folder is refused before vLLM's slow start."""
    parser = argparse.ArgumentParser(description="Load a checkpoint in vLLM and print what it writes.")
    parser.add_argument("model", type=Path, help="folder of the checkpoint")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT, help="text to go on from (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens to write (default: %(default)s)")
    arguments = parser.parse_args()
    if not (arguments.model / "config.json").is_file():
        parser.error(f"`{arguments.model}` has no config.json; name the folder of a checkpoint")
    return arguments


def count_kernels(model: "torch.nn.Module") -> Counter[str]:
    """Count the FP8 layers of a loaded model by the scheme and the kernel that vLLM picked for them."""
    kernels: Counter[str] = Counter()
    for module in model.modules():
        scheme = getattr(module, "scheme", None)
        kernel = getattr(scheme, "fp8_linear", None)
        if kernel is not None:
            kernels[f"{type(scheme).__name__}, {type(kernel).__name__}"] += 1
    return kernels


def main() -> None:
    """Load the model, write, and say what ran."""
    arguments = parse_arguments()
    for name, value in VLLM_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(logging.ERROR)  # its first warnings come before it reads its own setting
    warnings.simplefilter("ignore", FutureWarning)  # from inside vLLM, and not for whoever runs this

    from vllm import LLM, SamplingParams  # noqa: PLC0415 - it reads the settings above when it is imported

    engine = LLM(model=str(arguments.model), enforce_eager=True, max_model_len=256, use_tqdm_on_load=False)
    sampling = SamplingParams(temperature=0, max_tokens=arguments.max_tokens)
    (answer,) = engine.generate([arguments.prompt], sampling, use_tqdm=False)
    (kernels,) = engine.apply_model(count_kernels)
    print(f"{arguments.prompt}{answer.outputs[0].text}")
    chosen = "; ".join(f"{layers} layers: {kernel}" for kernel, layers in sorted(kernels.items()))
    print(f"[vLLM on FP8 weights: {chosen or 'no FP8 layers in this model'}]")


if __name__ == "__main__":
    main()
