"""What the programs of this room share: what they need of the process they run in."""

import importlib.metadata
import os
import random
import sys
from collections.abc import Mapping
from typing import Final, Literal

from fp8cli.worker.failures import Failure
from fp8cli.worker.progress import Progress

NEEDED: Final = ("llmcompressor", "compressed-tensors", "transformers", "torch", "datasets")
INSTALL: Final = "install llm-compressor beside it, `pip install 'llmcompressor>=0.14.0.1,<0.14.1'`, or name --python"


def tell_started(progress: Progress) -> Mapping[str, str]:
    """Say who is at work, and return the versions of what is needed. Raises Failure naming what is missing."""
    here = {name: _version(name) for name in NEEDED}
    progress.tell("started", pid=os.getpid(), python=sys.executable, versions=here)
    missing = next((name for name, version in here.items() if version is None), None)
    if missing is not None:
        raise Failure(kind="packages", message=f"`{sys.executable}` has no `{missing}`", hint=INSTALL)
    return {name: version for name, version in here.items() if version is not None}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_device(device: Literal["auto", "cpu", "cuda"]) -> None:
    """Raise Failure where a GPU is asked for and torch sees none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise Failure(kind="other", message=f"torch in `{sys.executable}` sees no GPU", hint="fp8 doctor says why")


def seed_all(seed: int) -> None:
    """Seed every generator that libraries draw from."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - it is this generator that libraries draw from
    torch.manual_seed(seed)


def peak_gpu_bytes() -> int | None:
    """Return the most memory that torch had on all GPUs; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
