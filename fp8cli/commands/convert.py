"""`fp8 convert`: an FP8 checkpoint in, the same weights in another dialect out, whole or not at all."""

from dataclasses import dataclass, replace

from fp8cli.core.converting.notes import notes_on_conversion
from fp8cli.core.converting.production import Notify
from fp8cli.core.converting.refusals import decide
from fp8cli.core.converting.relabelling import Conversion, plan_conversion
from fp8cli.core.converting.report import ConversionReport
from fp8cli.core.converting.running import Decision, Opened, Options, carry_out, open_source
from fp8cli.core.converting.targets import target_named
from fp8cli.core.delivering.ordering import DeliveryOptions
from fp8cli.core.fetching.streaming import StreamOptions
from fp8cli.core.quantizing.model_dtype import model_dtype
from fp8cli.core.serving.command_line import serve_note
from fp8cli.core.serving.requirement import channels_would_do, check_requirement, note_fallback, refuse_unsplittable
from fp8cli.errors import UsageError
from fp8cli.formats.destinations import SendOptions
from fp8cli.schemes import FP8_DYNAMIC

__all__ = ["ConversionReport", "ConvertRequest", "DeliveryOptions", "Options", "SendOptions", "StreamOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """What the user asked for."""

    options: Options
    to: str
    scheme: str | None = None
    requantize: bool = False
    tp: int | None = None
    """How many GPUs must be able to share the result; None: any number will do."""
    tp_fallback: bool = False
    """Whether weights may be requantized per channel where their blocks cannot be split over so many."""


def run(request: ConvertRequest, notify: Notify = lambda _: None) -> ConversionReport:
    """Convert a checkpoint. Raises Fp8Error with what is wrong or would be lost; then nothing is published."""
    _refuse_idle_requirement(request)
    target = target_named(request.to)
    opened = open_source(request.options, target.name)
    conversion = decide(opened.coded, target, scheme=request.scheme, requantize=request.requantize)
    decision = _decision(opened, conversion)
    serving = decision.foresee(opened, required=request.tp)
    channels = next((each for each in target.schemes if each == FP8_DYNAMIC), None)
    if request.tp_fallback and channels is not None and channels_would_do(serving):
        fallen = note_fallback(serving, asked=conversion.scheme.name, taken=channels.name)
        instead = decide(opened.coded, target, scheme=channels.name, requantize=True)
        decision = replace(_decision(opened, instead), fallback=fallen)
        serving = decision.foresee(opened, required=request.tp)
    way = f"--requantize --scheme {FP8_DYNAMIC.name} has no blocks to split, but rounds every weight a second time"
    refuse_unsplittable(serving, channels=None if channels is None else way)
    return carry_out(opened, decision, serving, notify)


def _refuse_idle_requirement(request: ConvertRequest) -> None:
    """Raise UsageError for a number of GPUs that is none, and for a fallback that is not allowed to do anything."""
    check_requirement(request.tp, fallback=request.tp_fallback)
    if request.tp_fallback and not request.requantize:
        message = "--tp-fallback rounds every weight a second time, which only --requantize allows"
        raise UsageError(message, hint="add --requantize, or leave --tp-fallback out")


def _decision(opened: Opened, conversion: Conversion) -> Decision:
    coded, target = opened.coded, conversion.target
    plan = plan_conversion(opened.checkpoint, coded, opened.survey, conversion, model_dtype(opened.checkpoint))
    kv_cache = conversion.cache_of(coded)
    exact = not conversion.requantizes
    return Decision(
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
        serve_options=target.serve_options,
    )
