"""KEY=VALUE for lm-eval's model class: parsed and typed as lm-eval's own `--model_args` would be."""

import math
import re
from typing import Final

from fp8cli.errors import UsageError

RESERVED: Final = {
    "pretrained": "name the checkpoint itself: fp8 eval CKPT",
    "batch_size": "use --batch-size",
    "max_batch_size": "use --batch-size: automatic batches differ from run to run",
    "device": "use --device",
    "tensor_parallel_size": "use --tensor-parallel",
    "pipeline_parallel_size": "use --pipeline-parallel",
    "data_parallel_size": "use --data-parallel",
    "base_url": "use --server",
    "dtype": "use --dtype",
    "max_length": "use --max-length",
    "max_model_len": "use --max-length",
    "gpu_memory_utilization": "use --gpu-memory",
}
"""Arguments that an option of this tool sets: two ways to say one thing could contradict each other."""

EXECUTOR: Final = "distributed_executor_backend"
"""vLLM's argument: who starts the processes of one engine."""

_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def parse_model_arg(text: str) -> tuple[str, object]:
    """Return name and typed value of one KEY=VALUE. Raises UsageError for anything else."""
    name, sign, value = text.partition("=")
    name = name.strip()
    if not sign or not _NAME.fullmatch(name):
        raise UsageError(f"--model-arg takes KEY=VALUE, not `{text}`", hint="--model-arg trust_remote_code=true")
    if name in RESERVED:
        raise UsageError(f"--model-arg {name} would contradict an option", hint=RESERVED[name])
    given = typed(value)
    if isinstance(given, float) and not math.isfinite(given):
        raise UsageError(
            f"--model-arg {name} is {value}, which is no number", hint="quote it if it is a text: '\"nan\"'"
        )
    return name, given


def typed(text: str) -> object:
    """Return what lm-eval's `handle_arg_string` (0.4.13) makes of a value: bool, None, int, float, or the text."""
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    words: dict[str, object] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            # Unlike Python, lm-eval takes no `_` in a whole number, and float() takes what it takes.
            if kind is int and not re.fullmatch(r"[+-]?\d+", text, re.ASCII):
                continue
            return kind(text)
        except ValueError:
            continue
    return text
