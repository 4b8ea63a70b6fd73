"""A model folder: config.json, index, shards and side files, opened and checked without reading a weight.

`open_checkpoint` works on anything that can list files, read a small one, and read a shard's header: a local
folder (`LocalFolder` here) or a Hub repository. It accepts what transformers and vLLM agree on and refuses what
they would read differently: shards without an index, a tensor in two shards, an index that names a shard which
lacks the tensor, an index beside a single file, a path that leads out of the folder.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final, NoReturn, Protocol

from fp8cli.errors import BadInput
from fp8cli.formats.impostor import SNIFF_BYTES, refuse_impostor
from fp8cli.formats.safetensors import Header, TensorInfo, read_header

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
MAX_JSON_BYTES: Final = 200_000_000

_SHARD_NAME: Final = re.compile(r"model[^/]*\.safetensors", re.DOTALL)
# Other copies of the weights that repositories carry; none of them belongs into a quantized checkpoint.
_OTHER_WEIGHTS: Final = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|onnx|onnx_data|h5|msgpack|ot|tflite|mlmodel|npz|nemo|pkl|pickle)"
    r"|.*\.(bin|safetensors)\.index(\..*)?\.json|flax_model.*|tf_model.*",
    re.IGNORECASE | re.DOTALL,
)
_OTHER_FOLDERS: Final = frozenset({"original", "onnx", "openvino", "metal"})
_NOT_CARRIED: Final = re.compile(r"\..*|.*\.(lock|incomplete|tmp|pyc)", re.DOTALL)

# What lies in a folder without `model.safetensors`, in the order of asking: pattern, words, hint.
_INSTEAD: Final = (
    (
        re.compile(r".*\.safetensors", re.DOTALL),
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


class Folder(Protocol):
    """Where a checkpoint lies. Names are relative, with `/`; nothing here reads a weight."""

    @property
    def label(self) -> str:
        """What messages call the checkpoint: its path or Hub id."""

    def files(self) -> Mapping[str, int]:
        """Every file below the folder, with its size in bytes."""

    def read(self, name: str) -> bytes:
        """Return a small file whole."""

    def header(self, name: str) -> Header:
        """Return the validated safetensors header of one file."""


@dataclass(frozen=True)
class LocalFolder:
    """A checkpoint folder on this machine. Links are followed, but only where they may lead (see `resolve`)."""

    path: Path

    @property
    def label(self) -> str:
        """The path as the user gave it."""
        return str(self.path)

    def files(self) -> Mapping[str, int]:
        """Every file with its size; a dangling link counts as 0 bytes, so that reading it can say so."""
        try:
            return {name: self._size(file) for name, file in self._walk(self.path, PurePosixPath())}
        except FileNotFoundError:
            message = f"`{self.path}` does not exist"
            raise BadInput(message, hint="check the path; a Hub model is named as owner/name") from None
        except NotADirectoryError:
            message = f"`{self.path}` is a file, not the folder of a checkpoint"
            raise BadInput(message, hint=f"point to the folder that holds it: {self.path.parent}") from None
        except PermissionError as problem:
            message = f"`{problem.filename}` cannot be read: permission denied"
            raise BadInput(message, hint=f"chmod -R u+rX {shlex.quote(str(self.path))}") from None
        except OSError as problem:
            message = f"`{self.path}` cannot be read: {problem.strerror or problem}"
            raise BadInput(message) from problem

    def _walk(self, folder: Path, prefix: PurePosixPath) -> Iterator[tuple[str, Path]]:
        for entry in sorted(folder.iterdir()):
            name = prefix / entry.name
            if entry.is_dir():
                # A linked folder is not entered: it may lead anywhere, even back here.
                if not entry.is_symlink() and not entry.name.startswith((".", "__pycache__")):
                    yield from self._walk(entry, name)
            elif entry.is_file() or entry.is_symlink():
                yield str(name), entry

    @staticmethod
    def _size(file: Path) -> int:
        try:
            return file.stat().st_size
        except OSError:
            return 0

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises BadInput if it cannot be read or is far too large for what it is."""
        path = self.resolve(name)
        try:
            if (size := path.stat().st_size) > MAX_JSON_BYTES:
                message = f"`{name}` is {size:,} bytes long, which no such file is"
                raise BadInput(message)
            return path.read_bytes()
        except PermissionError:
            message = f"`{name}` in `{self.path}` cannot be read: permission denied"
            raise BadInput(message, hint=f"chmod u+r {shlex.quote(str(path))}") from None
        except OSError as problem:
            message = f"`{name}` in `{self.path}` cannot be read: {problem.strerror or problem}"
            raise BadInput(message) from problem

    def header(self, name: str) -> Header:
        """Return the header of one shard."""
        return read_header(self.resolve(name), name=name)

    def resolve(self, name: str) -> Path:
        """Return the path of `name`, refusing a link that leads out of the folder or nowhere.

        A Hub cache is made of links from `snapshots/<commit>/` to `blobs/` beside it, and for files that several
        models share on to `blobs/` of the whole cache: those may be followed.
        """
        path = self.path / name
        if not path.is_symlink():
            return path
        root = self.path.resolve()
        allowed = [root]
        if root.parent.name == "snapshots":
            allowed += [root.parent.parent / "blobs", root.parent.parent.parent / "blobs"]
        try:
            target = path.resolve()
        except (OSError, RuntimeError):  # RuntimeError is what Python before 3.13 raises for a circle
            target = path
        if not any(target.is_relative_to(place) for place in allowed):
            message = f"`{name}` links to `{target}`, outside the checkpoint"
            raise BadInput(message, hint="copy the file into the folder if it belongs there")
        if not target.is_file():
            message = f"`{name}` is a link to `{path.readlink()}`, which is not there as a file"
            raise BadInput(message, hint="download the checkpoint again")
        return path


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file of the checkpoint."""

    name: str
    header: Header


@dataclass(frozen=True)
class Checkpoint:
    """A whole, consistent checkpoint, known from its headers. Nothing of it has been read but those."""

    folder: Folder
    config: Mapping[str, object]
    shards: tuple[Shard, ...]
    has_index: bool
    side_files: tuple[str, ...]
    """Files to carry over: tokenizer, templates, licences, code. Relative names."""
    left_behind: tuple[str, ...]
    """Other weight files, which are not carried over."""
    files: Mapping[str, int]

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name, in shard order and then in the order of the data."""
        return {tensor.name: tensor for shard in self.shards for tensor in shard.header.tensors}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(tensor.bytes for shard in self.shards for tensor in shard.header.tensors)


def open_checkpoint(folder: Folder) -> Checkpoint:
    """Open the checkpoint in `folder` and check that its files agree with one another.

    Raises BadInput, in one sentence, for anything that two readers could read differently.
    """
    files = folder.files()
    if not files:
        message = f"`{folder.label}` is empty"
        raise BadInput(message, hint="point to the folder that holds config.json and the .safetensors files")
    index = _read_json_object(folder, INDEX) if INDEX in files else None
    names, weight_map = _shard_names(folder, files, index)
    config = read_config(folder, files)
    shards = tuple(Shard(name, folder.header(name)) for name in names)
    _check_tensors(folder, shards, weight_map)
    if index is not None:
        _check_total_size(index, shards)
    used = {*names, CONFIG, INDEX}
    rest = [name for name in files if name not in used and not _NOT_CARRIED.fullmatch(PurePosixPath(name).name)]
    left = [name for name in rest if _is_other_weight(name)]
    return Checkpoint(
        folder=folder,
        config=config,
        shards=shards,
        has_index=index is not None,
        side_files=tuple(name for name in rest if name not in left),
        left_behind=tuple(left),
        files=files,
    )


def read_config(folder: Folder, files: Mapping[str, int]) -> Mapping[str, object]:
    """Read config.json, which must be a JSON object."""
    if CONFIG not in files:
        message = f"`{folder.label}` has no `{CONFIG}`"
        raise BadInput(
            message, hint="point to the folder of a Hugging Face checkpoint, with config.json beside the weights"
        )
    return _read_json_object(folder, CONFIG)


def _is_other_weight(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(_OTHER_WEIGHTS.fullmatch(path.name)) or path.parts[0] in _OTHER_FOLDERS


def _shard_names(
    folder: Folder, files: Mapping[str, int], index: Mapping[str, object] | None
) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Return the shards in order, and the weight map of the index (empty without one)."""
    present = [name for name in files if _SHARD_NAME.fullmatch(name)]
    if index is None:
        if present == [SINGLE]:
            return (SINGLE,), {}
        if len(present) > 1:
            message = f"`{folder.label}` has {len(present)} files `model*.safetensors` but no `{INDEX}`"
            raise BadInput(message, hint="download the index too; without it none can tell whether a shard is missing")
        _refuse_without_safetensors(folder, files)
    weight_map = _weight_map(index)
    names = tuple(sorted(set(weight_map.values())))
    for name in names:
        if "\\" in name or name in {"", ".."} or PurePosixPath(name).name != name:
            message = f"`{INDEX}` names `{name}`, which is not a file in the checkpoint's own folder"
            raise BadInput(message, hint="an index may only name files beside it; do not trust this one")
        if name not in files:
            message = f"`{name}` is missing: `{INDEX}` names it, the folder lacks it"
            raise BadInput(message, hint="download that shard; the folder is incomplete")
    extra = [name for name in present if name not in names]
    if extra == [SINGLE]:
        message = f"`{folder.label}` has both `{SINGLE}` and an index to other shards: readers disagree on which counts"
        raise BadInput(message, hint=f"remove `{SINGLE}`, or `{INDEX}` and its shards")
    if extra:
        message = f"`{extra[0]}` lies in the folder but `{INDEX}` does not name it"
        raise BadInput(message, hint="remove it, or fetch the index that belongs to these shards")
    return names, weight_map


def _refuse_without_safetensors(folder: Folder, files: Mapping[str, int]) -> NoReturn:
    """Say what the folder holds instead of `model.safetensors`."""
    for pattern, what, hint in _INSTEAD:
        found = next((name for name in files if pattern.fullmatch(name)), None)
        if found is not None:
            message = f"`{folder.label}` has no `{SINGLE}` and no index to shards, {what} (`{found}`)"
            raise BadInput(message, hint=hint)
    message = f"`{folder.label}` holds no weights: no `{SINGLE}` and no index to shards"
    raise BadInput(message, hint="point to the folder that holds config.json and the .safetensors files")


def _weight_map(index: Mapping[str, object]) -> Mapping[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        message = f"`{INDEX}` has no `weight_map`"
        raise BadInput(message, hint="download the index again")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            message = f"`{INDEX}` maps `{tensor}` to {shard!r}, not to a file name"
            raise BadInput(message, hint="download the index again")
    return weight_map


def _check_tensors(folder: Folder, shards: tuple[Shard, ...], weight_map: Mapping[str, str]) -> None:
    home: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.header.tensors:
            if tensor.name in home:
                message = f"`{tensor.name}` lies in two shards, `{home[tensor.name]}` and `{shard.name}`"
                raise BadInput(message, hint="readers disagree on which copy counts; download the checkpoint again")
            home[tensor.name] = shard.name
    if not home:
        message = f"`{folder.label}` holds no tensors"
        raise BadInput(message, hint="its weight files are well-formed but empty; download the checkpoint again")
    if not weight_map:
        return
    for name, promised in weight_map.items():
        if name not in home:
            message = f"`{name}` is missing: `{INDEX}` puts it in `{promised}`, which lacks it"
            raise BadInput(message, hint="download the index and that shard again; they do not belong together")
        if home[name] != promised:
            message = f"`{name}` lies in `{home[name]}`, but `{INDEX}` puts it in `{promised}`"
            raise BadInput(message, hint="download the index again")
    for name, actual in home.items():
        if name not in weight_map:
            message = f"`{name}` lies in `{actual}`, but `{INDEX}` does not name it"
            raise BadInput(message, hint="download the index again")


def _check_total_size(index: Mapping[str, object], shards: tuple[Shard, ...]) -> None:
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if total is None:
        return
    actual = sum(tensor.bytes for shard in shards for tensor in shard.header.tensors)
    if total != actual:
        message = f"`{INDEX}` promises {total!r} bytes of tensors, the shards hold {actual}"
        raise BadInput(message, hint=f'if the shards are right, set "total_size" to {actual} in the index')


def _read_json_object(folder: Folder, name: str) -> Mapping[str, object]:
    data = folder.read(name)
    try:
        # Decoded here, because json.loads would also take UTF-16 and a byte order mark, which transformers does not.
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as problem:
        refuse_impostor(data[:SNIFF_BYTES], name=name, expected="JSON")
        reason = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        message = f"`{name}` in `{folder.label}` is not valid JSON: {reason}"
        raise BadInput(message, hint="download that file again") from None
    if not isinstance(value, dict):
        message = f"`{name}` in `{folder.label}` is not a JSON object"
        raise BadInput(message, hint="download that file again")
    return value
