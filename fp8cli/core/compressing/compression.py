"""A compression: a checkpoint, perhaps texts, and what is to be done in; llm-compressor's own result out.

Its real `oneshot` runs in a process of its own (`calibrator.compressing`). As with a calibration, the folder keeps the
result, and the same request in the same folder is answered from there.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fp8cli.calibrator import compressing_protocol as protocol
from fp8cli.core.calibrating.calibration import STALL_SECONDS, TORCH_DTYPES, CalibrationFacts
from fp8cli.core.calibrating.llm_compressor import GENTLE, forced_environment, state_of
from fp8cli.core.calibrating.ordering import environment_of, kind_of_device
from fp8cli.core.compressing.compression_events import CompressionEvent, compression_event
from fp8cli.core.compressing.ordering import CompressionOrder
from fp8cli.core.processes.supervision import Program, run_program
from fp8cli.errors import CannotRun
from fp8cli.formats.typed_json import from_json

COMPRESSOR: Final[Program[CompressionEvent]] = Program(
    name="llm-compressor",
    module="fp8cli.calibrator.compressing",
    events=protocol.EVENTS,
    event_of=compression_event,
    log=protocol.LOG,
    results=(protocol.FACTS,),
    memory_hint="take shorter texts, --max-seq-length 1024, use --engine streaming, or go where there is more memory",
    environment=GENTLE,
)

_KEY: Final = "compressed.key"
"""The file that says which request the result in a folder is of."""


@dataclass(frozen=True, kw_only=True)
class CompressionRequest:
    """What to compress, and how."""

    order: CompressionOrder
    model: Path
    """Folder of the checkpoint."""
    dtype: str
    """Safetensors tag of the model dtype."""
    folder: Path
    """To work in; the result and the log stay there."""
    targets: tuple[str, ...]
    ignore: tuple[str, ...]
    """As `oneshot` takes both: names of classes or modules, or `re:` and a regular expression."""
    device: str
    """As --device has it."""


@dataclass(frozen=True, kw_only=True)
class CompressionFacts:
    """How it was done."""

    modifiers: tuple[str, ...]
    """llm-compressor's classes, in the order in which they acted."""
    versions: Mapping[str, str]
    """Of llmcompressor, compressed-tensors, transformers, torch, datasets."""
    seconds: float
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None
    """None without a GPU."""
    data: CalibrationFacts | None
    """None where no data was needed."""


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """What came of it."""

    folder: Path
    """The checkpoint as llm-compressor left it."""
    renamed: Mapping[str, str]
    """Names of tensors in it, where the source has others, and those."""
    facts: CompressionFacts
    log: Path
    known: bool
    """Whether an earlier run had done it."""


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What the compressor writes into its facts."""

    modifiers: tuple[str, ...]
    renamed: Mapping[str, str]
    samples: int
    tokens: int
    max_seq_length: int
    conversations: bool
    token_ids_sha256: str
    versions: Mapping[str, str]
    seconds: float
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None


def compress(
    request: CompressionRequest,
    notify: Callable[[CompressionEvent], None],
    *,
    stall_seconds: float = STALL_SECONDS,
) -> Compressed:
    """Let llm-compressor quantize a checkpoint.

    Raises BadInput for data, a recipe or a checkpoint that it cannot take; CannotRun where this machine does not allow
    it; Interrupted on Ctrl-C. However it ends, the log is kept and no process is left.
    """
    job = make_job(request)
    key = _key(job, request)
    folder = request.folder
    folder.mkdir(parents=True, exist_ok=True)
    if found := _read(request, key, known=True):
        return found
    (folder / _KEY).unlink(missing_ok=True)
    for name in (protocol.RESULT, protocol.WEIGHTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    order = request.order
    if order.data is not None:
        order.data.seen.hand_over(folder)
    if order.recipe is not None:
        (folder / protocol.RECIPE).write_text(order.recipe.text, encoding="utf-8")
    protocol.write_job(job, folder)
    run_program(
        COMPRESSOR,
        folder,
        python=Path(sys.executable) if order.python is None else order.python,
        notify=notify,
        stall_seconds=stall_seconds,
        forced=forced_environment(job.device),
        environ=environment_of(request.device),
    )
    # Only now: a key without a result would be an answer to nothing.
    (folder / _KEY).write_text(key, encoding="utf-8")
    found = _read(request, key, known=False)
    if found is None:
        message = "llm-compressor's result cannot be read"
        raise CannotRun(message, hint=f"the whole log: {folder / protocol.LOG}")
    return found


def make_job(request: CompressionRequest) -> protocol.CompressionJob:
    """Return what the compressor is told."""
    order, choice, data = request.order, request.order.choice, request.order.data
    samples = None
    if data is not None:
        samples = data.seen.request(
            samples=data.samples, max_seq_length=data.max_seq_length, seed=data.seed, chat_template=None
        )
    return protocol.CompressionJob(
        model=str(request.model.absolute()),
        dtype=TORCH_DTYPES[request.dtype],
        device=kind_of_device(request.device),
        offload=order.offload == "disk",
        recipe=order.recipe is not None,
        scheme=None if choice.scheme is None else choice.scheme.name,
        targets=request.targets,
        ignore=request.ignore,
        kv_cache=choice.kv_cache,
        smoothing=choice.modifiers.smoothing,
        awq=choice.modifiers.awq,
        gptq=choice.modifiers.gptq,
        samples=samples,
        data_is_named=order.data_is_named,
    )


def _key(job: protocol.CompressionJob, request: CompressionRequest) -> str:
    order = request.order
    recipe = None if order.recipe is None else order.recipe.text
    # The place of the weights changes no bit of them.
    parts = [
        {**asdict(job), "offload": None},
        None if order.data is None else order.data.seen.fingerprint,
        recipe,
        state_of(Path(job.model)),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(request: CompressionRequest, key: str, *, known: bool) -> Compressed | None:
    """Return the result that lies in the folder; None if there is none, or one of another request."""
    folder = request.folder
    try:
        if (folder / _KEY).read_text("utf-8") != key:
            return None
        told = from_json(_Told, json.loads((folder / protocol.FACTS).read_bytes()))
    except (OSError, ValueError):
        return None
    facts = CompressionFacts(
        modifiers=told.modifiers,
        versions=told.versions,
        seconds=told.seconds,
        peak_memory_bytes=told.peak_memory_bytes,
        peak_gpu_memory_bytes=told.peak_gpu_memory_bytes,
        data=_data_facts(told, request.order),
    )
    return Compressed(
        folder=folder / protocol.RESULT, renamed=told.renamed, facts=facts, log=folder / protocol.LOG, known=known
    )


def _data_facts(told: _Told, order: CompressionOrder) -> CalibrationFacts | None:
    if order.data is None or told.samples == 0:
        return None
    seen = order.data.seen
    return CalibrationFacts(
        source=seen.source,
        data_fingerprint=seen.fingerprint,
        column=seen.column,
        samples=told.samples,
        tokens=told.tokens,
        max_seq_length=told.max_seq_length,
        conversations=told.conversations,
        seed=order.data.seed,
        token_ids_sha256=told.token_ids_sha256,
        versions=told.versions,
        seconds=told.seconds,
        peak_memory_bytes=told.peak_memory_bytes,
        peak_gpu_memory_bytes=told.peak_gpu_memory_bytes,
        dead=(),
        notes=seen.notes,
    )
