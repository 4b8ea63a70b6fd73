"""What a result needs to be served: vLLM's command line and what each GPU generation does with the scheme."""

import shlex

from fp8cli.schemes import Scheme


def serve_command(path: str, *options: str) -> str:
    """Return the line that serves a checkpoint with vLLM, with further words of the command line."""
    return shlex.join(["vllm", "serve", path, *options])


def serve_note(scheme: Scheme) -> str:
    """Say in a sentence which GPUs run the scheme natively, and what the others do."""
    major, minor = scheme.native_capability
    return (
        f"GPUs of compute capability {major}.{minor} and later compute in FP8; those from 7.5 keep the weights in FP8 "
        "and compute in 16 bits; older ones cannot load it (vLLM 0.32)."
    )
