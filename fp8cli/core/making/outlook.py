"""What serving the result of a run takes: foreseen from its plan, and told again of what came of it."""

from pathlib import Path
from typing import Final

from fp8cli.core.compressing.whole import Whole
from fp8cli.core.doctor.environment import Check
from fp8cli.core.making.production import Produced
from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.quantizing.outlook import foresee_serving
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.serving.preflight import Preflight
from fp8cli.core.serving.requirement import Fallback, channels_would_do, gpus, note_fallback, refuse_unsplittable
from fp8cli.errors import CannotRun
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.quant_config import quantization_config
from fp8cli.schemes import FP8_DYNAMIC

CHANNELS: Final = f"--scheme {FP8_DYNAMIC.name}, which --tp-fallback takes by itself, has no blocks to split"


def foresee_plan(
    plan: Plan, checkpoint: Checkpoint, choice: Choice, out: Path, *, required: int | None, fallback: bool = False
) -> Preflight | None:
    """Judge what a plan makes; None for a recipe, of which that is not known.

    required: GPUs that it must run on. fallback: whether one that cannot, and could with scales per channel, is
    returned all the same, because another plan is to be made. Else CannotRun is raised for it.
    """
    if choice.recipe is not None:
        return None
    quantization = quantization_config(plan.scheme, plan.ignored_modules, kv_cache=plan.kv_cache)
    serving = foresee_serving(plan, checkpoint.config, quantization, path=str(out), required=required)
    if not (fallback and channels_would_do(serving)):
        refuse_unsplittable(serving, channels=CHANNELS)
    return serving


def refuse_unsplittable_whole(whole: Whole, checkpoint: Checkpoint, out: Path, *, required: int | None) -> None:
    """Raise CannotRun where vLLM cannot split what llm-compressor made as required: of a recipe it is known then."""
    if required is None:
        return
    serving = foresee_serving(whole.plan, checkpoint.config, whole.quantization, path=str(out), required=required)
    try:
        refuse_unsplittable(serving, channels=None)
    except CannotRun as refusal:
        kept = "what llm-compressor made is kept, and the same command without --tp goes on from it"
        raise CannotRun(refusal.message, hint=f"{refusal.hint}; {kept}") from None


def check_later(choice: Choice, required: int | None) -> tuple[Check, ...]:
    """Say that the number of GPUs is not judged yet, where it cannot be."""
    if choice.recipe is None or required is None:
        return ()
    found = "what a recipe makes is not known before it has run; it is judged then, before it is published"
    wanted = f"a result that vLLM can split over {gpus(required)}"
    return (Check(name="tensor parallel", status="not checked", found=found, wanted=wanted),)


def fall_back(serving: Preflight, choice: Choice) -> Fallback:
    """Note that FP8_DYNAMIC takes the place of the choice, which cannot be split as required."""
    return note_fallback(serving, asked=choice.name, taken=FP8_DYNAMIC.name)


def foresee_result(
    done: Produced, checkpoint: Checkpoint, out: Path, foreseen: Preflight | None, *, required: int | None
) -> Preflight | None:
    """Judge what was made. It differs from what was `foreseen` where llm-compressor wrote the quantization_config."""
    if done.whole is None:
        return foreseen
    return foresee_serving(done.plan, checkpoint.config, done.whole.quantization, path=str(out), required=required)
