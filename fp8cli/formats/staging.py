"""Where an output grows until it is whole: a hidden sibling folder with a lock and a journal, renamed at the end.

    .NAME.fp8-partial/
        lock          held (flock) by the one run that may write
        journal       first line: what this run makes; then one line per batch of finished pieces, or per SHA-256
        checkpoint/   the output; renamed to NAME when it is whole, its config.json written last

A reader can never mistake the hidden folder for a checkpoint, and NAME appears in one step. The journal only
names pieces whose bytes have reached the disk, so a run killed at any instant, even by a power cut, can go on
from it. A torn last line, left by a kill in the middle of a write, is ignored.
"""

import ctypes
import errno
import fcntl
import json
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from fp8cli.errors import CannotRun, Fp8Error, UsageError
from fp8cli.formats.ghosts import open_without_ghosts

JOURNAL_VERSION: Final = 1

_SUFFIX: Final = ".fp8-partial"

Piece = tuple[int, int, int]
"""(number of the tensor in the plan, first row or byte, one past the last)."""

Harm = tuple[int, int]
"""(number of rows in a piece that their scale harms, the first of them or −1); see core.quantizing.fp8."""

_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_IN_THE_WAY: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.EPERM})
"""How a file system says that a folder with something in it has the name; the last is sshfs, by whose protocol a server
says no more than that it failed."""
_NO_SPACE: Final = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file-size limit is reached",
}


@dataclass(kw_only=True)
class Staging:
    """An output in the making. Made by `stage`; valid only inside it."""

    out: Path
    folder: Path
    done: Mapping[Piece, Harm]
    """Pieces that an earlier run finished, each with what it had to report."""
    hashes: dict[str, str]
    """SHA-256 of files that it, or this one, has hashed; see `source_key` and `output_key`."""
    _journal: IO[str]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def checkpoint(self) -> Path:
        """The folder that becomes the output."""
        return self.folder / "checkpoint"

    def record(self, pieces: Mapping[Piece, Harm]) -> None:
        """Note pieces as finished. Their bytes must have been flushed to the disk before."""
        self._note([[*piece, *harm] for piece, harm in pieces.items()])

    def record_hash(self, name: str, sha256: str) -> None:
        """Note the SHA-256 of a file, by its name in `hashes`. Any thread may call it."""
        self.hashes[name] = sha256
        self._note({"sha256": [name, sha256]})

    def _note(self, line: object) -> None:
        with self._lock:
            self._journal.write(json.dumps(line, separators=(",", ":")) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())

    def write_file(self, name: str, content: bytes, *, mode: int = 0o666) -> None:
        """Write one small file of the output and flush it. `mode` is subject to the umask."""
        path = self.checkpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)

    def forget(self) -> None:
        """Let the next run begin anew, whatever it makes. What a run keeps beside the output, such as a log, stays."""
        (self.folder / "journal").unlink(missing_ok=True)

    def publish(self, *, overwrite: bool) -> None:
        """Rename the finished checkpoint into place. With `overwrite`, an older output is swapped out in one step."""
        for folder, _, _ in os.walk(self.checkpoint):
            _flush_folder(Path(folder))
        try:
            # Replaces nothing but an empty folder.
            self.checkpoint.rename(self.out)
        except OSError as problem:
            if problem.errno not in _IN_THE_WAY or not overwrite:
                raise
            _exchange(self.checkpoint, self.out)
        _flush_folder(self.out.parent)
        discard(self.out)


def source_key(shard: str) -> str:
    """Return what `Staging.hashes` calls a shard of the source."""
    return f"source/{shard}"


def output_key(shard: str) -> str:
    """Return what it calls a shard of the output."""
    return f"output/{shard}"


def partial_folder(out: Path) -> Path:
    """The hidden folder in which `out` grows."""
    return out.parent / f".{out.name}{_SUFFIX}"


def bytes_on_disk(folder: Path) -> int:
    """Bytes an unfinished run already takes: what it allocated, not how long its sparse files are."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def is_partial(folder: Path) -> bool:
    """Whether `folder` is one in which an output grows, or lies in one."""
    return any(part.startswith(".") and part.endswith(_SUFFIX) for part in folder.parts)


def discard(out: Path) -> None:
    """Remove what a run to `out` has left behind, if anything."""
    shutil.rmtree(partial_folder(out), ignore_errors=True)


@contextmanager
def stage(out: Path, identity: Mapping[str, object], *, restart: bool) -> Iterator[Staging]:
    """Open the staging folder of `out` for the run that `identity` describes, or go on with an earlier one.

    identity: JSON-able; its keys are what a message calls the things that may have changed. Raises CannotRun when
    another run holds it, or when it was begun with a different identity and `restart` is false.
    """
    folder = partial_folder(out)
    with disk_errors(out):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    with open_without_ghosts(lock, folder):
        _take_lock(lock, out)
        if restart:
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)
            (folder / "journal").unlink(missing_ok=True)
        # Through JSON, so that what was just described and what an earlier run wrote compare alike.
        wanted = json.loads(json.dumps(identity))
        done = _resume(folder, wanted, out)
        with disk_errors(out):
            if done is None:
                _begin_journal(folder, wanted)
            journal = (folder / "journal").open("a", encoding="utf-8")
            journal.write("\n")  # Ends a torn line, so that the next one stands by itself.
        with journal:
            hashes = {} if done is None else _resume_hashes(folder)
            yield Staging(out=out, folder=folder, done=done or {}, hashes=hashes, _journal=journal)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn a full disk, a quota or a read-only place into one sentence; what is done stays for a later run."""
    try:
        yield
    except OSError as problem:
        reason = _NO_SPACE.get(problem.errno or 0)
        where = partial_folder(out)
        if reason is not None:
            message = f"{reason}: `{out}` could not be written"
            hint = f"make room and run the same command again: it goes on from `{where}`"
            raise CannotRun(message, hint=hint) from problem
        message = f"`{problem.filename or out}` cannot be written: {problem.strerror or problem}"
        raise CannotRun(message, hint="choose another place with -o") from problem


@contextmanager
def scratch_errors(folder: Path) -> Iterator[None]:
    """Do the same for a folder of temporary files, in which nothing is worth going on from."""
    try:
        yield
    except OSError as problem:
        reason = _NO_SPACE.get(problem.errno or 0, problem.strerror or str(problem))
        message = f"`{folder}`, the folder for temporary files, cannot be written to: {reason}"
        raise CannotRun(message, hint="make room there, or let TMPDIR name another folder") from problem


def check_output(out: Path, *, overwrite: bool, source: Path | None) -> None:
    """Refuse an output that exists (unless `overwrite`), or that would swallow its own source.

    Even with `overwrite` only a checkpoint folder is replaced, never anything else that happens to have the name.
    """
    resolved = out.resolve()
    if source is not None and (resolved == source.resolve() or resolved in source.resolve().parents):
        message = f"the output `{out}` would replace its own source"
        raise UsageError(message, hint="choose another place with -o")
    if source is not None and source.resolve() in resolved.parents:
        message = f"the output `{out}` would lie inside its own source, and be taken for a part of it"
        beside = shlex.quote(str(source.resolve().parent / resolved.name))
        raise UsageError(message, hint=f"choose a place beside it: -o {beside}")
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return
    if not overwrite:
        message = f"`{out}` exists already"
        raise UsageError(message, hint="choose another place with -o, or replace it with --overwrite")
    if out.is_symlink() or not out.is_dir() or not (out / "config.json").is_file():
        message = f"`{out}` is not a checkpoint folder, so --overwrite does not touch it"
        raise UsageError(message, hint="choose another place with -o")


def _take_lock(lock: IO[str], out: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        message = f"another run is writing `{out}`"
        raise CannotRun(message, hint="wait for it, or choose another place with -o") from None
    except OSError as problem:
        message = f"`{out.parent}` does not support file locks: {problem.strerror}"
        raise CannotRun(message, hint="choose an output on another file system with -o") from problem
    if os.fstat(lock.fileno()).st_nlink == 0:
        # The run that held the lock has just published and removed its folder.
        message = f"another run has just finished writing `{out}`"
        raise CannotRun(message)


def _resume(folder: Path, wanted: Mapping[str, object], out: Path) -> dict[Piece, Harm] | None:
    """Return the pieces an earlier run finished, or None when there is none to go on from."""
    try:
        lines = (folder / "journal").read_text(encoding="utf-8", errors="replace").split("\n")
        begun = json.loads(lines[0])
        inode = (folder / "checkpoint").stat().st_ino
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if isinstance(begun, dict) and begun.get("inode") != inode:
        # Killed right after the swap: what lies here now is the output that was replaced, not ours.
        return None
    if not isinstance(begun, dict) or begun.get("version") != JOURNAL_VERSION:
        raise _different(out, "the version of the tool")
    identity = begun["identity"]
    changed = [key for key in wanted if identity.get(key) != wanted[key]]
    if changed:
        raise _different(out, _describe_change(changed[0], identity.get(changed[0]), wanted[changed[0]]))
    done: dict[Piece, Harm] = {}
    for line in lines[1:]:
        with suppress(json.JSONDecodeError, TypeError, ValueError):  # Empty, torn by a kill, or a SHA-256.
            done.update(((number, begin, end), (count, first)) for number, begin, end, count, first in json.loads(line))
    return done


def _resume_hashes(folder: Path) -> dict[str, str]:
    """Return what an earlier run, whose pieces are gone on from, has hashed."""
    found: dict[str, str] = {}
    for line in (folder / "journal").read_text(encoding="utf-8", errors="replace").split("\n"):
        if line.startswith('{"sha256"'):
            with suppress(json.JSONDecodeError, TypeError, ValueError):
                name, digest = json.loads(line)["sha256"]
                found[name] = digest
    return found


def _different(out: Path, what: str) -> Fp8Error:
    message = f"an unfinished run to `{out}` was begun with something else: {what}"
    hint = f"start anew with --restart, or remove {shlex.quote(str(partial_folder(out)))}"
    return CannotRun(message, hint=hint)


def _describe_change(key: str, before: object, now: object) -> str:
    if isinstance(before, str) and isinstance(now, str) and len(before) + len(now) < 100:
        return f"{key} was `{before}` and is `{now}`"
    if isinstance(before, dict) and isinstance(now, dict):
        name = next((name for name in {**before, **now} if before.get(name) != now.get(name)), "")
        return f"{key} has changed (`{name}`)"
    return f"{key} has changed"


def _begin_journal(folder: Path, identity: Mapping[str, object]) -> None:
    """Write the first line whole or not at all; shards of an unknown run are not trusted."""
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    (folder / "checkpoint").mkdir()
    begun = {"version": JOURNAL_VERSION, "inode": (folder / "checkpoint").stat().st_ino, "identity": identity}
    fresh = folder / "journal.new"
    with fresh.open("w", encoding="utf-8") as file:
        file.write(json.dumps(begun) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / "journal")
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # Some network file systems cannot flush a folder; the rename is still atomic.
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step where the system can, else by two renames."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
            return
    aside = new.parent / "replaced"
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
