"""llm-compressor's result becomes an output of this tool: its tensors, in the shards and the order of the plan.

llm-compressor cuts shards by its own size and in its own order. The plan knows where each tensor belongs: where the
source has it, its scales beside it. What was saved must be what was planned, name for name and shape for shape; where
it is not, something was quantized that should not be, or was not without a word, and nothing is written.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.compressing.compression import Compressed
from fp8cli.core.quantizing.engine import Progress
from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.errors import BadInput
from fp8cli.formats.safetensors import TensorInfo, read_header
from fp8cli.formats.staging import Staging
from fp8cli.formats.weight_files import copy_range, file_mode

_FP8: Final = "F8_E4M3"
_MAX_NAMED: Final = 3


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A tensor of llm-compressor's result."""

    path: Path
    info: TensorInfo


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What came of it."""

    untouched: tuple[str, ...]
    """Tensors that llm-compressor did not load, such as those of a draft head: taken from the source as they are."""


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A tensor of the output, and where its bytes lie."""

    path: Path
    begin: int
    target: TensorInfo


def read_saved(compressed: Compressed) -> Mapping[str, Saved]:
    """Return the tensors of a result by the names that the source has for them."""
    found = {}
    for path in sorted(compressed.folder.glob("*.safetensors")):
        for info in read_header(path).tensors:
            found[compressed.renamed.get(info.name, info.name)] = Saved(path=path, info=info)
    return found


def adopt(
    plan: Plan,
    saved: Mapping[str, Saved],
    sources: Callable[[str], Path],
    staging: Staging,
    notify: Callable[[Progress], None],
) -> Adopted:
    """Write every shard of the plan from what llm-compressor saved.

    sources: from a source shard's name to its file. Raises BadInput naming the tensors that differ from the plan,
    before anything is written, or OSError when the disk does not take it.
    """
    planned = {tensor.weight.name: tensor for tensor in plan.tensors if tensor.weight is not None}
    wanted = {info.name: info for shard in plan.shards for info in shard.header.tensors}
    untouched = tuple(name for name in wanted if name not in saved and _is_copied(planned.get(name)))
    _refuse_differences(wanted, saved, untouched)
    for shard in plan.shards:
        pieces = []
        for info in shard.header.tensors:
            if info.name in untouched:
                source = planned[info.name]
                pieces.append(_Piece(path=sources(source.source_shard), begin=source.source.begin, target=info))
            else:
                pieces.append(_Piece(path=saved[info.name].path, begin=saved[info.name].info.begin, target=info))
        mode = file_mode(sources(shard.name))
        descriptor = os.open(staging.checkpoint / shard.name, os.O_RDWR | os.O_CREAT, mode)
        try:
            os.truncate(descriptor, shard.header.file_bytes)
            os.pwrite(descriptor, shard.head, 0)
            _copy(pieces, descriptor, notify)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return Adopted(untouched=untouched)


def _copy(pieces: Sequence[_Piece], target: int, notify: Callable[[Progress], None]) -> None:
    files: dict[Path, int] = {}
    try:
        for piece in pieces:
            if piece.path not in files:
                files[piece.path] = os.open(piece.path, os.O_RDONLY)
            copy_range(files[piece.path], target, piece.begin, piece.target.begin, piece.target.bytes)
            notify(Progress(tensor=piece.target.name, bytes_read=piece.target.bytes, tensor_finished=True))
    finally:
        for descriptor in files.values():
            os.close(descriptor)


def _is_copied(tensor: PlannedTensor | None) -> bool:
    return tensor is not None and tensor.action == "copy"


def _refuse_differences(wanted: Mapping[str, TensorInfo], saved: Mapping[str, Saved], untouched: Sequence[str]) -> None:
    both = [name for name in wanted if name in saved]
    kept = [name for name in both if wanted[name].dtype == _FP8 != saved[name].info.dtype]
    if kept:
        message = f"llm-compressor did not quantize {_named(kept)}, and says nothing of it"
        hint = "their class may be none that `Linear` names: use --engine streaming, which goes by tensors"
        raise BadInput(message, hint=hint)
    more = [name for name in both if wanted[name].dtype != _FP8 == saved[name].info.dtype]
    if more:
        message = f"llm-compressor quantized {_named(more)}, which should stay as they are"
        raise BadInput(message, hint="name them with --ignore as llm-compressor calls them, or use --engine streaming")
    missing = [name for name in wanted if name not in saved and name not in untouched]
    if missing:
        message = f"llm-compressor's result lacks {_named(missing)}"
        raise BadInput(message, hint="use --engine streaming, or take more samples where a scale is missing")
    other = [name for name in both if not _alike(wanted[name], saved[name].info)]
    if other:
        one, two = wanted[other[0]], saved[other[0]].info
        message = f"llm-compressor made `{one.name}` {two.dtype} {list(two.shape)}, not {one.dtype} {list(one.shape)}"
        raise BadInput(message, hint="use --engine streaming")
    new = [name for name in saved if name not in wanted]
    if new:
        message = f"llm-compressor's result has {_named(new)}, for which the source has no place"
        raise BadInput(message, hint="use --engine streaming")


def _alike(one: TensorInfo, other: TensorInfo) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape)


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_MAX_NAMED])
    return shown + (f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else "")
