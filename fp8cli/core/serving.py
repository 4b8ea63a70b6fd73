"""What a result needs to be served: vLLM's command line and what each GPU generation does with the scheme."""

import shlex

from fp8cli.core.plan import Plan
from fp8cli.schemes import BLOCK, Scheme


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


def block_shape_warnings(plan: Plan) -> tuple[str, ...]:
    """Name the weights whose blocks vLLM cannot split over tensor-parallel ranks of any size.

    vLLM wants each rank's part of a block-quantized weight to be a multiple of 128; a weight that is none to begin
    with runs on a single GPU at best.
    """
    if plan.scheme.weights != "block":
        return ()
    odd = [
        tensor.name
        for tensor in plan.tensors
        if tensor.action == "quantize" and any(size % BLOCK for size in tensor.source.shape)
    ]
    if not odd:
        return ()
    warning = (
        f"{len(odd)} weights have sizes that are not multiples of {BLOCK} (first: `{odd[0]}`): vLLM's block kernels "
        "may refuse them, and tensor parallelism will; FP8_DYNAMIC has no such limit"
    )
    return (warning,)
