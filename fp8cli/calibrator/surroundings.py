"""What the programs of this room share: how a job is begun and left, and what it needs of the process it runs in."""

import importlib.metadata
import json
import os
import random
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from fp8cli.samples.rows import UnfitData
from fp8cli.worker.facts import peak_memory_bytes
from fp8cli.worker.failures import Failure, describe
from fp8cli.worker.parent_watch import watch_parent
from fp8cli.worker.progress import Progress

NEEDED: Final = ("llmcompressor", "compressed-tensors", "transformers", "torch", "datasets")
INSTALL: Final = "install llm-compressor beside it, `pip install 'llmcompressor>=0.14.0.1,<0.14.1'`, or name --python"


def run_job(folder: Path, work: Callable[[Path, Progress], None], *, rank: int = 0) -> NoReturn:
    """Do the job of a folder, and leave: 0 after `finished`, 1 after `failed`. rank: of one of several processes."""
    watch_parent()
    progress = Progress(folder, rank)
    code = 0
    try:
        work(folder, progress)
        progress.tell("finished")
    except BaseException as error:  # noqa: BLE001 - the parent is told, whatever it is
        traceback.print_exc()
        failure = _describe(error)
        progress.tell("failed", kind=failure.kind, message=failure.message, hint=failure.hint)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written. What libraries do on their way out takes seconds, and some of them hang there.
    os._exit(code)


def tell_started(progress: Progress) -> Mapping[str, str]:
    """Say who is at work, and return the versions of what is needed. Raises Failure naming what is missing."""
    here = {name: _version(name) for name in NEEDED}
    progress.tell("started", pid=os.getpid(), python=sys.executable, versions=here)
    missing = next((name for name, version in here.items() if version is None), None)
    if missing is not None:
        raise Failure(kind="packages", message=f"`{sys.executable}` has no `{missing}`", hint=INSTALL)
    return {name: version for name, version in here.items() if version is not None}


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


def peak_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Return the most resident memory that this process had.

    What `getrusage` says begins with that of the process which started this one, as large as it may have been.
    """
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except OSError:
        return peak_memory_bytes(0)
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def peak_gpu_bytes() -> int | None:
    """Return the most memory that torch had on all GPUs; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts whole or not at all: they are there only when all is done."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(facts, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _describe(error: BaseException) -> Failure:
    if isinstance(error, UnfitData):
        return Failure(kind="data", message=error.message, hint=error.hint)
    return describe(error)
