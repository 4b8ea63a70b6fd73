"""What is known of serving a checkpoint before any GPU is chosen: from its headers and its config.json alone.

Over how many GPUs vLLM can split it, which release of vLLM that takes, and what each generation of GPUs does with it.
Of a plan the same is said as of the checkpoint that comes of it, because both are judged here.
"""

from dataclasses import dataclass, replace

from fp8cli.core.model.attention import Attention, read_attention, text_config
from fp8cli.core.serving.gpu_models import GpuModel
from fp8cli.core.serving.gpu_needs import Needs, OnGeneration, needs_on
from fp8cli.core.serving.modes import GENERATIONS
from fp8cli.core.serving.releases import VllmNeed, need_of
from fp8cli.core.serving.serving_report import Required, Served
from fp8cli.core.serving.tensor_parallel import SIZES, TensorParallel, judge_sizes
from fp8cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What serving a checkpoint takes."""

    parallel: tuple[TensorParallel, ...]
    """By number of GPUs."""
    not_judged: tuple[str, ...]
    """Patterns of weights whose split over GPUs is not known."""
    required: Required | None
    """The number of GPUs that was asked for; None: none was."""
    vllm: VllmNeed
    generations: tuple[OnGeneration, ...]
    """NVIDIA's GPUs, oldest first."""


def check_size(size: int | None) -> None:
    """Raise UsageError for what is no number of GPUs. None: none is asked for."""
    if size is not None and size < 1:
        message = f"--tp {size} is no number of GPUs"
        raise UsageError(message, hint="give how many GPUs are to share the work, such as --tp 4")


def examine(served: Served, *, required: int | None = None) -> Preflight:
    """Judge a checkpoint. required: a number of GPUs that it must run on."""
    attention = read_attention(served.config)
    sizes = tuple(sorted({*SIZES, *((required,) if required is not None else ())}))
    parallel, not_judged = _judge(served, attention, served.block, sizes)
    return Preflight(
        parallel=parallel,
        not_judged=not_judged,
        required=None if required is None else _required(served, attention, parallel, not_judged, required),
        vllm=need_of(
            method=served.method,
            kind=served.kind,
            fp8=bool(served.quantized),
            experts=has_experts(served),
            blocks=served.block is not None,
            kv_cache_fp8=served.kv_cache_fp8,
            head_scales=served.head_scales,
            architecture=_architecture(served),
        ),
        generations=tuple(
            OnGeneration(
                generation=each,
                needs=needs_of(GpuModel(name=each.name, memory_bytes=None, capability=each.capability), served),
            )
            for each in GENERATIONS
        ),
    )


def needs_of(gpu: GpuModel, served: Served) -> Needs:
    """Tell what one model of GPU does with a checkpoint."""
    return needs_on(
        gpu,
        kind=served.kind,
        fp8=bool(served.quantized),
        experts=has_experts(served),
        fp8_cache=served.kv_cache_fp8,
        head_scales=served.head_scales,
        model_type=str(text_config(served.config or {}).get("model_type")),
    )


def has_experts(served: Served) -> bool:
    """Tell whether experts of a mixture are in FP8."""
    return any(".experts." in name for name, _ in served.quantized)


def _required(
    served: Served,
    attention: Attention,
    parallel: tuple[TensorParallel, ...],
    not_judged: tuple[str, ...],
    size: int,
) -> Required:
    split = next(each for each in parallel if each.size == size)
    if not_judged:
        split = _doubt(split, f"how vLLM splits {not_judged[0]} is not known here")
    if split.verdict != "refused" or served.block is None:
        return Required(split=split, per_channel=None)
    (per_channel,), _ = _judge(served, attention, None, (size,))
    return Required(split=split, per_channel=per_channel)


def _judge(
    served: Served, attention: Attention, block: tuple[int, int] | None, sizes: tuple[int, ...]
) -> tuple[tuple[TensorParallel, ...], tuple[str, ...]]:
    parallel, not_judged = judge_sizes(
        attention, served.quantized, block, merged_checked=served.merged_checked, sizes=sizes
    )
    if served.split_unknown is not None:
        parallel = tuple(_doubt(split, served.split_unknown) for split in parallel)
    return parallel, not_judged


def _doubt(split: TensorParallel, reason: str) -> TensorParallel:
    if split.size == 1 or split.verdict != "works":
        return split
    return replace(split, verdict="not checked", reasons=(reason,))


def _architecture(served: Served) -> str | None:
    match (served.config or {}).get("architectures"):
        case [str() as name, *_]:
            return name
        case _:
            return None
