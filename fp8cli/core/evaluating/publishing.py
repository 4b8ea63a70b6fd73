"""A finished run becomes files in RUNS/LABEL/: each appears whole, the record last, and all are read again.

    results_DATE.json, samples_TASK_DATE.jsonl    as lm-eval lays them out, for its own viewers too
    log_DATE.txt, fidelity_DATE/, run_DATE.json   the worker's log, log-probabilities, and the record

A run is there when its record is: who finds samples without one has found what a killed process left, and the same
command, which goes on under the same date, writes them anew.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fp8cli import __version__
from fp8cli.core.evaluating.hardware import describe
from fp8cli.core.evaluating.keys import Keys, origins
from fp8cli.core.evaluating.settings import Chosen
from fp8cli.core.evaluating.subject import Subject
from fp8cli.core.evaluating.work_folder import Work
from fp8cli.errors import CannotRun
from fp8cli.formats.run_record import (
    Execution,
    FidelityFacts,
    RunRecord,
    Speed,
    TaskFacts,
    read_record,
    write_record,
    write_whole,
)
from fp8cli.formats.typed_json import from_json
from fp8cli.worker.protocol import FIDELITY, log_file


@dataclass(frozen=True, kw_only=True)
class TaskOutcome:
    """What the worker says of one task."""

    version: str | None
    hash: str | None
    num_fewshot: int | None
    items: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the worker says beside lm-eval's results."""

    versions: Mapping[str, str | None]
    executed_as: Execution
    executed_by: str | None
    max_length: int
    bos: bool
    dtype: str | None
    chat_template_sha256: str | None
    loading_seconds: float
    scoring_seconds: float
    tokens: int
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None
    gpus: tuple[str, ...]
    known_answers: int
    tasks: Mapping[str, TaskOutcome]
    groups: Mapping[str, tuple[str, ...]]
    fidelity: Mapping[str, object] | None
    simulation: Mapping[str, object] | None = None


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run whose worker is done."""

    asked: tuple[str, ...]
    """Names that it was to run."""
    results: Mapping[str, object]
    """lm-eval's."""
    outcome: Outcome
    seconds: float
    chosen: Chosen
    """Settings as they were in the end."""
    notes: tuple[str, ...]


def read_outcome(result: Mapping[str, object], log: Path) -> tuple[Mapping[str, object], Outcome]:
    """Split what the worker wrote into lm-eval's results and the facts. Raises CannotRun for nonsense."""
    results = result.get("results")
    try:
        if not isinstance(results, dict):
            raise ValueError("`results` is no object")  # noqa: TRY004 - a wrong text, not a wrong call
        return results, from_json(Outcome, result.get("facts"))
    except ValueError as problem:
        message = f"the worker's result is not what this version of fp8 writes: {problem}"
        raise CannotRun(message, hint=f"look at its log: {log}") from problem


def publish(finished: Finished, subject: Subject, keys: Keys, work: Work, folder: Path) -> RunRecord:
    """Move a finished run into the folder of its label and return its record.

    Raises OSError where files cannot be written, CannotRun if they do not read as they were written.
    """
    record = make_record(finished, subject, keys, work, label=folder.name)
    content = (json.dumps(finished.results, indent=2, ensure_ascii=False) + "\n").encode(errors="surrogatepass")
    folder.mkdir(parents=True, exist_ok=True)
    for task, facts in record.tasks.items():
        _move(work.folder / f"samples_{task}.jsonl", folder / facts.samples)
    if record.fidelity is not None:
        for path in (work.folder / FIDELITY).iterdir():
            _flush(path)
        _replace_folder(work.folder / FIDELITY, folder / record.fidelity.folder)
    _gather_logs(work, finished.chosen.settings.world, folder / f"log_{record.id}.txt")
    write_whole(folder / record.results, content)
    path = write_record(record, folder)
    _flush(folder)
    if read_record(path) != record or (folder / record.results).read_bytes() != content:
        raise CannotRun(f"`{path}` does not read as it was written", hint="the disk may be failing; choose --runs DIR")
    for facts in record.tasks.values():
        if not (folder / facts.samples).is_file():
            raise CannotRun(f"`{folder / facts.samples}` is gone", hint="run the same command again")
    return record


def make_record(finished: Finished, subject: Subject, keys: Keys, work: Work, *, label: str) -> RunRecord:
    """Gather the record of a run."""
    outcome, date = finished.outcome, work.started.id
    came_of = origins(finished.asked, tuple(outcome.tasks), outcome.groups)
    hardware, gpus = describe()
    tasks = {
        name: TaskFacts(
            key=keys.of(came_of[name], name),
            version=task.version,
            hash=task.hash,
            num_fewshot=task.num_fewshot,
            items=task.items,
            samples=f"samples_{name}_{date}.jsonl",
        )
        for name, task in outcome.tasks.items()
    }
    fidelity, missing = _fidelity(outcome.fidelity, f"fidelity_{date}", finished)
    notes = [*finished.notes, *([] if missing is None else [f"no fidelity: {missing}"])]
    settings = replace(
        finished.chosen.settings,
        bos=outcome.bos,
        max_length=outcome.max_length,
        dtype=outcome.dtype or finished.chosen.settings.dtype,
        versions=outcome.versions,
    )
    simulation = finished.chosen.simulation
    rate = outcome.tokens / outcome.scoring_seconds if outcome.tokens and outcome.scoring_seconds > 0 else None
    return RunRecord(
        id=date,
        label=label,
        created=work.started.created,
        model=subject.facts,
        tokenizer_sha256=subject.tokenizer_sha256,
        chat_template_sha256=outcome.chat_template_sha256,
        settings=settings,
        executed_as=outcome.executed_as,
        executed_by=outcome.executed_by,
        tasks=tasks,
        groups=outcome.groups,
        asked_tasks=finished.asked,
        speed=Speed(
            seconds=finished.seconds,
            loading_seconds=outcome.loading_seconds,
            scoring_seconds=outcome.scoring_seconds,
            tokens=outcome.tokens,
            tokens_per_second=rate,
            # Where a server has the model, the worker's own memory says nothing about it.
            peak_memory_bytes=None if settings.backend == "server" else outcome.peak_memory_bytes,
            peak_gpu_memory_bytes=outcome.peak_gpu_memory_bytes,
        ),
        hardware=hardware,
        gpus=outcome.gpus or (gpus if settings.backend == "vllm" else ()),
        fidelity=fidelity,
        results=f"results_{date}.json",
        resumed=outcome.known_answers > 0,
        notes=tuple(notes),
        simulated=None if simulation is None else simulation.facts(outcome.simulation),
        fp8_version=__version__,
    )


def _fidelity(
    said: Mapping[str, object] | None, folder: str, finished: Finished
) -> tuple[FidelityFacts | None, str | None]:
    """Return what was kept, or why nothing was; both None where nothing was asked for."""
    if said is None:
        return None, None
    if "missing" in said:
        return None, str(said["missing"])
    try:
        return from_json(FidelityFacts, {**said, "folder": folder, "key": finished.chosen.fidelity_key}), None
    except ValueError as problem:
        return None, f"what the worker kept is not what this version of fp8 reads: {problem}"


def _move(source: Path, target: Path) -> None:
    _flush(source)
    source.replace(target)


def _replace_folder(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)  # Of a process that was killed before its record was written.
    _flush(source)
    source.rename(target)


def _gather_logs(work: Work, world: int, target: Path) -> None:
    fresh = target.with_name(f".{target.name}.part")
    with fresh.open("wb") as stream:
        for rank in range(world):
            log = work.folder / log_file(rank)
            if log.is_file():
                with log.open("rb") as source:
                    shutil.copyfileobj(source, stream)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(target)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
