"""The checkpoint that is meant when none is named: the one here, or the only FP8 checkpoint one folder below."""

from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Final

from fp8cli.core.inspection.declaration import FP8_KINDS
from fp8cli.core.inspection.declared_methods import read_declaration
from fp8cli.core.inspection.scale_names import FP8_DTYPES
from fp8cli.errors import BadInput, UsageError
from fp8cli.formats.checkpoint import CONFIG, LocalFolder, read_config
from fp8cli.formats.safetensors import read_header

_WEIGHTS: Final = "*.safetensors"


def find_checkpoint(start: Path, *, command: str = "inspect") -> Path:
    """Return `start` if it is a checkpoint, else the one FP8 checkpoint directly below it.

    Raises UsageError, which names `command`, when there is none, or more than one: the choice is the user's.
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
        raise UsageError(message, hint=f"name one of them: fp8 {command} {quote(str(found[0]))}")
    message = f"`{start.resolve()}` is no checkpoint, and no folder in it is an FP8 checkpoint"
    hint = f"`{below[0]}` is a checkpoint, though not in FP8: fp8 {command} {quote(str(below[0]))}" if below else None
    raise UsageError(message, hint=hint or f"name the checkpoint: fp8 {command} PATH")


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
        declaration = read_declaration(read_config(LocalFolder(folder), {CONFIG: 0}), {})
        groups = () if declaration is None else declaration.groups
        if any(group.weights is not None and group.weights.kind in FP8_KINDS for group in groups):
            return True
        headers = map(read_header, sorted(folder.glob(_WEIGHTS)))
        return any(tensor.dtype in FP8_DTYPES for header in headers for tensor in header.tensors)
    except BadInput:
        return False
