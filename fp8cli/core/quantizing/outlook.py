"""What a plan means for whoever serves its result, said before a byte is written."""

from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.serving.command_line import serve_note
from fp8cli.schemes import BLOCK

_MIXED = (
    "Modules are quantized in more than one way, as config.json has it: `fp8 inspect` says what each GPU makes of it."
)


def plan_note(plan: Plan) -> str:
    """Say which GPUs run what a plan makes, and how; and who cannot load it."""
    if plan.scheme is None and "quantize" in plan.counts:
        return _MIXED
    return " ".join((serve_note(plan.scheme, plan.kv_cache), *plan.notes))


def block_shape_warnings(plan: Plan) -> tuple[str, ...]:
    """Name the weights whose blocks vLLM cannot split over tensor-parallel ranks of any size.

    vLLM wants each rank's part of a block-quantized weight to be a multiple of 128; a weight that is none to begin
    with runs on a single GPU at best.
    """
    if plan.scheme is None or plan.scheme.weights != "block":
        return ()
    odd = [
        tensor.name
        for tensor in plan.tensors
        if tensor.holds_codes and any(size % BLOCK for size in tensor.source.shape)
    ]
    if not odd:
        return ()
    warning = (
        f"{len(odd)} weights have sizes that are not multiples of {BLOCK} (first: `{odd[0]}`): vLLM's block kernels "
        "may refuse them, and tensor parallelism will; FP8_DYNAMIC has no such limit"
    )
    return (warning,)
