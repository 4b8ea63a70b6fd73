"""The weight files of a checkpoint: every header, and the index against them.

All `*.safetensors` files beside config.json are looked at, not only those that a loader would take, because
loaders do not agree on which these are. The tensors are those of the files that vLLM loads: what the index names,
else everything that is there.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.inspection.survey_index import Consequences, about_index, check_sizes, order_of_vllm
from fp8cli.core.inspection.verdicts import counted, judge, not_checked, passed
from fp8cli.errors import BadInput, Fp8Error
from fp8cli.formats.checkpoint import LocalFile, read_json_object
from fp8cli.formats.complaints import Complain, Complaint, Fault
from fp8cli.formats.safetensors import Header, TensorInfo
from fp8cli.formats.shard_index import INDEX, SINGLE, Shard, check_tensors, find_shards, read_weight_map
from fp8cli.formats.sources import Elsewhere, Source

_WEIGHTS: Final = re.compile(r"[^/]*\.safetensors", re.DOTALL)
_HEADER_CHECKS: Final = ("file.readable", "file.link", "file.impostor", "file.header", "header.duplicate")
_SIZE_CHECKS: Final = ("file.cut_short", "file.surplus", "file.layout")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor and the file that it lies in. Offsets in `info` count from the start of the file."""

    name: str
    file: str
    info: TensorInfo
    stride: int | None = None
    """Not None for a matrix that is stored as its transpose within a larger one; see core.model.fused."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What the weight files hold."""

    headers: Mapping[str, Header]
    tensors: Mapping[str, StoredTensor]
    findings: tuple[Finding, ...]


@dataclass(kw_only=True)
class _Read:
    """What came of reading the headers."""

    headers: dict[str, Header] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    """Files that are there and whose header could not be read."""
    not_fetched: list[Finding] = field(default_factory=list)
    """Those of them that the network kept back."""


def examine_weights(source: Source, files: Mapping[str, int]) -> Weights:
    """Read the index and every header, and hold them against each other. Never raises for what is damaged."""
    complaints: list[Complaint] = []
    complain = complaints.append
    index, about_json = _read_index(source, files)
    weight_map = None if index is None else read_weight_map(index, complain)
    # Beside an index that says nothing, a folder without a usable one is no second fault.
    named = _named_files(source, files, weight_map or None, _ignore if about_json or weight_map == {} else complain)
    candidates = tuple(dict.fromkeys((*named, *_files_beside(source, files))))
    read = _read_headers(source, candidates, complain)
    loaded = named if weight_map else _loaded_without_index(candidates)
    _check_beside(loaded, candidates, has_index=INDEX in files, complain=complain)
    missing = frozenset((weight_map or {}).values()) - frozenset(named)
    shards = [Shard(name, read.headers[name]) for name in sorted(loaded) if name in read.headers]
    check_tensors(source.label, shards, weight_map, complain, unread={*read.unread, *missing})
    is_whole = not read.unread and not missing
    sizes = check_sizes(index, shards, complain, is_whole=is_whole) if weight_map and index is not None else ()
    faults = (*about_json, *judge(complaints, Consequences(shards, weight_map)), *read.not_fetched)
    return Weights(
        headers=read.headers,
        tensors=_tensors(shards),
        findings=(
            *faults,
            *_about_headers(candidates, read, frozenset(finding.check for finding in faults)),
            *about_index(source, shards, faults, has_index=INDEX in files, is_whole=is_whole),
            *sizes,
        ),
    )


def read_json(source: Source, name: str, check: str) -> tuple[Mapping[str, object] | None, tuple[Finding, ...]]:
    """Read a JSON object, or say why it cannot be read; `check` is what a broken one fails."""
    try:
        return read_json_object(source, name), ()
    except BadInput as problem:
        found = problem.check if isinstance(problem, Fault) and problem.check != "file.json" else check
        return None, judge([Complaint(check=found, words=problem.message, hint=problem.hint, files=(name,))])
    except Fp8Error as problem:
        return None, (not_checked(check, problem.message, subject=name, remedy=problem.hint),)


def _read_index(source: Source, files: Mapping[str, int]) -> tuple[Mapping[str, object] | None, tuple[Finding, ...]]:
    if INDEX not in files or isinstance(source, LocalFile):
        return None, ()
    return read_json(source, INDEX, "index.json")


def _named_files(
    source: Source, files: Mapping[str, int], weight_map: Mapping[str, str] | None, complain: Complain
) -> tuple[str, ...]:
    """Return the files that the index names and that are there; without an index, those called model*.safetensors."""
    if isinstance(source, LocalFile):
        return tuple(files)
    return find_shards(source.label, files, weight_map, complain)


def _files_beside(source: Source, files: Mapping[str, int]) -> Iterator[str]:
    if not isinstance(source, LocalFile):
        yield from (name for name in files if _WEIGHTS.fullmatch(name))


def _ignore(_: Complaint) -> None:
    """Take no notice."""


def _read_headers(source: Source, names: Sequence[str], complain: Complain) -> _Read:
    if isinstance(source, Elsewhere):
        source.fetch_headers(names)
    read = _Read()
    for name in names:
        try:
            read.headers[name] = source.header(name, complain)
        except BadInput as problem:
            read.unread.append(name)
            check = problem.check if isinstance(problem, Fault) else "file.header"
            complain(Complaint(check=check, words=problem.message, hint=problem.hint, files=(name,)))
        except Fp8Error as problem:
            read.unread.append(name)
            reason = not_checked("file.header", problem.message, subject=name, remedy=problem.hint)
            read.not_fetched.append(reason)
    return read


def _loaded_without_index(candidates: Sequence[str]) -> tuple[str, ...]:
    """Return what vLLM loads of a folder without an index: all that is there, in Hugging Face's format first."""
    return tuple(name for name in candidates if not _is_consolidated(name)) or tuple(candidates)


def _is_consolidated(name: str) -> bool:
    """Whether a name is of Mistral's own format, whose files hold the same weights under other names."""
    return name.startswith("consolidated")


def _check_beside(loaded: Sequence[str], candidates: Sequence[str], *, has_index: bool, complain: Complain) -> None:
    """Complain of weight files that vLLM loads besides or instead of those that transformers reads."""
    for name in candidates:
        if _is_consolidated(name) and name not in loaded:
            words = f"`{name}` lies beside the weights: vLLM loads it instead of them, transformers does not"
            hint = "remove it, or serve with --load-format safetensors"
        elif not has_index and SINGLE in loaded and not name.startswith("model"):
            words = f"`{name}` lies beside `{SINGLE}`: vLLM loads both, transformers only `{SINGLE}`"
            hint = "remove it, or move it into a folder of its own"
        else:
            continue
        complain(Complaint(check="weights.beside", words=words, hint=hint, files=(name,)))


def _tensors(shards: Sequence[Shard]) -> Mapping[str, StoredTensor]:
    """Return every tensor, file by file; of several copies the one that vLLM reads last."""
    return {
        info.name: StoredTensor(name=info.name, file=shard.name, info=info)
        for shard in sorted(shards, key=lambda shard: order_of_vllm(shard.name))
        for info in shard.header.tensors
    }


def _about_headers(candidates: Sequence[str], read: _Read, faults: frozenset[str]) -> Iterator[Finding]:
    """Say that the files are sound, where they are, and what is not known where they cannot be read."""
    if not candidates:
        return
    if not read.unread and faults.isdisjoint(_HEADER_CHECKS):
        yield passed("file.header", f"{counted(len(candidates), 'header')} read, well-formed", count=len(candidates))
    if read.unread:
        reason = f"the headers of {len(read.unread):,} of {counted(len(candidates), 'weight file')} cannot be read"
        yield not_checked("file.size", reason)
    elif faults.isdisjoint(_SIZE_CHECKS):
        found = f"{counted(len(candidates), 'weight file')}: no byte missing, unused or used twice"
        yield passed("file.size", found, count=len(candidates))
