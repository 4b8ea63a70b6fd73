"""How vLLM would run a checkpoint on one model of GPU: in FP8 or not, and which options of `vllm serve` that takes.

Sources, all vLLM 0.32, besides those of core.serving.modes: vllm/config/model.py (`_FLOAT16_NOT_SUPPORTED_MODELS`);
vllm/utils/torch_utils.py `resolve_kv_cache_dtype_string` (an explicit --kv-cache-dtype wins over the checkpoint's).
"""

from dataclasses import dataclass
from typing import Final

from fp8cli.core.serving.gpu_models import GpuModel
from fp8cli.core.serving.modes import (
    BF16_CAPABILITY,
    KV_CACHE_FROM,
    MODE_WORDS,
    VLLM,
    Capability,
    Generation,
    Kind,
    Mode,
    amd_note,
    mode_of,
    mode_on_amd,
    takes_head_scales,
)

_NO_FP16: Final = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
"""Models that vLLM refuses to run in float16, because it overflows there."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one model of GPU does with a checkpoint."""

    mode: Mode | None
    """Of the linear layers; None: not known, or there is nothing in FP8."""
    experts: Mode | None
    """Of the experts of a mixture; None: it has none, or it is not known."""
    words: str
    """The same as a phrase."""
    refusal: str | None
    """Why vLLM does not load it; None: nothing known stands in the way."""
    fp8_cache: bool
    """Whether the KV cache is in FP8 there."""
    options: tuple[str, ...]
    """Words of the command line."""
    notes: tuple[str, ...]
    """What else its user must know, a sentence each."""


@dataclass(frozen=True, kw_only=True)
class OnGeneration:
    """What one generation of NVIDIA's GPUs does with a checkpoint."""

    generation: Generation
    needs: Needs


def needs_on(
    gpu: GpuModel,
    *,
    kind: Kind | None,
    fp8: bool,
    experts: bool,
    fp8_cache: bool,
    head_scales: bool = False,
    model_type: str,
) -> Needs:
    """Tell what `gpu` does with a checkpoint.

    kind: of its FP8, or None where that is not known. fp8: whether any weight is in FP8. experts: whether experts of
    a mixture are. fp8_cache: whether the checkpoint asks for an FP8 KV cache, head_scales: with a scale for each head.
    """
    mode = _mode(gpu, kind)
    of_experts = _mode(gpu, kind, experts=True) if experts else None
    words = _words(mode, of_experts, fp8=fp8)
    refusal = None
    if "unsupported" in {mode, of_experts}:
        what = "experts with weights alone in FP8" if mode != "unsupported" else "this kind of FP8"
        refusal = f"vLLM {VLLM} has no kernel for {what} on {_generation(gpu)}"
    elif fp8_cache and head_scales and _refuses_head_scales(gpu):
        # --kv-cache-dtype does not help: vLLM looks for such a backend whatever type the cache then has.
        refusal = f"vLLM {VLLM} has no attention with a KV-cache scale for each head on {_generation(gpu)}"
    options: list[str] = []
    notes: list[str] = []
    if gpu.gfx is not None and kind is not None and (note := amd_note(gpu.gfx)):
        notes.append(note)
    if gpu.capability is not None and refusal is None:
        if gpu.capability < BF16_CAPABILITY:
            dtype = "float32" if model_type in _NO_FP16 else "half"
            options += ["--dtype", dtype]
            also = f", and vLLM refuses {model_type} in float16" if dtype == "float32" else ""
            notes.append(f"has no BF16{also}")
        if fp8_cache:
            fp8_cache = _add_cache_options(gpu.capability, options, notes)
    return Needs(
        mode=mode,
        experts=of_experts,
        words=words,
        refusal=refusal,
        fp8_cache=fp8_cache,
        options=tuple(options),
        notes=tuple(notes),
    )


def _add_cache_options(capability: Capability, options: list[str], notes: list[str]) -> bool:
    """Add what an FP8 KV cache takes on an NVIDIA GPU; return whether it stays in FP8."""
    if capability >= KV_CACHE_FROM:
        return True
    if capability >= BF16_CAPABILITY:
        options += ["--attention-backend", "FLASHINFER"]
        notes.append("only FlashInfer takes an FP8 KV cache there")
        return True
    options += ["--kv-cache-dtype", "float16"]
    notes.append("takes no FP8 KV cache: it is counted in 16 bits")
    return False


def _refuses_head_scales(gpu: GpuModel) -> bool:
    if gpu.capability is not None:
        return not takes_head_scales(gpu.capability)
    return gpu.gfx is not None


def _mode(gpu: GpuModel, kind: Kind | None, *, experts: bool = False) -> Mode | None:
    if kind is None:
        return None
    if gpu.capability is not None:
        return mode_of(kind, gpu.capability, experts=experts)
    return None if gpu.gfx is None else mode_on_amd(kind, gpu.gfx)


def _words(mode: Mode | None, experts: Mode | None, *, fp8: bool) -> str:
    if not fp8:
        return "nothing of it is in FP8"
    if mode is None:
        return "unknown"
    if experts is None or experts == mode:
        return MODE_WORDS[mode]
    return f"{MODE_WORDS[mode]}; its experts: {MODE_WORDS[experts]}"


def _generation(gpu: GpuModel) -> str:
    if gpu.capability is None:
        return str(gpu.gfx)
    return f"compute capability {gpu.capability[0]}.{gpu.capability[1]}"
