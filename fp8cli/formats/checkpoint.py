"""A model folder: config.json, index, shards and side files, opened and checked without reading a weight.

`open_checkpoint` works on anything that can list files, read a small one, and read a shard's header: a local
folder (`LocalFolder` here) or a Hub repository. It accepts what transformers and vLLM agree on and refuses what
they would read differently: shards without an index, a tensor in two shards, an index that names a shard which
lacks the tensor, an index beside a single file, a path that leads out of the folder.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from fp8cli.errors import BadInput
from fp8cli.formats.complaints import Complain, Complaint, Fault, refuse
from fp8cli.formats.impostor import SNIFF_BYTES, refuse_impostor
from fp8cli.formats.safetensors import Header, TensorInfo, read_header
from fp8cli.formats.shard_index import INDEX, Shard, check_tensors, check_total_size, find_shards, read_weight_map

CONFIG: Final = "config.json"
MAX_JSON_BYTES: Final = 200_000_000

# Other copies of the weights that repositories carry; none of them belongs into a quantized checkpoint.
_OTHER_WEIGHTS: Final = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|onnx|onnx_data|h5|msgpack|ot|tflite|mlmodel|npz|nemo|pkl|pickle)"
    r"|.*\.(bin|safetensors)\.index(\..*)?\.json|flax_model.*|tf_model.*",
    re.IGNORECASE | re.DOTALL,
)
_OTHER_FOLDERS: Final = frozenset({"original", "onnx", "openvino", "metal"})
_NOT_CARRIED: Final = re.compile(r"\..*|.*\.(lock|incomplete|tmp|pyc)", re.DOTALL)


class Folder(Protocol):
    """Where a checkpoint lies. Names are relative, with `/`; nothing here reads a weight."""

    @property
    def label(self) -> str:
        """What messages call the checkpoint: its path or Hub id."""

    def files(self) -> Mapping[str, int]:
        """Every file below the folder, with its size in bytes."""

    def read(self, name: str) -> bytes:
        """Return a small file whole."""

    def header(self, name: str, complain: Complain = refuse) -> Header:
        """Return the validated safetensors header of one file; `complain` as in formats.safetensors."""


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
        return self.list_files(refuse)

    def list_files(self, complain: Complain) -> Mapping[str, int]:
        """Return what `files` does; `complain` is told of folders below that cannot be listed."""
        try:
            return {name: self._size(file) for name, file in self._walk(complain)}
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

    def _walk(self, complain: Complain) -> Iterator[tuple[str, Path]]:
        """Yield every file with its name, in the order of the names. No recursion: folders may lie very deep."""
        waiting = [iter(self._entries(self.path, complain))]
        while waiting:
            entry, is_folder = next(waiting[-1], (None, False))
            if entry is None:
                waiting.pop()
            elif not is_folder:
                yield str(PurePosixPath(entry.relative_to(self.path))), entry
            # A linked folder is not entered: it may lead anywhere, even back here.
            elif not entry.is_symlink() and not entry.name.startswith((".", "__pycache__")):
                waiting.append(iter(self._entries(entry, complain)))

    def _entries(self, folder: Path, complain: Complain) -> Sequence[tuple[Path, bool]]:
        """Return the files and folders in `folder`, each with whether it is a folder."""
        try:
            entries = [(entry, entry.is_dir()) for entry in sorted(folder.iterdir())]
            return [(entry, is_dir) for entry, is_dir in entries if is_dir or entry.is_file() or entry.is_symlink()]
        except OSError as problem:
            if folder == self.path:
                raise
            reason = "permission denied" if isinstance(problem, PermissionError) else problem.strerror
            words = f"`{problem.filename or folder}` cannot be read: {reason}"
            hint = f"chmod -R u+rX {shlex.quote(str(self.path))}"
            below = str(folder.relative_to(self.path))
            complain(Complaint(check="folder.readable", words=words, hint=hint, files=(below,)))
            return ()

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
            raise Fault("file.readable", message, hint=f"chmod u+r {shlex.quote(str(path))}") from None
        except OSError as problem:
            message = f"`{name}` in `{self.path}` cannot be read: {problem.strerror or problem}"
            raise Fault("file.readable", message) from problem

    def header(self, name: str, complain: Complain = refuse) -> Header:
        """Return the header of one shard."""
        return read_header(self.resolve(name), name=name, complain=complain)

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
            raise Fault("file.link", message, hint="copy the file into the folder if it belongs there")
        if not target.is_file():
            message = f"`{name}` is a link to `{path.readlink()}`, which is not there as a file"
            raise Fault("file.link", message, hint="download the checkpoint again")
        return path


@dataclass(frozen=True)
class LocalFile:
    """One weight file by itself, as a folder that holds nothing else."""

    path: Path

    @property
    def label(self) -> str:
        """The path as the user gave it."""
        return str(self.path)

    def files(self) -> Mapping[str, int]:
        """The file with its size."""
        try:
            return {self.path.name: self.path.stat().st_size}
        except OSError as problem:
            message = f"`{self.path}` cannot be read: {problem.strerror or problem}"
            raise BadInput(message) from problem

    def read(self, name: str) -> bytes:
        """Return the file's bytes."""
        return LocalFolder(self.path.parent).read(name)

    def header(self, name: str, complain: Complain = refuse) -> Header:
        """Return its header."""
        return read_header(self.path, name=name, complain=complain)

    def resolve(self, name: str) -> Path:
        """Return the path: where the user's own link leads is the user's choice."""
        del name
        return self.path


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
    def small_files(self) -> tuple[str, ...]:
        """Every file of it that is no shard: config.json, the index, if there is one, and the side files."""
        return (CONFIG, *((INDEX,) if self.has_index else ()), *self.side_files)

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
    index = read_json_object(folder, INDEX) if INDEX in files else None
    weight_map = None if index is None else read_weight_map(index, refuse)
    names = find_shards(folder.label, files, weight_map, refuse)
    config = read_config(folder, files)
    shards = tuple(Shard(name, folder.header(name)) for name in names)
    check_tensors(folder.label, shards, weight_map, refuse)
    if index is not None:
        check_total_size(index, shards, refuse)
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
    return read_json_object(folder, CONFIG)


def _is_other_weight(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(_OTHER_WEIGHTS.fullmatch(path.name)) or path.parts[0] in _OTHER_FOLDERS


def read_json_object(folder: Folder, name: str) -> Mapping[str, object]:
    """Read a file that must be a JSON object. Raises BadInput with the reason."""
    data = folder.read(name)
    try:
        # Decoded here, because json.loads would also take UTF-16 and a byte order mark, which transformers does not.
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as problem:
        refuse_impostor(data[:SNIFF_BYTES], name=name, expected="JSON")
        reason = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        message = f"`{name}` in `{folder.label}` is not valid JSON: {reason}"
        raise Fault("file.json", message, hint="download that file again") from None
    if not isinstance(value, dict):
        message = f"`{name}` in `{folder.label}` is not a JSON object"
        raise Fault("file.json", message, hint="download that file again")
    return value
