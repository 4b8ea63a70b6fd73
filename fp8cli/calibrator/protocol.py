"""What the two processes of a calibration say to each other, as files in one folder.

    calibration.json     what to do; written before the calibrator starts
    rows.jsonl           the texts or conversations, where the parent has read them, see `samples.request`
    events-0.jsonl       what happens, a line each, appended by the calibrator
    calibration.log      all that it and the libraries in it print
    scales.safetensors   the scales, in the dtype and shape that llm-compressor's `save_pretrained` gives them
    facts.json           what was done; written last, so that it is there only when all is done
    offload/             links to the checkpoint's shards, and new tensors, while weights stay on disk; then gone
    events-N.jsonl       of the processes beside the first; nobody reads them but the first, when one fails
    rendezvous           by which several processes of one machine find each other
    calibration-N.log    what those beside the first print, where each is started on a node of a cluster

Events are objects with the key `event`:

    started     pid, python, versions {distribution: version or null}
    texts       samples, tokens: what the model will see; told before the model is loaded
    loading     the model is being loaded
    begins      samples, layers: parts of the model that the samples go through one after another
    layer       number, of: a part is done
    finished
    failed      kind (a FailureKind of `worker.protocol`), message: one sentence without a full stop, hint or null
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fp8cli.samples.request import SampleRequest

PROTOCOL: Final = 1

JOB: Final = "calibration.json"
EVENTS: Final = "events-0.jsonl"
LOG: Final = "calibration.log"
SCALES: Final = "scales.safetensors"
FACTS: Final = "facts.json"
OFFLOAD: Final = "offload"

SCALE_ENDINGS: Final = (".input_scale", ".k_scale", ".v_scale")
"""How the names end of what calibration finds."""


@dataclass(frozen=True, kw_only=True)
class CalibrationJob:
    """One calibration, every setting explicit."""

    model: str
    """Folder of the checkpoint, with its tokenizer."""
    dtype: str
    """torch's name of the type that the model is loaded in."""
    scheme: str | None
    """llm-compressor's preset; None: the KV cache alone."""
    targets: tuple[str, ...]
    ignore: tuple[str, ...]
    kv_cache: Literal["tensor", "head"] | None
    samples: SampleRequest
    device: Literal["auto", "cpu", "cuda"]
    offload: bool = False
    """Whether the weights stay in the checkpoint's shards, and are read as the samples reach their part."""
    processes: int = 1
    """Each with its share of the samples, and its GPU where there are any; more than one needs `offload`."""
    placed: bool = False
    """Whether others start every process, on hosts that share this folder, with torchrun's variables around it; else
    the first starts the rest beside it."""
    wanted: tuple[str, ...] | None = None
    """Names of the scales that are needed, as the checkpoint's modules are called; None: all that there are."""
    version: int = PROTOCOL


def write_job(job: CalibrationJob, folder: Path) -> None:
    """Write the job into its folder."""
    (folder / JOB).write_text(json.dumps(dataclasses.asdict(job), indent=2, sort_keys=True), encoding="utf-8")


def read_job(folder: Path) -> CalibrationJob:
    """Read the job of a folder. Raises ValueError or TypeError for one that this version did not write."""
    fields = json.loads((folder / JOB).read_text(encoding="utf-8"))
    if fields.get("version") != PROTOCOL:
        raise ValueError(f"the job is of version {fields.get('version')}, this is version {PROTOCOL}")
    fields["samples"] = SampleRequest(**fields["samples"])
    for name in ("targets", "ignore", "wanted"):
        fields[name] = None if fields[name] is None else tuple(fields[name])
    return CalibrationJob(**fields)
