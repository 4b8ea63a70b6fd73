"""What the user means by a name: a folder or file here, a model on the Hub, a place in a store. Asks no server."""

import re
from pathlib import Path
from typing import Final

from fp8cli.errors import BadInput, CannotRun, UsageError
from fp8cli.formats.addresses import HUB, Address, mask, parse_address
from fp8cli.formats.checkpoint import LocalFile, LocalFolder
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.remote_folder import RemoteFolder

Elsewhere = HubRepo | RemoteFolder
"""What is read by ranges."""

Source = LocalFolder | LocalFile | Elsewhere

_NAME: Final = r"\w(?:[\w.-]{0,94}\w)?"
_ID: Final = re.compile(rf"(?!.*(?:--|\.\.|\.git$))(?:{_NAME}/)?{_NAME}", re.ASCII)

_PAGES: Final = frozenset({"http", "https"})
_HERE: Final = frozenset({"file", "local"})


def resolve_source(model: str, revision: str | None = None) -> LocalFolder | Elsewhere:
    """Return the folder `model` if there is one, else what its address names, else the Hub repository of that id.

    Raises BadInput for what is none of these, UsageError for a revision of what has none.
    """
    path = _existing(model)
    if path is not None:
        if not path.is_dir():
            what = "a file" if path.exists() else "a link to something that is gone"
            message = f"`{model}` is {what}, not a checkpoint folder"
            raise BadInput(message, hint="give the folder that holds config.json and the .safetensors files")
        _refuse_revision(model, revision, "folder")
        return LocalFolder(path)
    address = parse_address(model)
    if address is not None and address.scheme not in _PAGES:
        return _at(address, revision)
    if "://" in model:
        message = f"`{mask(model)}` is an address"
        raise BadInput(message, hint="give the Hub id alone, as ORG/NAME")
    looks_like_path = model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1
    if looks_like_path or not _ID.fullmatch(model):
        what = "does not exist" if looks_like_path else "is neither a folder here nor the id of a model on the Hub"
        message = f"`{model}` {what}"
        raise BadInput(message, hint="give a checkpoint folder, or a model on the Hub as ORG/NAME")
    return HubRepo(model, revision)


def resolve_files(model: str, revision: str | None = None, *, for_what: str) -> LocalFolder | HubRepo:
    """Return what `resolve_source` does, of what is here or can be downloaded; for_what: such as `evaluating`."""
    place = resolve_source(model, revision)
    if isinstance(place, RemoteFolder):
        message = f"{for_what} needs the files of `{place.label}` here"
        raise CannotRun(message, hint=f"fetch them first: {fetch_command(place)}")
    return place


def resolve_anything(model: str, revision: str | None = None) -> Source:
    """Return what can be looked at: like `resolve_source`, but also a file by itself, and a Hub id with `@REVISION`."""
    path = _existing(model)
    if path is not None and path.exists() and not path.is_dir():
        _refuse_revision(model, revision, "file")
        return LocalFile(path)
    name, at, behind = model.partition("@")
    if path is None and at and behind and _ID.fullmatch(name):
        if revision is not None:
            raise _two_revisions(model)
        return resolve_source(name, behind)
    return resolve_source(model, revision)


def name_of(place: LocalFolder | Elsewhere) -> str:
    """Return the last part of a path, a Hub id or an address; `.` and links are resolved first."""
    match place:
        case LocalFolder():
            return place.path.resolve().name
        case HubRepo():
            return place.repo_id.rsplit("/", maxsplit=1)[-1]
        case RemoteFolder():
            return place.address.name


def full_name_of(place: LocalFolder | Elsewhere) -> str:
    """Return what the card of an output calls its source: a Hub id as a whole, else the last part."""
    return place.repo_id if isinstance(place, HubRepo) else name_of(place)


def fetch_command(place: Elsewhere) -> str:
    """Return the command that fetches a checkpoint into the folder DIR."""
    if isinstance(place, HubRepo):
        revision = "" if place.revision is None else f" --revision {place.revision}"
        return f"hf download {place.repo_id}{revision} --local-dir DIR"
    label = place.label
    match place.address.scheme:
        case "s3" | "s3a":
            return f"aws s3 sync s3://{label.partition('://')[2]} DIR"
        case "gs" | "gcs":
            return f"gcloud storage rsync -r gs://{label.partition('://')[2]} DIR"
        case _:
            return (
                f"python -c \"import fsspec; fs, at = fsspec.url_to_fs('{label}'); fs.get(at, 'DIR', recursive=True)\""
            )


def _at(address: Address, revision: str | None) -> LocalFolder | Elsewhere:
    if address.scheme == HUB:
        if not _ID.fullmatch(address.path):
            message = f"`{address.label}` is not the address of a model on the Hub"
            raise BadInput(message, hint="write hf://ORG/NAME or hf://ORG/NAME@REVISION")
        if revision is not None and address.revision is not None:
            raise _two_revisions(address.label)
        return HubRepo(address.path, revision or address.revision)
    if address.scheme in _HERE:
        return resolve_source(str(Path("/") / address.path), revision)
    if revision is not None:
        message = f"`{address.label}` lies in a store, and what lies there has no revisions"
        raise UsageError(message, hint="leave --revision out; it is for models on the Hub")
    return RemoteFolder(address)


def _two_revisions(model: str) -> UsageError:
    return UsageError(f"`{model}` names a revision already", hint="leave --revision out")


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
