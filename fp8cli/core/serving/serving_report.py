"""The nouns of "will it run": a checkpoint as serving sees it, and what is said about it. Computed by fit.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fp8cli.core.serving.gpu_models import GpuModel
from fp8cli.core.serving.gpu_needs import Needs, OnGeneration
from fp8cli.core.serving.kv_cache import KvCache
from fp8cli.core.serving.modes import Kind
from fp8cli.core.serving.releases import VllmNeed
from fp8cli.core.serving.tensor_parallel import TensorParallel

Verdict = Literal["fits", "fits with a shorter context", "too large", "refused", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A checkpoint, as far as serving it is concerned."""

    path: str
    """What to write behind `vllm serve`."""
    config: Mapping[str, object] | None
    """config.json as parsed; None: there is none, or it cannot be read."""
    weight_bytes: int
    """Of all tensors, scales too."""
    quantized: Sequence[tuple[str, tuple[int, ...]]] = ()
    """Name and shape of every FP8 weight."""
    method: str | None = None
    """What its config calls the way it is quantized; None: it declares nothing."""
    kind: Kind | None = None
    """Of its FP8; None: not known, or nothing is in FP8."""
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale; None: rows or whole tensors do."""
    merged_checked: bool = True
    """False for DeepSeek's own format; see core.serving.tensor_parallel."""
    kv_cache_fp8: bool = False
    """Whether it asks for an FP8 KV cache."""
    head_scales: bool = False
    """Whether that cache has a scale for each head; False: one for a layer, or none."""
    split_unknown: str | None = None
    """Why it is not known how vLLM splits its weights, as for formats that are not FP8; None: it is known."""


@dataclass(frozen=True, kw_only=True)
class Required:
    """A number of GPUs that a checkpoint must run on."""

    split: TensorParallel
    per_channel: TensorParallel | None
    """The same where every row has a scale in place of blocks; None where there are no blocks, or they are split."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What one length of context costs and gives."""

    tokens: int
    sequence_bytes: int | None
    """KV cache of one sequence on one GPU, before any is split; None: unknown."""
    allowed: bool
    """Whether the model goes so far."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """So many GPUs of one model sharing the work."""

    gpus: int
    verdict: Verdict
    reason: str | None
    """Why it is not simply "fits"."""
    weight_bytes: int
    """Of each GPU."""
    room_bytes: int | None
    """For the KV cache on each GPU, below zero where the weights alone are too much; None: memory not known."""
    tokens: int | None
    """Longest sequence that the room holds, whatever the model allows; None: unknown."""
    context: int | None
    """Longest context that can be served: by the room and by the model."""
    sequences: tuple[int | None, ...]
    """How many sequences of each context asked for the room holds at once."""
    command: str | None
    """The line that serves it so; None: it cannot be served so."""


@dataclass(frozen=True, kw_only=True)
class GpuFit:
    """One model of GPU."""

    gpu: GpuModel
    needs: Needs
    reserve_bytes: int | None
    fits: tuple[Fit, ...]
    """By number of GPUs."""
    best: Fit | None
    """With the fewest GPUs on which it fits; where it fits nowhere, with the fewest for a shorter context."""
    here: Fit | None
    """The same with no more GPUs than this machine has; None: it has too few, or is not known to have any."""


@dataclass(frozen=True, kw_only=True)
class ServingReport:
    """Everything above about one checkpoint."""

    weight_bytes: int
    cache: KvCache
    longest: int | None
    """Longest context of the model in tokens; None: config.json does not say."""
    contexts: tuple[Context, ...]
    parallel: tuple[TensorParallel, ...]
    not_judged: tuple[str, ...]
    """Patterns of weights whose split over GPUs is not known."""
    required: Required | None
    """The number of GPUs that was asked for; None: none was."""
    vllm: VllmNeed
    generations: tuple[OnGeneration, ...]
    """NVIDIA's GPUs, oldest first."""
    gpus: tuple[GpuFit, ...]
    utilization: float
    """Share of a GPU's memory that vLLM is taken to use."""
