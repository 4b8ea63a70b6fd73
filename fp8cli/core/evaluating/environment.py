"""Environment variables of the worker: what is set for vLLM, and which of the user's own decide a result."""

import os
import re
from collections.abc import Mapping
from typing import Final

from fp8cli.core.evaluating.backends import Workplace
from fp8cli.core.evaluating.request import EvaluationRequest
from fp8cli.core.machine.probes import read_memory

_ONE_PROCESS: Final = "VLLM_ENABLE_V1_MULTIPROCESSING"
_CPU_CACHE: Final = "VLLM_CPU_KVCACHE_SPACE"
_CPU_THREADS: Final = "VLLM_CPU_OMP_THREADS_BIND"
_GIB: Final = 2**30
_CACHE_SHARE: Final = 8
"""The KV cache gets one over this of all memory, so that every model on a machine gets the same, though never more
than half of what is available."""
_LARGEST_CACHE: Final = 16

UNIMPORTANT: Final = frozenset({_ONE_PROCESS, _CPU_CACHE, _CPU_THREADS})
"""Set here, and no result depends on them: with and without, answers were equal to the last bit."""

_DECIDING: Final = re.compile(r"VLLM_\w+|NVIDIA_TF32_OVERRIDE|CUBLAS_WORKSPACE_CONFIG", re.ASCII)
_NOT_DECIDING: Final = re.compile(
    r"VLLM_(\w*(CACHE_ROOT|CONFIG_ROOT|USAGE|LOGGING|LOG_|KEY|TOKEN|SECRET|PASSWORD|HOST|PORT|TRACE|ASSETS)\w*)",
    re.ASCII,
)
"""Folders, logs and addresses; and whatever could be a secret, which no record keeps."""


def environment_of(request: EvaluationRequest, workplace: Workplace) -> tuple[dict[str, str], dict[str, str]]:
    """Return what the worker's environment must hold, the user's own part of it too, and reasons for what is chosen."""
    if workplace.backend != "vllm":
        return {}, {}
    theirs = deciding(workplace.environ)
    chosen: dict[str, tuple[str, str]] = {}
    if request.tensor_parallel == request.pipeline_parallel == 1 and request.cluster is None:
        chosen[_ONE_PROCESS] = ("0", "one process starts faster, and ends with all it holds")
    if not workplace.on_gpu:
        space = _cache_gib(workplace)
        chosen[_CPU_CACHE] = (
            str(space),
            "GiB for the KV cache: a part of the memory, of which vLLM would take nearly all",
        )
    if not workplace.on_gpu and request.tensor_parallel > 1:
        chosen[_CPU_THREADS] = (
            _processors(request.tensor_parallel),
            "processors of each part, where vLLM would want a memory node for each",
        )
    ours = {name: pair for name, pair in chosen.items() if name not in workplace.environ}
    environment = theirs | {name: value for name, (value, _) in ours.items()}
    return environment, {name: f"{value}: {reason}" for name, (value, reason) in ours.items()}


def deciding(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return those variables that may change how vLLM computes."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if _DECIDING.fullmatch(name) and not _NOT_DECIDING.fullmatch(name)
    }


def _processors(parts: int) -> str:
    """Deal out the processors that may be used, as vLLM takes them: `0,1|2,3`. Where they are few, parts share them."""
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    each = max(1, len(there) // parts)
    starts = ((part * each) % len(there) for part in range(parts))
    return "|".join(",".join(map(str, there[start : start + each])) for start in starts)


def _cache_gib(workplace: Workplace) -> int:
    try:
        memory = read_memory(workplace.root)
    except (OSError, ValueError):  # A machine that does not tell: the least that vLLM takes.
        return 1
    wanted = min(memory.total_bytes // _CACHE_SHARE, memory.available_bytes // 2) // _GIB
    return min(_LARGEST_CACHE, max(1, wanted))
