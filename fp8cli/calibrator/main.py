"""The calibrator: reads its job, lets llm-compressor find the scales, and leaves them in the folder of the job.

Started by `worker.bootstrap`, perhaps in an interpreter that has nothing of this tool's. All that it has to say goes
into files; standard output and error are a log.
"""

import importlib.metadata
import json
import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final, NoReturn

from fp8cli.calibrator import protocol
from fp8cli.samples.rows import UnfitData
from fp8cli.worker.facts import peak_memory_bytes
from fp8cli.worker.failures import Failure, describe
from fp8cli.worker.parent_watch import watch_parent
from fp8cli.worker.progress import Progress

NEEDED: Final = ("llmcompressor", "compressed-tensors", "transformers", "torch", "datasets")
INSTALL: Final = "install llm-compressor beside it, `pip install 'llmcompressor>=0.14.0.1,<0.14.1'`, or name --python"


def main(folder: Path) -> NoReturn:
    """Do the job of a folder, and leave: 0 after `finished`, 1 after `failed`."""
    watch_parent()
    progress = Progress(folder, 0)
    code = 0
    try:
        _work(folder, progress)
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


def _describe(error: BaseException) -> Failure:
    if isinstance(error, UnfitData):
        return Failure(kind="data", message=error.message, hint=error.hint)
    return describe(error)


def _work(folder: Path, progress: Progress) -> None:
    from fp8cli.samples.encoding import encode_samples, load_tokenizer, positions_of

    job = protocol.read_job(folder)
    here = {name: _version(name) for name in NEEDED}
    progress.tell("started", pid=os.getpid(), python=sys.executable, versions=here)
    for name, version in here.items():
        if version is None:
            raise Failure(kind="packages", message=f"`{sys.executable}` has no `{name}`", hint=INSTALL)
    started = time.perf_counter()
    tokenizer = load_tokenizer(job.model)
    encoded = encode_samples(job.samples, folder, tokenizer, positions_of(job.model))
    progress.tell("texts", samples=len(encoded.ids), tokens=encoded.tokens)
    _check_device(job)

    from fp8cli.calibrator.finding import find_scales, save_scales
    from fp8cli.calibrator.loading import load_model

    progress.tell("loading")
    _seed(job.samples.seed)
    model = load_model(job.model, job.dtype, offload=None)
    find_scales(job, model, tokenizer, encoded, progress.tell)
    scales = save_scales(job, model, folder / protocol.SCALES)
    _write_facts(
        folder,
        {
            "scales": scales,
            "samples": len(encoded.ids),
            "tokens": encoded.tokens,
            "max_seq_length": encoded.max_seq_length,
            "conversations": encoded.conversations,
            "token_ids_sha256": encoded.sha256(),
            "versions": here,
            "seconds": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory_bytes(0),
            "peak_gpu_memory_bytes": _peak_gpu_bytes(),
        },
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_device(job: protocol.CalibrationJob) -> None:
    import torch

    if job.device == "cuda" and not torch.cuda.is_available():
        raise Failure(kind="other", message=f"torch in `{sys.executable}` sees no GPU", hint="fp8 doctor says why")


def _seed(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - it is this generator that libraries draw from
    torch.manual_seed(seed)


def _peak_gpu_bytes() -> int | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write the facts whole or not at all: they are there only when all is done."""
    new = folder / f"{protocol.FACTS}.new"
    with new.open("w", encoding="utf-8") as file:
        json.dump(facts, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / protocol.FACTS)
