"""A calibration: a checkpoint and texts in, the scales that need data out, with the facts about how they were found.

llm-compressor's real `oneshot` finds them, in a process of its own (`calibrator`). Its folder keeps the result: the
same request in the same folder is answered from there, so that a run that was cut off later need not calibrate again.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from fp8cli.calibrator.protocol import EVENTS, FACTS, LOG, OFFLOAD, SCALES, CalibrationJob, write_job
from fp8cli.core.calibrating.calibration_events import (
    CalibrationBegins,
    CalibrationEvent,
    LayerDone,
    calibration_event,
)
from fp8cli.core.calibrating.llm_compressor import GENTLE, forced_environment, state_of
from fp8cli.core.processes.supervision import Program, run_program
from fp8cli.core.sampling.data import SAMPLES_DEFAULT, SEED_DEFAULT, CalibrationData, read_calibration
from fp8cli.errors import CannotRun, UsageError
from fp8cli.formats.safetensors import read_header
from fp8cli.formats.typed_json import from_json
from fp8cli.schemes import KvCache, Scheme

__all__ = [
    "Calibrated",
    "CalibrationBegins",
    "CalibrationEvent",
    "CalibrationFacts",
    "CalibrationRequest",
    "LayerDone",
    "Scale",
    "calibrate",
]

LENGTH_DEFAULT: Final = 2048
"""Tokens of a sample."""

STALL_SECONDS: Final = 3600.0
"""A layer of a large model takes minutes on a processor, and its log says so only now and then."""

TORCH_DTYPES: Final[Mapping[str, str]] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""torch's names of the model dtypes, by their safetensors tags."""

CALIBRATOR: Final[Program[CalibrationEvent]] = Program(
    name="calibration",
    module="fp8cli.calibrator.main",
    events=EVENTS,
    event_of=calibration_event,
    log=LOG,
    results=(FACTS, SCALES),
    memory_hint="take shorter texts, --max-seq-length 1024, or calibrate where there is more memory",
    environment=GENTLE,
)

_KEY: Final = "calibrated.key"
"""The file that says which request the result in a folder is of."""


class Runner(Protocol):
    """What `run_program` is, on this machine or elsewhere."""

    def __call__(
        self,
        program: Program[CalibrationEvent],
        folder: Path,
        *,
        python: Path,
        notify: Callable[[CalibrationEvent], None],
        stall_seconds: float,
        forced: Mapping[str, str],
        environ: Mapping[str, str],
    ) -> None:
        """See `core.processes.supervision.run_program`."""


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """What to calibrate, and with what."""

    model: Path
    """Folder of the checkpoint, with its tokenizer."""
    dtype: str
    """Safetensors tag of the model dtype, as `Plan.dtype` has it."""
    scheme: Scheme | None
    """None: the KV cache alone."""
    kv_cache: KvCache | None
    folder: Path
    """To work in; what is found, and the log, stay there."""
    targets: tuple[str, ...] = ("Linear",)
    ignore: tuple[str, ...] = ("lm_head",)
    """As `oneshot` takes both: names of classes or modules, or `re:` and a regular expression."""
    wanted: tuple[str, ...] | None = None
    """Names of the scales that a plan needs: one that is not found is an error, and others that `oneshot` finds, of a
    router that a name of transformers' own hid from `ignore`, are left out. None: all that there are."""
    data: str | None = None
    """See `read_calibration`; so for `column`, `samples` and `seed`."""
    column: str | None = None
    samples: int = SAMPLES_DEFAULT
    seed: int = SEED_DEFAULT
    max_seq_length: int = LENGTH_DEFAULT
    """Tokens of a sample; what is longer is cut."""
    chat_template: str | None = None
    """For rows that are conversations, in the place of the tokenizer's own. Texts never go through a template."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    offload: bool = False
    """Whether the weights stay in the checkpoint's shards, and are read as the samples reach their part."""
    processes: int = 1
    """Each with its share of the samples, and its GPU where there are any; more than one needs `offload`."""
    placed: bool = False
    """Whether whoever runs the calibrator starts all of them, on hosts that share the folders; needs `offload`."""
    python: Path | None = None
    """An interpreter with llm-compressor; None: this one."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One tensor that calibration found."""

    dtype: str
    """Safetensors tag."""
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, kw_only=True)
class CalibrationFacts:
    """How the scales were found."""

    source: str
    """The data, as it was named."""
    data_fingerprint: str
    """See `CalibrationData.fingerprint`."""
    column: str | None
    samples: int
    tokens: int
    max_seq_length: int
    """At most so many tokens a sample: what was asked for, or the positions that the model has."""
    conversations: bool
    """Whether rows went through the chat template."""
    seed: int
    token_ids_sha256: str
    """Of the JSON of all token ids, `[[1,5],[1,7]]`: equal for two runs that showed the model the same."""
    versions: Mapping[str, str]
    """Of llmcompressor, compressed-tensors, transformers, torch, datasets."""
    seconds: float
    peak_memory_bytes: int
    """Of all processes together."""
    peak_gpu_memory_bytes: int | None
    """None without a GPU."""
    notes: tuple[str, ...]
    dead: tuple[str, ...] = ()
    """Names of scales of values that were 0 in every sample, so that nothing is known of their range."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What a calibration came to."""

    scales: Mapping[str, Scale]
    """By their names in the checkpoint."""
    facts: CalibrationFacts
    log: Path
    known: bool
    """Whether an earlier run had found them."""
    nodes: tuple[str, ...] = ()
    """Of a cluster, the one that each process was on; none where all were on this machine."""

    @property
    def values(self) -> Mapping[str, bytes]:
        """The bytes of every scale, as the engine takes them."""
        return {name: scale.data for name, scale in self.scales.items()}


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What the calibrator writes into its facts."""

    scales: int
    dead: tuple[str, ...]
    samples: int
    tokens: int
    max_seq_length: int
    conversations: bool
    token_ids_sha256: str
    versions: Mapping[str, str]
    seconds: float
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None


def calibrate(
    request: CalibrationRequest,
    notify: Callable[[CalibrationEvent], None],
    *,
    stall_seconds: float = STALL_SECONDS,
    environ: Mapping[str, str] = os.environ,
    run: Runner = run_program,
) -> Calibrated:
    """Find the scales that a scheme or a KV cache needs data for.

    run: what lets the calibrator do the job in its folder; another than the usual one where it is placed elsewhere.

    Raises UsageError and BadInput for data that is of no use, before a model is loaded; BadInput for a checkpoint that
    cannot be calibrated; CannotRun where this machine does not allow it; Interrupted on Ctrl-C. However it ends, the
    log is kept and no process is left.
    """
    needs_data = request.scheme is not None and request.scheme.needs_calibration
    if not needs_data and request.kv_cache is None:
        raise UsageError("nothing here needs calibration: the scheme takes its activations as they come")
    if request.max_seq_length < 1:
        raise UsageError(f"--max-seq-length is {request.max_seq_length:,}, and a sample has 1 token or more")
    data = read_calibration(
        request.data, model=request.model, column=request.column, samples=request.samples, seed=request.seed
    )
    job = _make_job(request, data)
    key = _key(job, data)
    request.folder.mkdir(parents=True, exist_ok=True)
    if found := _read(request, data, key):
        return found
    (request.folder / _KEY).unlink(missing_ok=True)
    data.hand_over(request.folder)
    python = Path(sys.executable) if request.python is None else request.python
    write_job(job, request.folder)
    try:
        run(
            CALIBRATOR,
            request.folder,
            python=python,
            notify=notify,
            stall_seconds=stall_seconds,
            forced=forced_environment(job.device),
            environ=environ,
        )
    finally:
        shutil.rmtree(request.folder / OFFLOAD, ignore_errors=True)
    # Only now: a key without a result would be an answer to nothing.
    (request.folder / _KEY).write_text(key, encoding="utf-8")
    found = _read(request, data, key)
    if found is None:
        message = "the calibrator's result cannot be read"
        raise CannotRun(message, hint=f"the whole log: {request.folder / LOG}")
    return Calibrated(scales=found.scales, facts=found.facts, log=found.log, known=False)


def _make_job(request: CalibrationRequest, data: CalibrationData) -> CalibrationJob:
    return CalibrationJob(
        model=str(request.model.absolute()),
        dtype=TORCH_DTYPES[request.dtype],
        scheme=None if request.scheme is None else request.scheme.name,
        targets=request.targets,
        ignore=request.ignore,
        kv_cache=request.kv_cache,
        samples=data.request(
            samples=request.samples,
            max_seq_length=request.max_seq_length,
            seed=request.seed,
            chat_template=request.chat_template,
        ),
        device=request.device,
        offload=request.offload,
        processes=request.processes,
        placed=request.placed,
        wanted=request.wanted,
    )


def _key(job: CalibrationJob, data: CalibrationData) -> str:
    # Neither the place of the weights nor the number of processes changes a bit of the scales, nor where they are.
    order = {**asdict(job), "offload": None, "processes": None, "placed": None}
    parts = [order, data.fingerprint, state_of(Path(job.model))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(request: CalibrationRequest, data: CalibrationData, key: str) -> Calibrated | None:
    """Return the result that lies in the folder; None if there is none, or one of another request."""
    folder = request.folder
    try:
        if (folder / _KEY).read_text("utf-8") != key:
            return None
        told = from_json(_Told, json.loads((folder / FACTS).read_bytes()))
    except (OSError, ValueError):
        return None
    scales = _read_scales(folder / SCALES)
    if len(scales) != told.scales:
        return None
    facts = CalibrationFacts(
        source=data.source,
        data_fingerprint=data.fingerprint,
        column=data.column,
        samples=told.samples,
        tokens=told.tokens,
        max_seq_length=told.max_seq_length,
        conversations=told.conversations,
        seed=request.seed,
        token_ids_sha256=told.token_ids_sha256,
        versions=told.versions,
        seconds=told.seconds,
        peak_memory_bytes=told.peak_memory_bytes,
        peak_gpu_memory_bytes=told.peak_gpu_memory_bytes,
        dead=told.dead,
        notes=data.notes,
    )
    return Calibrated(scales=scales, facts=facts, log=folder / LOG, known=True)


def _read_scales(path: Path) -> Mapping[str, Scale]:
    header = read_header(path)
    content = path.read_bytes()
    return {
        each.name: Scale(dtype=each.dtype, shape=each.shape, data=content[each.begin : each.end])
        for each in header.tensors
    }
