"""The index of a sharded checkpoint against the files and their headers: which tensor lies where, and whether it does.

Every check tells `complain` what it finds and goes on as well as it can; with `refuse` the first complaint ends it.
What is complained of is what readers see differently: transformers takes `model.safetensors` before an index and
knows only files that an index names, vLLM takes the index first and without one every `*.safetensors` file.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from fp8cli.formats.complaints import Complain, Complaint
from fp8cli.formats.safetensors import Header

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"

_SHARD_NAME: Final = re.compile(r"model[^/]*\.safetensors", re.DOTALL)

# What lies in a folder without `model.safetensors`, in the order of asking: pattern, words, hint.
_INSTEAD: Final = (
    (
        re.compile(r"[^/]*\.safetensors", re.DOTALL),
        "only a differently named file",
        f"if it is the whole checkpoint, rename it to {SINGLE}",
    ),
    (
        re.compile(r".*\.(bin|pt|pth|ckpt|pkl)", re.DOTALL),
        "only PyTorch pickles, which can run code when loaded",
        "where you trust them, convert once: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)",
    ),
    (re.compile(r".*\.gguf", re.DOTALL), "only GGUF", "start from the original safetensors checkpoint"),
    (re.compile(r".*\.onnx", re.DOTALL), "only ONNX", "start from the original safetensors checkpoint"),
)


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file of the checkpoint."""

    name: str
    header: Header


def read_weight_map(index: Mapping[str, object], complain: Complain) -> Mapping[str, str]:
    """Return the file of each tensor as the index has it, without the entries that are no file names."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        hint = "download the index again"
        complain(Complaint(check="index.weight_map", words=f"`{INDEX}` has no `weight_map`", hint=hint, files=(INDEX,)))
        return {}
    places = {tensor: file for tensor, file in weight_map.items() if isinstance(file, str)}
    for tensor, file in weight_map.items() if len(places) < len(weight_map) else ():
        if tensor not in places:
            words = f"`{INDEX}` maps `{tensor}` to {file!r}, not to a file name"
            hint = "download the index again"
            complain(Complaint(check="index.weight_map", words=words, hint=hint, files=(INDEX,)))
    return places


def find_shards(
    label: str, files: Collection[str], weight_map: Mapping[str, str] | None, complain: Complain
) -> tuple[str, ...]:
    """Return the weight files in order: those that the index names and that are there, or the single file.

    weight_map: None without an index; what is there instead of a single file is then returned too.
    """
    present = tuple(name for name in files if _SHARD_NAME.fullmatch(name))
    if weight_map is None:
        if present != (SINGLE,):
            complain(_without_index(label, files, present))
        return present
    named = tuple(sorted(set(weight_map.values())))
    for name in named:
        if not _is_beside(name):
            words = f"`{INDEX}` names `{name}`, which is not a file in the checkpoint's own folder"
            hint = "an index may only name files beside it; do not trust this one"
            complain(Complaint(check="index.path", words=words, hint=hint, files=(name,)))
        elif name not in files:
            words = f"`{name}` is missing: `{INDEX}` names it, the folder lacks it"
            hint = "download that shard; the folder is incomplete"
            complain(Complaint(check="index.missing_shard", words=words, hint=hint, files=(name,)))
    for name in present:
        if name in named:
            continue
        if name == SINGLE:
            words = f"`{label}` has both `{SINGLE}` and an index to other shards: readers disagree on which counts"
            hint = f"remove `{SINGLE}`, or `{INDEX}` and its shards"
            complain(Complaint(check="index.single_beside", words=words, hint=hint, files=(SINGLE,)))
        else:
            words = f"`{name}` lies in the folder but `{INDEX}` does not name it"
            hint = "remove it, or fetch the index that belongs to these shards"
            complain(Complaint(check="index.extra_shard", words=words, hint=hint, files=(name,)))
    return tuple(name for name in named if _is_beside(name) and name in files)


def check_tensors(
    label: str,
    shards: Sequence[Shard],
    weight_map: Mapping[str, str] | None,
    complain: Complain,
    *,
    unread: Collection[str] = (),
) -> None:
    """Check that each tensor lies in one shard, and where the index puts it.

    unread: files whose header could not be read; about tensors that may lie in them nothing is said.
    """
    homes: dict[str, tuple[str, ...]] = {}
    for shard in shards:
        alone = (shard.name,)
        for tensor in shard.header.tensors:
            before = homes.get(tensor.name)
            if before is None:
                homes[tensor.name] = alone
                continue
            words = f"lies in two shards, `{before[-1]}` and `{shard.name}`"
            hint = "readers disagree on which copy counts; download the checkpoint again"
            places = (before[-1], shard.name)
            complain(Complaint(check="index.duplicate", tensor=tensor.name, words=words, hint=hint, files=places))
            homes[tensor.name] = before + alone
    if shards and not homes and not unread:
        words = f"`{label}` holds no tensors"
        hint = "its weight files are well-formed but empty; download the checkpoint again"
        complain(Complaint(check="weights.none", words=words, hint=hint))
    if weight_map:
        _check_places(homes, weight_map, complain, unread)


def check_total_size(index: Mapping[str, object], shards: Sequence[Shard], complain: Complain) -> bool:
    """Check the bytes that the index promises; return whether it promises any."""
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if total is None:
        return False
    actual = sum(tensor.bytes for shard in shards for tensor in shard.header.tensors)
    if total != actual:
        words = f"`{INDEX}` promises {total!r} bytes of tensors, the shards hold {actual}"
        hint = f'if the shards are right, set "total_size" to {actual} in the index'
        complain(Complaint(check="index.total_size", words=words, hint=hint, files=(INDEX,)))
    return True


def _check_places(
    homes: Mapping[str, Sequence[str]], weight_map: Mapping[str, str], complain: Complain, unread: Collection[str]
) -> None:
    for name, promised in weight_map.items():
        lies_in = homes.get(name, ())
        if promised in lies_in or promised in unread:
            continue
        if not lies_in:
            words = f"is missing: `{INDEX}` puts it in `{promised}`, which lacks it"
            hint = "download the index and that shard again; they do not belong together"
            complain(Complaint(check="index.ghost", tensor=name, words=words, hint=hint, files=(promised,)))
        else:
            words = f"lies in `{lies_in[-1]}`, but `{INDEX}` puts it in `{promised}`"
            hint = "download the index again"
            places = (lies_in[-1], promised)
            complain(Complaint(check="index.wrong_shard", tensor=name, words=words, hint=hint, files=places))
    for name, lies_in in homes.items():
        if name not in weight_map:
            words = f"lies in `{lies_in[-1]}`, but `{INDEX}` does not name it"
            hint = "download the index again"
            complain(Complaint(check="index.unlisted", tensor=name, words=words, hint=hint, files=(lies_in[-1],)))


def _is_beside(name: str) -> bool:
    return "\\" not in name and name not in {"", ".."} and PurePosixPath(name).name == name


def _without_index(label: str, files: Collection[str], present: Collection[str]) -> Complaint:
    """Say what the folder holds instead of `model.safetensors` alone."""
    if len(present) > 1:
        words = f"`{label}` has {len(present)} files `model*.safetensors` but no `{INDEX}`"
        hint = "download the index too; without it none can tell whether a shard is missing"
        return Complaint(check="index.absent", words=words, hint=hint, files=tuple(present))
    for pattern, what, hint in _INSTEAD:
        found = next((name for name in files if pattern.fullmatch(name)), None)
        if found is not None:
            words = f"`{label}` has no `{SINGLE}` and no index to shards, {what} (`{found}`)"
            return Complaint(check="weights.other", words=words, hint=hint, files=(found,))
    words = f"`{label}` holds no weights: no `{SINGLE}` and no index to shards"
    hint = "point to the folder that holds config.json and the .safetensors files"
    within = _checkpoints_within(files)
    if within:
        hint += f", such as `{within[0]}` below it" + (f", one of {len(within)}" if len(within) > 1 else "")
    return Complaint(check="weights.none", words=words, hint=hint)


def _checkpoints_within(files: Collection[str]) -> tuple[str, ...]:
    """Name the folders below that look like checkpoints: those with config.json and weights beside it."""
    ends = (f"/{SINGLE}", f"/{INDEX}")
    weights = {str(PurePosixPath(name).parent) for name in files if name.endswith(ends)}
    return tuple(sorted(folder for folder in weights if f"{folder}/config.json" in files))
