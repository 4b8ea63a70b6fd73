"""What the two processes of a measurement say to each other, as files in one folder.

    measurement.json     what to do; written before the measurer starts
    rows.jsonl           the texts or conversations, where the parent has read them, see `samples.request`
    events-0.jsonl       what happens, a line each, appended by the measurer
    measurement.log      all that it and the libraries in it print
    reference.f32        log-probabilities of the model as it is, see `reference`; taken away at the end
    result.json          what was measured; written last, so that it is there only when all is done

Events are objects with the key `event`:

    started     pid, python, versions {distribution: version or null}
    texts       samples, tokens: what the model will see; told before the model is loaded
    loading     the model is being loaded
    loaded      device, seconds
    reference   done, total: positions of the model as it is
    modifying   done, total: parts of the model that llm-compressor has prepared for a choice within a budget
    step        number, of, name: a part of the work begins
    finished
    failed      kind (a FailureKind of `worker.protocol`), message: one sentence without a full stop, hint or null
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fp8cli.measurer.budget_protocol import BudgetWork, read_budget_work
from fp8cli.measurer.explore_protocol import ExploreWork, read_explore_work
from fp8cli.samples.request import SampleRequest

PROTOCOL: Final = 1

JOB: Final = "measurement.json"
EVENTS: Final = "events-0.jsonl"
LOG: Final = "measurement.log"
REFERENCE: Final = "reference.f32"
RESULT: Final = "result.json"

Work = ExploreWork | BudgetWork
"""What to measure; each kind has a word of its own in `kind`."""


@dataclass(frozen=True, kw_only=True)
class MeasureJob:
    """One measurement, every setting explicit."""

    model: str
    """Folder of the checkpoint, with its tokenizer."""
    dtype: str
    """torch's name of the type that the model is loaded in."""
    device: str
    """`auto`, `cpu`, `cuda` or `cuda:N`; auto: a GPU that the model fits on, else the processor."""
    samples: SampleRequest | None
    """None: the work needs no texts."""
    positions: int
    """At most so many next-token distributions are compared."""
    budget_bytes: int
    """At most so many bytes of them are kept on disk."""
    work: Work
    version: int = PROTOCOL


def write_job(job: MeasureJob, folder: Path) -> None:
    """Write the job into its folder."""
    (folder / JOB).write_text(json.dumps(dataclasses.asdict(job), indent=2, sort_keys=True), encoding="utf-8")


def read_job(folder: Path) -> MeasureJob:
    """Read the job of a folder. Raises ValueError or TypeError for one that this version did not write."""
    fields = json.loads((folder / JOB).read_text(encoding="utf-8"))
    if fields.get("version") != PROTOCOL:
        raise ValueError(f"the job is of version {fields.get('version')}, this is version {PROTOCOL}")
    fields["samples"] = None if fields["samples"] is None else SampleRequest(**fields["samples"])
    fields["work"] = _read_work(fields["work"])
    return MeasureJob(**fields)


def _read_work(fields: Mapping[str, Any]) -> Work:
    match fields["kind"]:
        case "explore":
            return read_explore_work(fields)
        case "budget":
            return read_budget_work(fields)
        case kind:
            raise ValueError(f"`{kind}` is no work that this version knows")
