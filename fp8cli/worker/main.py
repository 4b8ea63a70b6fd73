"""One worker: reads its job, evaluates it with lm-eval, and leaves the results in the folder of the job.

Started by `worker.bootstrap`, perhaps in an interpreter that has nothing of this tool's. All that it has to say goes
into files; standard output and error are a log.
"""

import os
import random
import re
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from fp8cli.worker import facts, protocol
from fp8cli.worker.doing import run_job, write_whole
from fp8cli.worker.failures import Failure
from fp8cli.worker.lm_eval_vllm import answer_for_the_cpu_build
from fp8cli.worker.progress import Progress

OLDEST_LM_EVAL: Final = (0, 4, 13)
"""The first whose tasks are loaded by themselves, before a model."""


def main(folder: Path, rank: int) -> NoReturn:
    """Do the job of a folder as one of its workers, and leave: 0 after `finished`, 1 after `failed`."""
    run_job(folder, partial(_work, rank), rank=rank)


def _work(rank: int, folder: Path, progress: Progress) -> dict[str, Any] | None:
    """Do the job, and return what this worker used, unless it is the first: that one writes it into the result."""
    job = protocol.read_job(folder)
    if job.backend == "vllm":
        answer_for_the_cpu_build()
    progress.tell("started", pid=os.getpid(), python=sys.executable, versions=facts.versions())
    _need_packages(job)
    _seed(job)

    from fp8cli.worker.tasks import count_requests, load_tasks

    loaded = load_tasks(job)
    progress.tell(
        "tasks",
        tasks=[
            {"name": name, "items": items, "requests": count_requests(name, loaded)}
            for name, items in loaded.items.items()
        ],
    )
    if job.stop_after == "tasks":
        return None
    share = _evaluate(job, folder, rank, progress, loaded)
    return None if share is None else {"share": share}


def _evaluate(job: protocol.Job, folder: Path, rank: int, progress: Progress, loaded: Any) -> dict[str, Any] | None:
    """Load the model, let lm-eval ask it, keep its distributions, and write the result."""
    from fp8cli.worker.answering import Answering, ShareDone
    from fp8cli.worker.fidelity import keep_distributions
    from fp8cli.worker.journal import Journal
    from fp8cli.worker.models import end_model, load_model
    from fp8cli.worker.results import Results
    from fp8cli.worker.shares import add_shares, share_facts
    from fp8cli.worker.simulation import read_samples, refuse_early, simulate_job

    results = Results(job, folder)
    refuse_early(job)
    encoded = read_samples(job, folder)
    progress.tell("loading", what="model")
    started = time.perf_counter()
    lm = load_model(job)
    loading_seconds = time.perf_counter() - started
    simulated = simulate_job(job, getattr(lm, "model", None), encoded, progress)
    executed = _executed(job, lm, folder / protocol.log_file(rank)) if simulated is None else simulated.executed
    progress.tell(
        "loaded",
        seconds=loading_seconds,
        executed=executed.way,
        max_length=facts.max_length(job.backend, lm),
        bos=facts.has_bos(lm),
    )
    answering = Answering(
        lm, loaded.tasks, journal=Journal(folder, rank), progress=progress, rank=rank, world=job.world
    )
    started = time.perf_counter()
    try:
        evaluation = results.evaluate(lm, loaded)
    except ShareDone:
        end_model(job, lm)
        return share_facts(tokens=answering.tokens, known=answering.known)
    scoring_seconds = time.perf_counter() - started
    fidelity = keep_distributions(job, lm, loaded, folder, progress)
    write_whole(
        folder / protocol.RESULT,
        {
            "results": evaluation.results,
            "facts": {
                "versions": facts.versions(),
                "executed_as": executed.way,
                "executed_by": executed.by,
                "max_length": facts.max_length(job.backend, lm),
                "bos": facts.has_bos(lm),
                "dtype": facts.dtype(job.backend, lm),
                "chat_template_sha256": evaluation.chat_template_sha256,
                "loading_seconds": loading_seconds,
                "scoring_seconds": scoring_seconds,
                **add_shares(share_facts(tokens=answering.tokens, known=answering.known), folder, job.world),
                "tasks": _task_facts(evaluation.results, loaded),
                "groups": loaded.groups,
                "fidelity": fidelity,
                "simulation": None if simulated is None else simulated.facts,
            },
        },
    )
    end_model(job, lm)
    return None


def _need_packages(job: protocol.Job) -> None:
    here = facts.versions()
    needed = {"hf": ("lm_eval", "transformers", "torch"), "vllm": ("lm_eval", "vllm"), "server": ("lm_eval",)}
    for name in needed[job.backend]:
        if here[name] is None:
            raise Failure(kind="packages", message=f"`{sys.executable}` has no `{name}`")
    version = here["lm_eval"] or ""
    if tuple(map(int, re.findall(r"\d+", version)[: len(OLDEST_LM_EVAL)])) < OLDEST_LM_EVAL:
        oldest = ".".join(map(str, OLDEST_LM_EVAL))
        raise Failure(kind="packages", message=f"lm_eval {version} is older than {oldest}, whose interfaces are used")


def _seed(job: protocol.Job) -> None:
    """Seed what tasks may draw from while they are loaded, as lm-eval does before it loads them."""
    import numpy as np

    random.seed(job.seeds["random"])
    np.random.seed(job.seeds["numpy"])  # noqa: NPY002 - it is this generator that tasks use


def _executed(job: protocol.Job, lm: Any, log: Path) -> Any:
    from fp8cli.worker import execution

    sys.stdout.flush()
    if job.backend == "hf":
        return execution.executed_by_transformers(lm.model, lm.config)
    if job.backend == "vllm":
        return execution.executed_by_vllm(lm.model, log)
    return execution.Executed(way="unknown", by=None)


def _task_facts(results: Mapping[str, Any], loaded: Any) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "version": str(results["versions"][name]),
            "hash": results["task_hashes"].get(name),
            "num_fewshot": results["n-shot"].get(name),
            "items": loaded.items[name],
        }
        for name in loaded.tasks
    }
