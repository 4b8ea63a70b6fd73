"""The files around the weights: whether whoever serves can open each, and whether it is what its name promises.

Of a side file the first bytes are read, of a small JSON file all. Pickles are read by their opcodes and never
loaded (see formats.pickles). Of what lies on the Hub or in a store only the listing is known here, and that is said.
"""

import contextlib
import json
import re
import shlex
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.inspection.verdicts import counted, judge, not_checked, passed
from fp8cli.errors import BadInput
from fp8cli.formats.checkpoint import LocalFile, LocalFolder
from fp8cli.formats.complaints import Complain, Complaint, Fault
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.impostor import SNIFF_BYTES, refuse_impostor
from fp8cli.formats.pickles import read_calls
from fp8cli.formats.sources import Elsewhere, Source
from fp8cli.formats.staging import is_partial, partial_folder

_WEIGHTS: Final = re.compile(r"[^/]*\.safetensors", re.DOTALL)
_PICKLE: Final = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle)", re.DOTALL)
_NEVER_EMPTY: Final = re.compile(r"[^/]*\.(json|model|txt|jinja|bin|pt|pth|gguf)", re.DOTALL)
_JSON: Final = re.compile(r"[^/]*\.json", re.DOTALL)
_LFS: Final = b"version https://git-lfs"

_WHOLE_JSON_BYTES: Final = 256 * 2**10
"""A longer JSON file, such as a tokenizer of many megabytes, is only looked at from both ends."""

_FETCH_AGAIN: Final = "fetch that file again"
_OWNER_ONLY: Final = stat.S_IRGRP | stat.S_IROTH


def examine_files(source: Source, files: Mapping[str, int], *, already_read: Collection[str]) -> tuple[Finding, ...]:
    """Look at every file. Of weight files and of those that are `already_read` only the modes are new."""
    if isinstance(source, LocalFile):
        return tuple(_about_modes([(source.path.name, source.path)]))
    folder = _folder_here(source)
    others = {name: size for name, size in files.items() if name not in already_read and not _WEIGHTS.fullmatch(name)}
    if folder is None:
        return _examine_listing(others, "the Hub" if isinstance(source, HubRepo) else source.label)
    complaints: list[Complaint] = []
    for name, size in others.items():
        _examine_side_file(folder, name, size, complaints.append)
    _find_leftovers(folder.path, files, complaints.append)
    pickles, unknown = _examine_pickles(folder, [name for name in others if _PICKLE.fullmatch(name)])
    sound = () if complaints else _sound(others)
    return (*judge([*complaints, *pickles]), *unknown, *sound, *_about_modes(_paths(folder, files)))


def _folder_here(source: LocalFolder | Elsewhere) -> LocalFolder | None:
    if isinstance(source, HubRepo):
        return source.cached
    return source if isinstance(source, LocalFolder) else None


def _examine_listing(files: Mapping[str, int], where: str) -> tuple[Finding, ...]:
    """Judge by names and sizes what lies elsewhere."""
    complaints: list[Complaint] = []
    for name, size in files.items():
        _check_empty(name, size, complaints.append)
        _check_incomplete(name, complaints.append)
    remedy = "download the model and inspect the folder"
    unknown = [
        not_checked("file.side", f"side files are not fetched from {where}", remedy=remedy),
        not_checked(
            "file.mode", "files on the Hub have no modes" if where == "the Hub" else "files there have no modes"
        ),
    ]
    if pickles := [name for name in files if _PICKLE.fullmatch(name)]:
        reason = f"{counted(len(pickles), 'pickle')} not fetched from {where}"
        unknown.append(not_checked("file.pickle", reason, subject=", ".join(pickles), remedy=remedy))
    return (*judge(complaints), *unknown)


def _examine_side_file(folder: LocalFolder, name: str, size: int, complain: Complain) -> None:
    """Check that a file can be opened and is not something else. Stops at the first fault of the file."""
    try:
        path = folder.resolve(name)
        _check_empty(name, size, complain)
        with path.open("rb") as file:
            first = file.read(SNIFF_BYTES)
            if first.startswith(_LFS):
                refuse_impostor(first, name=name, expected="the real file")
            if size and _JSON.fullmatch(name):
                refuse_impostor(first, name=name, expected="JSON")
                file.seek(0)
                _check_json(name, file.read(_WHOLE_JSON_BYTES), size, lambda: _last_bytes(path))
    except Fault as problem:
        complain(Complaint(check=problem.check, words=problem.message, hint=problem.hint, files=(name,)))
    except PermissionError:
        hint = f"chmod u+r {shlex.quote(str(folder.path / name))}"
        words = f"`{name}` cannot be read: permission denied"
        complain(Complaint(check="file.readable", words=words, hint=hint, files=(name,)))
    except OSError as problem:
        words = f"`{name}` cannot be read: {problem.strerror or problem}"
        complain(Complaint(check="file.readable", words=words, files=(name,)))


def _check_empty(name: str, size: int, complain: Complain) -> None:
    if size == 0 and _NEVER_EMPTY.fullmatch(name):
        complain(Complaint(check="file.empty", words=f"`{name}` is empty", hint=_FETCH_AGAIN, files=(name,)))


def _check_json(name: str, begins: bytes, size: int, last_bytes: Callable[[], bytes]) -> None:
    """Raise a Fault if a file is not JSON, or a long one does not end like JSON."""
    if size > len(begins):
        if begins.lstrip()[:1] + last_bytes().rstrip()[-1:] not in {b"{}", b"[]"}:
            message = f"`{name}` does not begin and end as JSON does: it is cut short, or something else"
            raise Fault("file.json", message, hint=_FETCH_AGAIN)
        return
    try:
        json.loads(begins.decode())
    except (ValueError, RecursionError) as problem:
        reason = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        message = f"`{name}` is not valid JSON: {reason}"
        raise Fault("file.json", message, hint=_FETCH_AGAIN) from None


def _last_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - SNIFF_BYTES))
        return file.read()


def _examine_pickles(folder: LocalFolder, names: Sequence[str]) -> tuple[Sequence[Complaint], Sequence[Finding]]:
    """Return what is wrong with the pickles, and what is known or not known of the others."""
    complaints: list[Complaint] = []
    unknown: list[Finding] = []
    harmless = 0
    for name in names:
        try:
            calls = read_calls(folder.resolve(name))
        except (ValueError, BadInput) as problem:
            unknown.append(not_checked("file.pickle", f"`{name}`: {problem}", subject=name))
            continue
        if calls.dangerous:
            words = f"`{name}` is an unsafe pickle: it calls {_quoted(calls.dangerous)}"
            complaints.append(Complaint(check="file.pickle", words=words, hint="delete it", files=(name,)))
        elif calls.other:
            words = f"`{name}` is a pickle that runs code of {_quoted(calls.other)}"
            hint = "delete it where nothing needs it"
            complaints.append(Complaint(check="file.pickle_code", words=words, hint=hint, files=(name,)))
        else:
            harmless += 1
    if harmless:
        found = f"{counted(harmless, 'pickle')} with calls of nothing but what rebuilds tensors"
        unknown.append(passed("file.pickle", found, count=harmless))
    return complaints, unknown


def _quoted(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _find_leftovers(folder: Path, files: Mapping[str, int], complain: Complain) -> None:
    """Complain of downloads and of runs of this tool that were broken off."""
    for name in files:
        _check_incomplete(name, complain)
    home = folder.resolve()
    stores = [home / ".cache" / "huggingface" / "download"]
    if home.parent.name == "snapshots":
        stores.append(home.parent.parent / "blobs")
    for store in stores:
        with contextlib.suppress(OSError):  # A cache that cannot be listed belongs to someone else.
            for part in sorted(store.glob("**/*.incomplete")):
                _check_incomplete(str(part), complain)
    if is_partial(home):
        words = f"`{folder}` belongs to a run of `fp8 quantize` that has not finished"
        complain(Complaint(check="folder.unfinished", words=words, hint="run the same command again: it goes on"))
    elif partial_folder(home).is_dir():
        words = f"a run of `fp8 quantize` to `{folder}` has not finished: `{partial_folder(home)}` lies beside it"
        hint = "run the same command again, and it goes on; or remove that folder"
        complain(Complaint(check="folder.unfinished_run", words=words, hint=hint))


def _check_incomplete(name: str, complain: Complain) -> None:
    if name.endswith(".incomplete"):
        words = f"`{name}` is what a broken-off download has left"
        hint = "run the download again: it goes on"
        complain(Complaint(check="folder.unfinished_download", words=words, hint=hint, files=(name,)))


def _sound(others: Mapping[str, int]) -> Iterator[Finding]:
    if others:
        found = f"{counted(len(others), 'side file')}, each can be read, none is empty, broken JSON or a pointer"
        yield passed("file.side", found, count=len(others))


def _paths(folder: LocalFolder, files: Mapping[str, int]) -> Iterator[tuple[str, Path]]:
    return ((name, folder.path / name) for name in files)


def _about_modes(paths: Iterator[tuple[str, Path]] | Sequence[tuple[str, Path]]) -> Sequence[Finding]:
    closed: list[tuple[str, Path, int]] = []
    seen = 0
    for name, path in paths:
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # A link to nowhere, of which more is said elsewhere.
        seen += 1
        if not mode & _OWNER_ONLY:
            closed.append((name, path, stat.S_IMODE(mode)))
    if not seen:
        return ()
    if not closed:
        return (passed("file.mode", f"{counted(seen, 'file')}, each open to more users than its owner", count=seen),)
    name, path, mode = closed[0]
    more = f" and {counted(len(closed) - 1, 'more file')}" if len(closed) > 1 else ""
    words = f"`{name}`{more} can be read by the owner alone: its mode is {mode:04o}"
    hint = (
        f"chmod go+r {shlex.quote(str(path))}"
        if len(closed) == 1
        else f"chmod -R go+rX {shlex.quote(str(path.parent))}"
    )
    return judge([Complaint(check="file.mode", words=words, hint=hint, files=tuple(name for name, _, _ in closed))])
