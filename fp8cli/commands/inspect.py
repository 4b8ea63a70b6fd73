"""`fp8 inspect`: what a checkpoint holds, read from its headers in milliseconds.

Request → the files and their headers → the inventory → report. A folder is opened as strictly as `quantize`
opens its source; a folder without config.json, or one .safetensors file, gives the same tables without the
words that only a config can say.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from fp8cli.core.inventory import (
    DtypeRow,
    TensorGroup,
    TensorRow,
    Totals,
    fold_tensors,
    holds_fp8,
    list_tensors,
    sum_by_dtype,
    sum_tensors,
)
from fp8cli.core.quantization import Quantization, mentions_fp8, read_quantization
from fp8cli.errors import BadInput, ExitCode, UsageError
from fp8cli.formats.checkpoint import CONFIG, LocalFolder, open_checkpoint, read_config
from fp8cli.formats.safetensors import Header, read_header

_WEIGHTS = "*.safetensors"


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """What to look at, and how closely."""

    source: Path | None = None
    """A checkpoint folder or one .safetensors file. None looks for one in `start`."""
    details: bool = False
    """List the tensors too, repeated layers folded."""
    full: bool = False
    """List every tensor by itself."""
    start: Path = Path()
    """The folder to look in when no source is given."""


@dataclass(frozen=True, kw_only=True)
class InspectReport:
    """What a checkpoint holds. Sizes in bytes; `share` is a part of 1."""

    name: str
    path: Path
    architecture: str | None
    has_config: bool
    has_fp8_tensors: bool
    quantization: Quantization | None
    dtypes: tuple[DtypeRow, ...]
    total: Totals
    files: int
    """Number of weight files."""
    header_bytes: int
    """What the weight files hold besides tensors."""
    groups: tuple[TensorGroup, ...] | None
    """With `details`, but not `full`: the tensors, repeated ones folded."""
    tensors: tuple[TensorRow, ...] | None
    """With `details` or `full`: every tensor."""

    @property
    def exit_code(self) -> ExitCode:
        """Looking always succeeds; broken input raises."""
        return ExitCode.DONE


@dataclass(frozen=True)
class _Contents:
    """What was opened: its headers, and its config if it has one."""

    headers: Sequence[Header]
    config: Mapping[str, object] | None


def run(request: InspectRequest) -> InspectReport:
    """Read the headers and add them up. Raises UsageError if no source can be guessed, BadInput if it is broken."""
    source = find_checkpoint(request.start) if request.source is None else request.source
    contents = _open(source)
    infos = [tensor for header in contents.headers for tensor in header.tensors]
    rows = list_tensors(infos)
    return InspectReport(
        name=source.resolve().name or str(source),
        path=source,
        architecture=_architecture(contents.config or {}),
        has_config=contents.config is not None,
        has_fp8_tensors=holds_fp8(infos),
        quantization=read_quantization(contents.config or {}),
        dtypes=sum_by_dtype(rows),
        total=sum_tensors(rows),
        files=len(contents.headers),
        header_bytes=sum(header.data_begin for header in contents.headers),
        groups=fold_tensors(rows) if request.details and not request.full else None,
        tensors=rows if request.details or request.full else None,
    )


def find_checkpoint(start: Path) -> Path:
    """Return `start` if it is a checkpoint, else the one FP8 checkpoint directly below it.

    Raises UsageError when there is none, or more than one: the choice is the user's.
    """
    if _is_checkpoint(start):
        return start
    below = [folder for folder in _folders(start) if _is_checkpoint(folder)]
    found = [folder for folder in below if _is_fp8(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"`{folder}`" for folder in found)
        message = f"{len(found)} FP8 checkpoints lie here: {names}"
        raise UsageError(message, hint=f"name one of them: fp8 inspect {quote(str(found[0]))}")
    message = f"`{start.resolve()}` is no checkpoint, and no folder in it is an FP8 checkpoint"
    hint = f"`{below[0]}` is a checkpoint, though not in FP8: fp8 inspect {quote(str(below[0]))}" if below else None
    raise UsageError(message, hint=hint or "name the checkpoint: fp8 inspect PATH")


def _folders(start: Path) -> Iterator[Path]:
    # Hidden folders are caches and unfinished outputs.
    return (entry for entry in sorted(start.iterdir()) if entry.is_dir() and not entry.name.startswith("."))


def _is_checkpoint(folder: Path) -> bool:
    try:
        return (folder / CONFIG).is_file() and any(folder.glob(_WEIGHTS))
    except PermissionError:
        return False


def _is_fp8(folder: Path) -> bool:
    """Whether the config says FP8, or a header does. Broken files say nothing; opening them will."""
    try:
        if mentions_fp8(read_config(LocalFolder(folder), {CONFIG: 0})):
            return True
        return any(holds_fp8(read_header(file).tensors) for file in sorted(folder.glob(_WEIGHTS)))
    except BadInput:
        return False


def _open(source: Path) -> _Contents:
    if source.is_file():
        return _Contents([read_header(source)], None)
    if not source.is_dir():
        message = f"there is no file or folder `{source}`"
        hint = "inspect reads local files; to fetch a model: hf download ORG/MODEL --local-dir DIR"
        raise BadInput(message, hint=hint)
    folder = LocalFolder(source)
    has_config = CONFIG in folder.files()
    checkpoint = open_checkpoint(folder if has_config else _WithoutConfig(source))
    headers = [shard.header for shard in checkpoint.shards]
    return _Contents(headers, checkpoint.config if has_config else None)


class _WithoutConfig(LocalFolder):
    """A folder without config.json, which reads as an empty one, so that all other checks still hold."""

    def files(self) -> Mapping[str, int]:
        return {**super().files(), CONFIG: 0}

    def read(self, name: str) -> bytes:
        return b"{}" if name == CONFIG else super().read(name)


def _architecture(config: Mapping[str, object]) -> str | None:
    match config.get("architectures"):
        case [str() as name, *_]:
            return name
        case _:
            return None
