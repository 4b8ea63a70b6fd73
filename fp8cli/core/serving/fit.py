"""Will it run: what vLLM has room for on each model of GPU, by how many of them share the work.

    room for the KV cache = share of memory vLLM may use · memory − weights / GPUs − reserve

The share is vLLM's default for --gpu-memory-utilization, 0.92 in 0.32 and 0.33 (vllm/config/cache.py). Weights are
taken to be spread evenly, though norms and the heads that GPUs share are copied. The reserve for activations, CUDA
graphs and communication is an estimate: vLLM measures them when it starts, and nobody can know them before. All of
it is about memory as the driver reports it, on a GPU that does nothing else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fp8cli.core.model.attention import Attention, read_attention
from fp8cli.core.serving.command_line import load_options, serve_command
from fp8cli.core.serving.gpu_models import GIB, GpuModel
from fp8cli.core.serving.gpu_needs import Needs
from fp8cli.core.serving.kv_cache import KvCache, kv_cache_of
from fp8cli.core.serving.preflight import examine, needs_of
from fp8cli.core.serving.serving_report import Context, Fit, GpuFit, Served, ServingReport, Verdict
from fp8cli.core.serving.tensor_parallel import TensorParallel

__all__ = ["UTILIZATION", "Fit", "GpuFit", "Served", "ServingReport", "judge_serving"]

UTILIZATION: Final = 0.92
"""Share of a GPU's memory that vLLM uses unless told otherwise."""

RESERVE_SHARE: Final = 0.04
LEAST_RESERVE: Final = int(1.5 * GIB)
"""The estimate for activations and CUDA graphs: this share of the memory, and no less than this."""

USEFUL_TOKENS: Final = 1_024
"""A context shorter than this serves nobody: below it a model counts as too large."""

_CONTEXT_STEP: Final = 1_024
"""A shortened context is a multiple of this, rounded down."""

_BATCHES: Final = 2
"""Batches that vLLM has on their way at once (asynchronous scheduling)."""


def judge_serving(
    served: Served, *, contexts: Sequence[int], gpus: Sequence[GpuModel], required: int | None = None
) -> ServingReport:
    """Judge a checkpoint on each of `gpus`.

    contexts: tokens to serve; none: as many as the model goes. required: a number of GPUs that it must run on.
    """
    attention = read_attention(served.config)
    cache = kv_cache_of(attention, fp8=served.kv_cache_fp8)
    preflight = examine(served, required=required)
    model = _Model(
        served=served,
        attention=attention,
        cache=cache,
        parallel=preflight.parallel,
        wanted=max(contexts, default=attention.longest),
        contexts=tuple(contexts),
    )
    return ServingReport(
        weight_bytes=served.weight_bytes,
        cache=cache,
        longest=attention.longest,
        contexts=tuple(
            Context(
                tokens=tokens,
                sequence_bytes=cache.bytes_of(tokens),
                allowed=attention.longest is None or tokens <= attention.longest,
            )
            for tokens in contexts
        ),
        parallel=preflight.parallel,
        not_judged=preflight.not_judged,
        required=preflight.required,
        vllm=preflight.vllm,
        generations=preflight.generations,
        gpus=tuple(_judge_gpu(gpu, model) for gpu in gpus),
        utilization=UTILIZATION,
    )


def reserve_of(memory_bytes: int) -> int:
    """Return the estimate of what activations and CUDA graphs take of a GPU's memory."""
    return max(LEAST_RESERVE, int(RESERVE_SHARE * memory_bytes))


def batched_tokens(gpu: GpuModel) -> int:
    """Return vLLM's default for --max-num-batched-tokens when it serves (vllm/engine/arg_utils.py)."""
    memory = gpu.memory_bytes or 0
    if memory >= 160 * GIB:
        return 16_384
    return 8_192 if memory >= 70 * GIB and "a100" not in gpu.name.lower() else 2_048


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What is the same on every GPU."""

    served: Served
    attention: Attention
    cache: KvCache
    parallel: tuple[TensorParallel, ...]
    contexts: tuple[int, ...]
    wanted: int | None
    """The context to serve: the longest asked for, else as long as the model goes; None: not known."""


def _judge_gpu(gpu: GpuModel, model: _Model) -> GpuFit:
    needs = needs_of(gpu, model.served)
    if model.served.kv_cache_fp8 and not needs.fp8_cache:
        model = replace(model, cache=kv_cache_of(model.attention, fp8=False))
    fits = tuple(_judge(gpu, needs, split, model) for split in model.parallel)
    return GpuFit(
        gpu=gpu,
        needs=needs,
        reserve_bytes=None if gpu.memory_bytes is None else reserve_of(gpu.memory_bytes),
        fits=fits,
        best=_best(fits),
        here=_best(fit for fit in fits if fit.gpus <= (gpu.count or 0)),
    )


def _best(fits: Iterable[Fit]) -> Fit | None:
    """Return the first that fits, else the first that fits with a shorter context."""
    known = [fit for fit in fits if fit.command is not None]
    return next((fit for fit in known if fit.verdict == "fits"), known[0] if known else None)


def _judge(gpu: GpuModel, needs: Needs, split: TensorParallel, model: _Model) -> Fit:
    """Judge one number of GPUs."""
    weights = -(-model.served.weight_bytes // split.size)
    room = None
    if gpu.memory_bytes is not None:
        room = int(UTILIZATION * gpu.memory_bytes) - weights - reserve_of(gpu.memory_bytes)
    in_flight = _BATCHES * batched_tokens(gpu)
    tokens = None if room is None else model.cache.tokens_in(room, split.size, in_flight=in_flight)
    longest = model.attention.longest
    context = None if tokens is None else min(tokens, longest) if longest is not None else tokens
    verdict, reason = _verdict(needs, split, room, tokens, model)
    command = None
    if verdict in {"fits", "fits with a shorter context"}:
        command = serve_command(model.served.path, *_options(needs, split, verdict, context, model))
    return Fit(
        gpus=split.size,
        verdict=verdict,
        reason=reason,
        weight_bytes=weights,
        room_bytes=room,
        tokens=tokens,
        context=context,
        sequences=tuple(
            _sequences(model.cache, room, split.size, tokens, in_flight=in_flight) for tokens in model.contexts
        ),
        command=command,
    )


def _verdict(
    needs: Needs, split: TensorParallel, room: int | None, tokens: int | None, model: _Model
) -> tuple[Verdict, str | None]:
    wanted, longest = model.wanted, model.attention.longest
    if needs.refusal is not None:
        return "refused", needs.refusal
    if split.verdict == "refused":
        return "refused", split.reasons[0]
    if room is None:
        return "unknown", "how much memory it has is not known"
    if room <= 0:
        return "too large", f"the weights leave {room:,} bytes for the KV cache"
    if tokens is None:
        return "unknown", f"the weights fit, but the KV cache is unknown: {model.cache.unknown}"
    if split.verdict == "not checked":
        return "unknown", split.reasons[0]
    if model.served.quantized and needs.mode is None:
        return "unknown", "the weights fit, but how vLLM runs this kind of FP8 there is not known"
    if tokens < min(USEFUL_TOKENS, wanted or USEFUL_TOKENS):
        return "too large", f"there is room for {tokens:,} tokens of KV cache"
    if wanted is None:
        return "unknown", "its config.json does not say how long its context is; name one with --context"
    if longest is not None and wanted > longest:
        return "refused", f"the model goes as far as {longest:,} tokens, not {wanted:,}"
    if tokens < wanted:
        return "fits with a shorter context", f"there is room for {tokens:,} tokens, not {wanted:,}"
    return "fits", None


def _options(
    needs: Needs, split: TensorParallel, verdict: Verdict, context: int | None, model: _Model
) -> tuple[str, ...]:
    """Return the words behind `vllm serve PATH`."""
    words = [*load_options(model.served.method)]
    if split.size > 1:
        words += ["--tensor-parallel-size", str(split.size)]
    length = model.wanted
    if verdict == "fits with a shorter context" and context is not None:
        length = context // _CONTEXT_STEP * _CONTEXT_STEP or context
    if length is not None and length != model.attention.longest:
        words += ["--max-model-len", str(length)]
    return (*words, *needs.options)


def _sequences(cache: KvCache, room: int | None, gpus: int, tokens: int, *, in_flight: int) -> int | None:
    """Return how many sequences of `tokens` tokens the room holds at once."""
    one = cache.bytes_to_admit(tokens, gpus, in_flight=in_flight)
    if one is None or room is None:
        return None
    return max(0, room // one) if one else None
