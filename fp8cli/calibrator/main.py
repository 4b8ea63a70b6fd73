"""The calibrator: reads its job, lets llm-compressor find the scales, and leaves them in the folder of the job.

Started by `worker.bootstrap`, perhaps in an interpreter that has nothing of this tool's. All that it has to say goes
into files; standard output and error are a log.
"""

import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from fp8cli.calibrator import protocol, ranks
from fp8cli.calibrator.surroundings import (
    check_device,
    peak_gpu_bytes,
    seed_all,
    tell_started,
)
from fp8cli.samples.encoding import Encoded, encode_samples, load_tokenizer, positions_of
from fp8cli.worker.doing import run_job, write_whole
from fp8cli.worker.facts import peak_memory_bytes
from fp8cli.worker.progress import Progress


def main(folder: Path, rank: int = 0) -> NoReturn:
    """Do the job of a folder, and leave: 0 after `finished`, 1 after `failed`.

    rank: 0 for the process that the parent hears; it starts the others, unless all of them are placed.
    """
    run_job(folder, partial(calibrate_job, rank), rank=rank)


def calibrate_job(rank: int, folder: Path, progress: Progress) -> None:
    """Do the job of a folder; its facts are written last. Raises Failure and UnfitData."""
    job = protocol.read_job(folder)
    here = tell_started(progress)
    started = time.perf_counter()
    tokenizer = load_tokenizer(job.model)
    encoded = encode_samples(job.samples, folder, tokenizer, positions_of(job.model))
    progress.tell("texts", samples=len(encoded.ids), tokens=encoded.tokens)
    check_device(job.device)
    several = job.processes > 1
    starts = several and rank == 0 and not job.placed
    with ranks.started(folder, job.processes, progress) if starts else nullcontext():
        if job.placed:
            ranks.join_placed(rank, job.processes, gpu=_has_gpu())
        elif several:
            ranks.join(folder, rank, job.processes, gpu=_has_gpu())
        facts = _calibrate(job, folder, progress, tokenizer, encoded, rank)
    if rank == 0:
        seconds = time.perf_counter() - started
        write_whole(folder / protocol.FACTS, {**facts, "versions": here, "seconds": seconds})


def _calibrate(
    job: protocol.CalibrationJob, folder: Path, progress: Progress, tokenizer: Any, encoded: Encoded, rank: int
) -> Mapping[str, Any]:
    """Find the scales and, in the first process, write them. Returns what is to be said about it."""
    from fp8cli.calibrator.finding import find_scales, save_scales
    from fp8cli.calibrator.loading import load_model

    progress.tell("loading")
    seed_all(job.samples.seed)
    offload = folder / protocol.OFFLOAD if job.offload else None
    model = load_model(job.model, job.dtype, offload=offload, shared=job.placed)
    seen = find_scales(job, model, tokenizer, encoded, progress.tell)
    peaks = (ranks.sum_of(peak_memory_bytes(0)), ranks.sum_of(peak_gpu_bytes() or 0))
    if rank > 0:
        return {}
    saved = save_scales(job, model, folder / protocol.SCALES, seen)
    if offload is not None:
        shutil.rmtree(offload, ignore_errors=True)
    return {
        "scales": saved.count,
        "dead": saved.dead,
        "samples": len(encoded.ids),
        "tokens": encoded.tokens,
        "max_seq_length": encoded.max_seq_length,
        "conversations": encoded.conversations,
        "token_ids_sha256": encoded.sha256(),
        "peak_memory_bytes": max(peaks[0], peak_memory_bytes(0)),
        "peak_gpu_memory_bytes": peaks[1] if _has_gpu() else None,
    }


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
