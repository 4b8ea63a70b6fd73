"""What lm-eval's results leave out: versions, what stands in front of a prompt, memory, and the processors."""

import importlib.metadata
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

DISTRIBUTIONS: Final = ("lm_eval", "transformers", "torch", "vllm", "compressed-tensors", "datasets")

BYTES_PER_UNIT: Final = 1 if sys.platform == "darwin" else 1024
"""Of `ru_maxrss`: bytes on macOS, KiB on Linux."""


def versions() -> dict[str, str | None]:
    """Return the version of each distribution, None for one that is not here."""
    found: dict[str, str | None] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def max_length(backend: str, lm: Any) -> int:
    """Return how many tokens a prompt and its answer may have together."""
    # lm-eval's class for servers keeps one token less than it was told, for the answer.
    return int(lm.max_length) + (1 if backend == "server" else 0)


def has_bos(lm: Any) -> bool:
    """Return whether a prompt, encoded as the model gets it, begins with BOS."""
    bos = getattr(lm.tokenizer, "bos_token_id", None)
    return bos is not None and list(lm.tok_encode("a"))[:1] == [bos]


def dtype(backend: str, lm: Any) -> str | None:
    """Return the type that the model computes in; None for a server."""
    if backend == "server":
        return None
    return str(lm.model.dtype if backend == "hf" else lm.model.llm_engine.model_config.dtype).removeprefix("torch.")


def peak_memory_bytes(of_other_processes: int) -> int:
    """Return the most resident memory this process had, and that of its processes."""
    # What `getrusage` says of a process begins with the peak of the one that started it, as large as it may have been.
    own = _peak(Path("/proc/self/status")) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_UNIT
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * BYTES_PER_UNIT
    return max(own, ended) + of_other_processes


def peaks_of_group(group: int, own: int, processes: Path = Path("/proc")) -> int:
    """Return the most resident memory of the other processes of a process group that still run; 0 without /proc."""
    return sum(
        _peak(status)
        for status in processes.glob("[0-9]*/status")
        if status.parent.name != str(own) and _group_of(status.parent) == group
    )


def gpu_facts() -> Mapping[str, Any]:
    """Return the names of the GPUs, and the most memory that torch in this process had on all of them."""
    import torch

    if not torch.cuda.is_available():
        return {"gpus": [], "peak_gpu_memory_bytes": None}
    count = range(torch.cuda.device_count())
    peak = sum(torch.cuda.max_memory_allocated(device) for device in count) if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    # 0: the model is in other processes, and nobody here knows.
    return {"gpus": [torch.cuda.get_device_name(device) for device in count], "peak_gpu_memory_bytes": peak or None}


def _group_of(process: Path) -> int | None:
    try:
        # After the name of the program, which may hold anything: state, parent, group.
        return int((process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[2])
    except (OSError, IndexError, ValueError):
        return None


def _peak(status: Path) -> int:
    try:
        lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
