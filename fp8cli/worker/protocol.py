"""What the two processes of an evaluation say to each other, as files in one folder.

    job.json              what to do; written before the worker starts
    events-RANK.jsonl     what happens, a line each, appended by the worker
    answers-RANK.jsonl    every answer of the model as soon as it is there; a later worker goes on from them
    rows.jsonl            texts that a simulation takes its scales from, see `samples.request`
    log-RANK.txt          all that the worker and the libraries in it print
    samples_TASK.jsonl    lm-eval's samples, one line per document and filter, by the worker of rank 0
    fidelity/             log-probabilities over some texts, see `worker.fidelity`, by the worker of rank 0
    result.json           lm-eval's results and what it leaves out, by the worker of rank 0; there only when all is done

Events are objects with the key `event`:

    started     pid, python, versions {distribution: version or null}
    tasks       tasks [{name, items, requests}]; before the model is loaded; of a Python task, at least so many requests
    loading     what: "model"
    observing   done, total: texts that a simulation takes its scales from, after the model is loaded
    modifying   done, total: parts of the model that llm-compressor has prepared for a simulation with modifiers
    loaded      seconds, executed (see RunRecord.executed_as), max_length, bos
    running     requests: how many are this worker's share, known: how many of them an earlier journal answers
    answered    count: answers since the last such event
    fidelity    done, total: positions
    finished    share: what a worker that is not the first used, see `worker.shares`
    failed      kind (a FailureKind), message: one sentence without a full stop, hint or null
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from fp8cli.simulator.job import SimulationJob, read_simulation

PROTOCOL: Final = 1

JOB: Final = "job.json"
RESULT: Final = "result.json"
FIDELITY: Final = "fidelity"

Backend = Literal["hf", "vllm", "server"]

FailureKind = Literal["task", "data", "memory", "kv-cache", "scheme", "packages", "model", "server", "other"]
"""An unknown or broken task; its data set; no memory; the KV cache; FP8 this machine cannot run; versions that do not
fit; a checkpoint that does not load; a server that does not answer; anything else."""


@dataclass(frozen=True, kw_only=True)
class FidelityJob:
    """Which log-probabilities to keep, so that another run's can be set beside them."""

    texts: str | None
    """A file with one text a line (`.jsonl`: the key `text`); None: the documents of the tasks."""
    positions: int
    """At most so many next-token distributions."""
    budget_bytes: int
    """At most so many bytes on disk."""
    top_k: int
    """Log-probabilities to keep per position where all of them cannot be had."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One evaluation, every setting explicit: the worker adds none of its own."""

    backend: Backend
    model_args: Mapping[str, object]
    """Of lm-eval's model class for the backend (`hf`, `vllm`, `local-completions`)."""
    tasks: tuple[str, ...]
    """Names, groups, tags, globs, or paths of YAML files."""
    include_paths: tuple[str, ...]
    """Folders of the user's own tasks, and of the tool's."""
    include_defaults: bool
    """Whether lm-eval's own tasks are looked up; it takes seconds to index them."""
    num_fewshot: int | None
    limit: float | None
    sample: int | None
    """Documents of each task, drawn with `sample_seed`; excludes `limit`."""
    sample_seed: int
    apply_chat_template: bool | str
    system_instruction: str | None
    fewshot_as_multiturn: bool
    batch_size: int
    device: str | None
    gen_kwargs: str | None
    seeds: Mapping[str, int]
    """`random`, `numpy`, `torch` and `fewshot`."""
    confirm_unsafe_code: bool
    fidelity: FidelityJob | None
    simulation: SimulationJob | None = None
    """What is rounded in the model before it is asked; only with the backend `hf`."""
    stop_after: Literal["tasks"] | None = None
    """`tasks`: count the items and stop before a model is loaded."""
    world: int = 1
    """Workers that share the requests; each has the same job and a rank of its own."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set by the parent before the worker starts; recorded here."""
    version: int = PROTOCOL


def write_job(job: Job, folder: Path) -> None:
    """Write the job into its folder."""
    (folder / JOB).write_text(json.dumps(dataclasses.asdict(job), indent=2, sort_keys=True), encoding="utf-8")


def read_job(folder: Path) -> Job:
    """Read the job of a folder. Raises ValueError or TypeError for one that this version did not write."""
    fields = json.loads((folder / JOB).read_text(encoding="utf-8"))
    if fields.get("version") != PROTOCOL:
        raise ValueError(f"the job is of version {fields.get('version')}, this is version {PROTOCOL}")
    fidelity = fields["fidelity"]
    fields["fidelity"] = None if fidelity is None else FidelityJob(**fidelity)
    fields["simulation"] = read_simulation(fields["simulation"])
    for name in ("tasks", "include_paths"):
        fields[name] = tuple(fields[name])
    return Job(**fields)


def events_file(rank: int) -> str:
    """Name the file of a worker's events."""
    return f"events-{rank}.jsonl"


def answers_file(rank: int | Literal["*"]) -> str:
    """Name the file of a worker's answers, or the pattern of all of them."""
    return f"answers-{rank}.jsonl"


def log_file(rank: int) -> str:
    """Name the file of a worker's log."""
    return f"log-{rank}.txt"
