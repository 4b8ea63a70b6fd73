"""`fp8 dequantize`: an FP8 checkpoint in, the same weights in 16 or 32 bits out, whole or not at all."""

from dataclasses import dataclass

from fp8cli.core.converting.dequantizing import plan_dequantization
from fp8cli.core.converting.notes import notes_on_dequantization
from fp8cli.core.converting.production import Notify
from fp8cli.core.converting.report import ConversionReport
from fp8cli.core.converting.running import Decision, Options, carry_out, open_source
from fp8cli.core.delivering.ordering import DeliveryOptions
from fp8cli.core.fetching.streaming import StreamOptions
from fp8cli.core.quantizing.model_dtype import DTYPE_CHOICES, model_dtype
from fp8cli.errors import UsageError
from fp8cli.formats.destinations import SendOptions
from fp8cli.formats.safetensors import DTYPES

__all__ = ["ConversionReport", "DeliveryOptions", "DequantizeRequest", "Options", "SendOptions", "StreamOptions", "run"]

_SHORT = {"bfloat16": "BF16", "float16": "FP16", "float32": "FP32", "auto": "dequantized"}


@dataclass(frozen=True, kw_only=True)
class DequantizeRequest:
    """What the user asked for."""

    options: Options
    dtype: str = "auto"


def run(request: DequantizeRequest, notify: Notify = lambda _: None) -> ConversionReport:
    """Dequantize a checkpoint. Raises Fp8Error with what is wrong; then nothing is published."""
    if request.dtype not in DTYPE_CHOICES:
        message = f"`{request.dtype}` is no dtype that codes can become"
        raise UsageError(message, hint=f"--dtype takes one of {', '.join(DTYPE_CHOICES)}")
    opened = open_source(request.options, _SHORT[request.dtype])
    plan = plan_dequantization(opened.checkpoint, opened.coded, model_dtype(opened.checkpoint, request.dtype))
    dtype = DTYPES[plan.dtype].torch_name
    decision = Decision(
        plan=plan,
        dialect=dtype,
        words="nothing is quantized",
        weights=f"each code × its scale in float32, rounded once to {dtype}; what quantizing took away is not back",
        bit_exact=False,
        notes=tuple(notes_on_dequantization(opened.coded)),
        quantization=None,
        side_files={},
        tags=(),
        serve_note="Nothing is quantized any more: every GPU that vLLM supports serves it, if it fits.",
    )
    return carry_out(opened, decision, decision.foresee(opened), notify)
