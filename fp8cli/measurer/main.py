"""The measurer: reads its job, loads the model once, measures forms of it, and leaves what it found in the folder.

Started by `worker.bootstrap`, perhaps in an interpreter that has nothing of this tool's. All that it has to say goes
into files; standard output and error are a log.
"""

import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from fp8cli.measurer import protocol
from fp8cli.measurer.budget_protocol import BudgetWork
from fp8cli.measurer.explore_protocol import ExploreWork
from fp8cli.worker import facts
from fp8cli.worker.doing import run_job, write_whole
from fp8cli.worker.failures import Failure
from fp8cli.worker.progress import Progress

NEEDED: Final = ("transformers", "torch")
INSTALL: Final = "install transformers beside it, `pip install 'transformers>=5.10,<6'`, or name --python"


def main(folder: Path) -> NoReturn:
    """Do the job of a folder, and leave: 0 after `finished`, 1 after `failed`."""
    run_job(folder, _work)


def _work(folder: Path, progress: Progress) -> None:
    job = protocol.read_job(folder)
    here = _versions(job)
    progress.tell("started", pid=os.getpid(), python=sys.executable, versions=here)
    for name in NEEDED:
        if here[name] is None:
            raise Failure(kind="packages", message=f"`{sys.executable}` has no `{name}`", hint=INSTALL)
    started = time.perf_counter()
    encoded = None if job.samples is None else _encode(job, folder)
    if encoded is not None:
        progress.tell("texts", samples=len(encoded.ids), tokens=encoded.tokens)

    tasks = _load_tasks(job)

    from fp8cli.measurer.model import load, refuse_early

    refuse_early(job)
    progress.tell("loading")
    _seed(0 if job.samples is None else job.samples.seed)
    model = load(job)
    progress.tell("loaded", device=str(model.device), seconds=time.perf_counter() - started)
    found = _measure(job, model, encoded, tasks, folder, progress)
    write_whole(
        folder / protocol.RESULT,
        {
            **found,
            "samples": 0 if encoded is None else len(encoded.ids),
            "tokens": 0 if encoded is None else encoded.tokens,
            "max_seq_length": None if encoded is None else encoded.max_seq_length,
            "token_ids_sha256": None if encoded is None else encoded.sha256(),
            "device": str(model.device),
            "versions": here,
            "seconds": time.perf_counter() - started,
            "peak_memory_bytes": facts.peak_memory_bytes(0),
            "peak_gpu_memory_bytes": facts.gpu_facts()["peak_gpu_memory_bytes"],
        },
    )


def _versions(job: protocol.MeasureJob) -> dict[str, str | None]:
    """Return the versions of what takes part. Raises Failure where llm-compressor has to and is not here."""
    here = facts.versions()
    schemes = job.work.schemes if isinstance(job.work, ExploreWork) else (job.work.scheme,)
    if any(scheme.modified for scheme in schemes):
        from fp8cli.simulator.modifying import PACKAGE, need_llm_compressor

        here[PACKAGE] = need_llm_compressor()
    return here


def _encode(job: protocol.MeasureJob, folder: Path) -> Any:
    from fp8cli.samples.encoding import encode_samples, load_tokenizer, positions_of

    assert job.samples is not None  # noqa: S101 - see `_work`
    return encode_samples(job.samples, folder, load_tokenizer(job.model), positions_of(job.model))


def _load_tasks(job: protocol.MeasureJob) -> Any:
    """Load the tasks that the work asks for, None if it asks for none: a wrong name is to be told before the model."""
    if not isinstance(job.work, ExploreWork) or job.work.evaluation is None:
        return None
    from fp8cli.measurer.asking import load_asked

    return load_asked(job.work.evaluation)


def _measure(
    job: protocol.MeasureJob, model: Any, encoded: Any, tasks: Any, folder: Path, progress: Progress
) -> Mapping[str, object]:
    """Do the work of the job, and return what it found.

    encoded: the texts as token ids, None if there are none; so for tasks.
    """
    match job.work:
        case ExploreWork():
            from fp8cli.measurer.exploring import explore

            return explore(job, job.work, model, encoded, tasks, folder, progress)
        case BudgetWork():
            from fp8cli.measurer.budget import choose

            return choose(job, job.work, model, encoded, folder, progress)


def _seed(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - it is this generator that libraries draw from
    torch.manual_seed(seed)
