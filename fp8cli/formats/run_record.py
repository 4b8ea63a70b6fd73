"""The record of one evaluation: what lm-eval's own results file leaves out, and what another run must share with it.

A run lies in `RUNS/LABEL/` as lm-eval lays it out (`results_DATE.json`, `samples_TASK_DATE.jsonl`); beside them lie
this record, `run_DATE.json`, the log, `log_DATE.txt`, and the folder `fidelity_DATE`.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fp8cli.errors import BadInput
from fp8cli.formats.typed_json import from_json

RECORD_VERSION: Final = 1

MAX_RECORD_BYTES: Final = 50_000_000
"""No record is as large; a run of thousands of tasks takes a megabyte."""

Execution = Literal[
    "fp8-kernel", "weight-only", "fake-quant", "dequantized", "unquantized", "emulated", "simulated", "unknown"
]
"""How the linear layers of a run were multiplied: in FP8; in 16 bits with FP8 weights unpacked in the kernel; in 16
bits, weights unpacked and activations rounded to FP8 and back; in 16 bits, weights unpacked when loaded; from a
checkpoint without FP8; in FP8 that a processor unpacks to multiply it; in 16 bits, from a checkpoint without FP8 whose
weights and activations were rounded as a scheme would; or by a way that could not be found out."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The checkpoint of a run."""

    name: str
    """As the user named it."""
    path: str | None
    """Folder it was read from; None for a server."""
    revision: str | None
    """Commit of a Hub id."""
    fingerprint: str | None
    """SHA-256 over config, headers and, by `fingerprint_of`, samples or all of the weights."""
    fingerprint_of: Literal["samples", "all bytes", "nothing"]
    stamp: str | None
    """SHA-256 over names, sizes and times of change of the files: while it is the same, nothing was changed."""
    bytes_on_disk: int | None
    """Of the weights."""
    dtype: str | None
    """Of config.json."""
    quantization: str | None
    """Such as `FP8_DYNAMIC, compressed-tensors`; None for an unquantized checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a result beside the model and the task."""

    backend: Literal["hf", "vllm", "server"]
    dtype: str | None
    batch_size: int
    max_length: int
    bos: bool
    """Whether BOS stands in front of every prompt."""
    num_fewshot: int | None
    """As asked for; each task's own stands with the task."""
    limit: float | None
    sample: int | None
    sample_seed: int
    chat_template: bool | str
    system_instruction: str | None
    fewshot_as_multiturn: bool
    gen_kwargs: str | None
    seeds: Mapping[str, int]
    model_args: Mapping[str, object]
    """As lm-eval's model class got them, without the path of the model."""
    environment: Mapping[str, str]
    versions: Mapping[str, str | None]
    """Of lm_eval, transformers, torch, vllm, compressed-tensors and datasets in the worker."""
    safe: Mapping[str, str]
    """Settings that were chosen for the user, each with its reason."""
    python: str
    world: int = 1
    """Workers that shared the requests, each with a model of its own (data parallel)."""


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """One task of a run."""

    key: str
    """SHA-256 over all that decides its result; a later run with the same key is answered from this record."""
    version: str | None
    hash: str | None
    """lm-eval's task hash: over documents, prompts and targets."""
    num_fewshot: int | None
    items: int
    samples: str
    """File name of its samples."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a run cost."""

    seconds: float
    """From start to end, of all workers that took part."""
    loading_seconds: float
    scoring_seconds: float
    tokens: int
    """That went through the model: of prompts and of generated text; answers of an earlier run count nothing."""
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    """Resident memory of the worker."""
    peak_gpu_memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class FidelityFacts:
    """The log-probabilities a run kept."""

    folder: str
    kind: Literal["all", "top"]
    """Of the whole vocabulary, or of the most likely tokens."""
    positions: int
    documents: int
    vocabulary: int
    tokens_sha256: str
    """Over the token ids: only runs with the same can be compared."""
    of: str
    """`tasks`, or the name of the file of texts."""
    key: str = ""
    """SHA-256 over what was asked for: texts, positions and how many bytes they may take."""


@dataclass(frozen=True, kw_only=True)
class SimulationFacts:
    """What was rounded in a run without a checkpoint of it, and with what data."""

    scheme: str
    """Such as `FP8_DYNAMIC`, `MXFP8+KV`."""
    predicted_bytes: int
    """Of the weights and scales that a checkpoint would have: computed, never written."""
    data: str | None = None
    """As it was asked for; None with a source: the bundled stories."""
    source: str | None = None
    """What it is called. None: the scheme needs no data."""
    data_fingerprint: str | None = None
    column: str | None = None
    samples: int | None = None
    max_seq_length: int | None = None
    """Tokens of a sample, at most."""
    seed: int | None = None
    tokens: int | None = None
    """That the model was shown."""
    token_ids_sha256: str | None = None
    targets: tuple[str, ...] = ("Linear",)
    ignore: tuple[str, ...] = ()
    """Beside what is ignored by default."""
    default_ignore: bool = True
    weights: int | None = None
    """Tensors that were rounded. None: the record is older than this number."""
    llm_compressor: str | None = None
    """Its version, where its modifiers prepared the weights."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One evaluation of one checkpoint."""

    id: str
    """The date in the names of its files."""
    label: str
    created: str
    """ISO 8601, UTC."""
    model: ModelFacts
    tokenizer_sha256: str | None
    chat_template_sha256: str | None
    """None without a chat template in the prompts."""
    settings: Settings
    executed_as: Execution
    executed_by: str | None
    """Kernel or class that says so."""
    tasks: Mapping[str, TaskFacts]
    groups: Mapping[str, tuple[str, ...]]
    asked_tasks: tuple[str, ...]
    """As the user named them."""
    speed: Speed
    hardware: str
    gpus: tuple[str, ...]
    fidelity: FidelityFacts | None
    results: str
    """File name of lm-eval's results."""
    resumed: bool
    """Whether answers of a run that was cut off are among its own."""
    notes: tuple[str, ...] = ()
    """What else a reader must know, such as a batch made smaller when memory ran out."""
    simulated: SimulationFacts | None = None
    """None: the checkpoint was run as it is. `model` is the checkpoint that is there, whatever was rounded in it."""
    fp8_version: str = ""
    version: int = RECORD_VERSION


def record_name(run: str) -> str:
    """Name the file of a run's record."""
    return f"run_{run}.json"


def read_record(path: Path) -> RunRecord:
    """Read a record. Raises BadInput for a file that is none, is cut short, or is of a later version."""
    hint = f"remove it if it is of no use: {path}"
    try:
        if (size := path.stat().st_size) > MAX_RECORD_BYTES:
            raise BadInput(f"`{path}` is {size:,} bytes long, which no record of a run is", hint=hint)
        fields = json.loads(path.read_bytes().decode(), parse_constant=_refuse_constant)
    except OSError as problem:
        raise BadInput(f"`{path}` cannot be read: {problem.strerror or problem}") from problem
    except (ValueError, RecursionError) as problem:
        reason = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise BadInput(f"`{path}` is no record of a run: {reason}", hint=hint) from None
    version = fields.get("version") if isinstance(fields, dict) else None
    if isinstance(version, int) and version > RECORD_VERSION:
        message = f"`{path}` is a record of version {version}, and this fp8 reads version {RECORD_VERSION}"
        raise BadInput(message, hint="install the fp8 that wrote it, or a later one")
    try:
        return from_json(RunRecord, fields)
    except ValueError as problem:
        raise BadInput(f"`{path}` is no record of a run: {problem}", hint=hint) from None


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write a record into `folder`, whole or not at all, and return its path. Raises OSError where it cannot."""
    path = folder / record_name(record.id)
    write_whole(path, record_text(record).encode())
    return path


def record_text(record: RunRecord) -> str:
    """Return a record as its file holds it."""
    return json.dumps(dataclasses.asdict(record), indent=2, allow_nan=False) + "\n"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing, even after a power cut."""
    fresh = path.with_name(f".{path.name}.part")
    try:
        with fresh.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
