"""From a checkpoint's headers and a choice to the plan, and to whether this machine will do for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fp8cli.core.compressing.result_plan import UNDECLARED, plan_result
from fp8cli.core.doctor import environment
from fp8cli.core.model.selection import Selection, rules_for, select
from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.quantizing.model_dtype import model_dtype
from fp8cli.core.quantizing.plan import Plan, build_plan
from fp8cli.errors import BadInput, CannotRun
from fp8cli.formats.checkpoint import Checkpoint
from fp8cli.formats.quant_methods import recognise
from fp8cli.formats.staging import bytes_on_disk, partial_folder


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a plan is made for."""

    model: str
    """The source as the user named it."""
    choice: Choice
    dtype: str
    """As --dtype has it."""
    targets: Sequence[str]
    ignore: Sequence[str]
    default_ignore: bool


def plan_checkpoint(checkpoint: Checkpoint, wish: Wish) -> tuple[Plan, Selection]:
    """Decide what happens to every tensor. With a recipe the plan is that of the source: what comes of it is not known.

    Raises BadInput for a checkpoint that is quantized already, and as `select` and `build_plan` do.
    """
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    tags = ((name, tag) for name, (tag, _) in tensors.items())
    quantized = recognise(checkpoint.config, checkpoint.side_files, tags)
    if quantized is not None:
        message = f"`{wish.model}` is quantized already: {quantized}"
        raise BadInput(message, hint="start from the original BF16 or FP16 checkpoint")
    selection = select(
        checkpoint.config,
        tensors,
        rules=rules_for(checkpoint.config, tensors),
        targets=wish.targets,
        ignore=wish.ignore,
        default_ignore=wish.default_ignore,
    )
    dtype, choice = model_dtype(checkpoint, wish.dtype), wish.choice
    if choice.recipe is not None:
        return plan_result(checkpoint, selection, {}, UNDECLARED, dtype), selection
    return build_plan(checkpoint, choice.scheme, selection, dtype, kv_cache=choice.kv_cache), selection


def check_place(
    out: Path,
    plan: Plan,
    *,
    copies: int,
    before_bytes: int,
    memory_bytes: int,
    stays_bytes: int | None = None,
    window_bytes: int = 0,
) -> tuple[environment.Check, ...]:
    """Judge disk and memory for a plan.

    copies: of the output, that lie on the disk at once before it is published. before_bytes: of files that are gone
    when the output is written. stays_bytes: of the output, that lie here at once while it is sent elsewhere.
    window_bytes: of the source, that lie beside it meanwhile.
    """
    written = copies * plan.bytes_written if stays_bytes is None else stays_bytes
    return environment.check_quantize(
        out,
        bytes_to_write=max(written, before_bytes),
        window_bytes=window_bytes,
        bytes_already=bytes_on_disk(partial_folder(out)),
        memory_cap_bytes=memory_bytes,
        scheme=plan.scheme,
    )


def refuse_failed(checks: Sequence[environment.Check]) -> None:
    """Raise CannotRun with the first check that failed."""
    failed = next((check for check in checks if check.status == "failed"), None)
    if failed is not None:
        message = f"{failed.name}: {failed.found}, wanted {failed.wanted}"
        raise CannotRun(message, hint=failed.fix)
