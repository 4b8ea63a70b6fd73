"""What the two processes of a compression say to each other, as files in one folder.

    compression.json     what to do; written before the compressor starts
    recipe.yaml          the user's recipe, where there is one
    rows.jsonl           the texts or conversations, where the parent has read them, see `samples.request`
    events-0.jsonl       what happens, a line each, appended by the compressor
    compression.log      all that it and the libraries in it print
    result/              the checkpoint as llm-compressor's `save_pretrained` leaves it, under its own names
    weights/             where the weights stay on disk: links to the checkpoint's shards, and what is new; not kept
    compressed.json      what was done; written last, so that it is there only when all is done

Events are those of `calibrator.protocol`, and one more:

    saving      the model is done and goes to the disk
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fp8cli.samples.request import SampleRequest

PROTOCOL: Final = 1

JOB: Final = "compression.json"
RECIPE: Final = "recipe.yaml"
EVENTS: Final = "events-0.jsonl"
LOG: Final = "compression.log"
RESULT: Final = "result"
WEIGHTS: Final = "weights"
FACTS: Final = "compressed.json"


@dataclass(frozen=True, kw_only=True)
class CompressionJob:
    """One compression, every setting explicit. With `recipe`, nothing from `scheme` to `gptq` is looked at."""

    model: str
    """Folder of the checkpoint."""
    dtype: str
    """torch's name of the type that the model is loaded in."""
    device: Literal["auto", "cpu", "cuda"]
    offload: bool
    """Whether the weights stay on disk and come into memory module by module."""
    recipe: bool
    """Whether the file RECIPE says what to do."""
    scheme: str | None
    """llm-compressor's preset; None: the KV cache alone."""
    targets: tuple[str, ...]
    ignore: tuple[str, ...]
    kv_cache: Literal["tensor", "head"] | None
    smoothing: float | None
    """Strength of SmoothQuant; None: without it."""
    awq: bool
    gptq: bool
    samples: SampleRequest | None
    """None: there is no data."""
    data_is_named: bool
    """Whether the user named data: then it is an error that nothing needs them."""
    version: int = PROTOCOL


def write_job(job: CompressionJob, folder: Path) -> None:
    """Write the job into its folder."""
    (folder / JOB).write_text(json.dumps(dataclasses.asdict(job), indent=2, sort_keys=True), encoding="utf-8")


def read_job(folder: Path) -> CompressionJob:
    """Read the job of a folder. Raises ValueError or TypeError for one that this version did not write."""
    fields = json.loads((folder / JOB).read_text(encoding="utf-8"))
    if fields.get("version") != PROTOCOL:
        raise ValueError(f"the job is of version {fields.get('version')}, this is version {PROTOCOL}")
    if fields["samples"] is not None:
        fields["samples"] = SampleRequest(**fields["samples"])
    for name in ("targets", "ignore"):
        fields[name] = tuple(fields[name])
    return CompressionJob(**fields)
