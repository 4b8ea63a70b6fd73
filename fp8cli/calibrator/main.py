"""The calibrator: reads its job, lets llm-compressor find the scales, and leaves them in the folder of the job.

Started by `worker.bootstrap`, perhaps in an interpreter that has nothing of this tool's. All that it has to say goes
into files; standard output and error are a log.
"""

import time
from pathlib import Path
from typing import NoReturn

from fp8cli.calibrator import protocol
from fp8cli.calibrator.surroundings import check_device, peak_gpu_bytes, run_job, seed_all, tell_started, write_facts
from fp8cli.worker.facts import peak_memory_bytes
from fp8cli.worker.progress import Progress


def main(folder: Path) -> NoReturn:
    """Do the job of a folder, and leave: 0 after `finished`, 1 after `failed`."""
    run_job(folder, _work)


def _work(folder: Path, progress: Progress) -> None:
    from fp8cli.samples.encoding import encode_samples, load_tokenizer, positions_of

    job = protocol.read_job(folder)
    here = tell_started(progress)
    started = time.perf_counter()
    tokenizer = load_tokenizer(job.model)
    encoded = encode_samples(job.samples, folder, tokenizer, positions_of(job.model))
    progress.tell("texts", samples=len(encoded.ids), tokens=encoded.tokens)
    check_device(job.device)

    from fp8cli.calibrator.finding import find_scales, save_scales
    from fp8cli.calibrator.loading import load_model

    progress.tell("loading")
    seed_all(job.samples.seed)
    model = load_model(job.model, job.dtype, offload=None)
    find_scales(job, model, tokenizer, encoded, progress.tell)
    scales = save_scales(job, model, folder / protocol.SCALES)
    write_facts(
        folder / protocol.FACTS,
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
            "peak_gpu_memory_bytes": peak_gpu_bytes(),
        },
    )
