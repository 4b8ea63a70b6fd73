"""What the user means by a name: a folder here, a file here, or a model on the Hub. Asks no server."""

import re
from pathlib import Path
from typing import Final

from fp8cli.errors import BadInput, UsageError
from fp8cli.formats.checkpoint import LocalFile, LocalFolder
from fp8cli.formats.hub import HubRepo

Source = LocalFolder | LocalFile | HubRepo

_NAME: Final = r"\w(?:[\w.-]{0,94}\w)?"
_ID: Final = re.compile(rf"(?!.*(?:--|\.\.|\.git$))(?:{_NAME}/)?{_NAME}", re.ASCII)


def resolve_source(model: str, revision: str | None = None) -> LocalFolder | HubRepo:
    """Return the folder `model` if there is one, else the Hub repository of that id.

    Raises BadInput for what is neither, UsageError for a revision of a local folder.
    """
    path = _existing(model)
    if path is not None:
        if not path.is_dir():
            what = "a file" if path.exists() else "a link to something that is gone"
            message = f"`{model}` is {what}, not a checkpoint folder"
            raise BadInput(message, hint="give the folder that holds config.json and the .safetensors files")
        _refuse_revision(model, revision, "folder")
        return LocalFolder(path)
    if "://" in model:
        message = f"`{model}` is an address"
        raise BadInput(message, hint="give the Hub id alone, as ORG/NAME")
    looks_like_path = model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1
    if looks_like_path or not _ID.fullmatch(model):
        what = "does not exist" if looks_like_path else "is neither a folder here nor the id of a model on the Hub"
        message = f"`{model}` {what}"
        raise BadInput(message, hint="give a checkpoint folder, or a model on the Hub as ORG/NAME")
    return HubRepo(model, revision)


def resolve_anything(model: str, revision: str | None = None) -> Source:
    """Return what can be looked at: like `resolve_source`, but also a file by itself, and a Hub id with `@REVISION`."""
    path = _existing(model)
    if path is not None and path.exists() and not path.is_dir():
        _refuse_revision(model, revision, "file")
        return LocalFile(path)
    name, at, behind = model.partition("@")
    if path is None and at and behind and _ID.fullmatch(name):
        if revision is not None:
            message = f"`{model}` names a revision already"
            raise UsageError(message, hint="leave --revision out")
        return resolve_source(name, behind)
    return resolve_source(model, revision)


def short_name(model: str) -> str:
    """Return the last part of a Hub id or path, to name outputs by; `.` and links are resolved first."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model.rstrip("/").rsplit("/", maxsplit=1)[-1]


def _existing(model: str) -> Path | None:
    """Return the path if anything is there, be it a dangling link."""
    try:
        path = Path(model).expanduser()
        exists = path.exists() or path.is_symlink()
    except (OSError, RuntimeError) as problem:
        message = f"`{model}` cannot be opened: {getattr(problem, 'strerror', problem)}"
        raise BadInput(message) from problem
    return path if model and exists else None


def _refuse_revision(model: str, revision: str | None, what: str) -> None:
    if revision is not None:
        message = f"`{model}` is a {what} here, and a {what} has no revisions"
        raise UsageError(message, hint="leave --revision out; it is for models on the Hub")
