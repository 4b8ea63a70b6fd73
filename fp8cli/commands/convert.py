"""`fp8 convert`: an FP8 checkpoint in, the same weights in another dialect out, whole or not at all."""

from dataclasses import dataclass

from fp8cli.core.converting.notes import notes_on_conversion
from fp8cli.core.converting.production import Notify
from fp8cli.core.converting.refusals import decide
from fp8cli.core.converting.relabelling import plan_conversion
from fp8cli.core.converting.report import ConversionReport
from fp8cli.core.converting.running import Decision, Options, carry_out, open_source
from fp8cli.core.converting.targets import target_named
from fp8cli.core.fetching.streaming import StreamOptions
from fp8cli.core.quantizing.model_dtype import model_dtype
from fp8cli.core.serving.command_line import serve_note

__all__ = ["ConversionReport", "ConvertRequest", "Options", "StreamOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """What the user asked for."""

    options: Options
    to: str
    scheme: str | None = None
    requantize: bool = False


def run(request: ConvertRequest, notify: Notify = lambda _: None) -> ConversionReport:
    """Convert a checkpoint. Raises Fp8Error with what is wrong or would be lost; then nothing is published."""
    target = target_named(request.to)
    opened = open_source(request.options, target.name)
    coded = opened.coded
    conversion = decide(coded, target, scheme=request.scheme, requantize=request.requantize)
    plan = plan_conversion(opened.checkpoint, coded, opened.survey, conversion, model_dtype(opened.checkpoint))
    kv_cache = conversion.cache_of(coded)
    exact = not conversion.requantizes
    decision = Decision(
        plan=plan,
        dialect=target.called,
        words=conversion.scheme.summary,
        weights="the codes of the source bit for bit, and its scales value for value"
        if exact
        else "rounded a second time: decoded in float32, then quantized anew",
        bit_exact=exact,
        notes=tuple(notes_on_conversion(coded, conversion, plan)),
        quantization=target.block(conversion.scheme, coded.kept, kv_cache),
        side_files=target.side_files(conversion.scheme, coded.kept, kv_cache),
        tags=tuple(dict.fromkeys(("fp8", "vllm", target.name))),
        serve_note=serve_note(
            conversion.scheme,
            kv_cache if target.cache_is_declared else None,
            lowest=target.lowest_capability,
        ),
    )
    return carry_out(opened, decision, notify)
