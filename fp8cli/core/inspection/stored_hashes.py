"""`--verify`: the files against the hashes that were stored with them, where there are any.

Four places keep the SHA-256 of a weight file: the Hub's cache, whose files are named by it; the notes that
`hf download --local-dir` leaves in `.cache/huggingface/download`; a list such as SHA256SUMS beside the files; and the
fp8.json of a checkpoint that was made here. The first that knows a file speaks for it.
"""

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.hashing import pieces_of, sha256_of
from fp8cli.core.inspection.reading import BytesRead, Notify, ReadingBegins, run_all
from fp8cli.errors import Fp8Error
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.provenance import PROVENANCE, read_provenance

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_LINE: Final = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")
_LISTS: Final = ("SHA256SUMS", "sha256sums.txt", "checksums.txt", "checksum.txt", "SHA256SUMS.txt")
_MAX_LIST_BYTES: Final = 10**7


def find_hashes(folder: Path, names: Iterable[str]) -> Mapping[str, tuple[str, str]]:
    """Return, for the files that have one, the SHA-256 that was stored and where. `names` are relative to `folder`."""
    found: dict[str, tuple[str, str]] = {}
    recorded = _recorded(folder)
    listed = dict(_listed(folder))
    for name in names:
        path = folder / name
        blob = blob_hash(path)
        note = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
        if blob is not None:
            found[name] = (blob, "the Hub's cache")
        elif (etag := _etag(note)) is not None:
            found[name] = (etag, "the Hub, at download")
        elif name in listed:
            found[name] = listed[name]
        elif name in recorded:
            found[name] = (recorded[name], f"`{PROVENANCE}`")
    return found


def blob_hash(path: Path) -> str | None:
    """Return the SHA-256 by which the Hub's cache calls the file that `path` links to; None for any other file."""
    if not path.is_symlink():
        return None
    target = path.resolve()
    return target.name if target.parent.name == "blobs" and _SHA256.fullmatch(target.name) else None


def check_hashes(folder: Path, names: Iterable[str], *, workers: int, notify: Notify) -> tuple[Finding, ...]:
    """Hash every file that has a stored SHA-256 and compare."""
    wanted = list(names)
    stored = find_hashes(folder, wanted)
    if not stored:
        found = (
            "no SHA-256 was stored with these files: they are in no Hub cache, and no fp8.json or SHA256SUMS lists them"
        )
        return (Finding(check="hash.sha256", status="not checked", subject=None, found=found),)
    stop = threading.Event()
    jobs = [_Hash(folder / name, name, notify, stop) for name in stored]
    size = sum((folder / name).stat().st_size for name in stored)
    notify(ReadingBegins(what="verifying hashes", bytes=size))
    findings = []
    for name, actual in zip(stored, run_all(jobs, workers=workers, stop=stop), strict=True):
        expected, where = stored[name]
        if actual != expected:
            findings.append(
                Finding(
                    check="hash.sha256",
                    status="failed",
                    subject=name,
                    found=f"its SHA-256 is {actual[:12]}…, but {where} has {expected[:12]}…",
                    consequence="the file is not the one that was published: some of its bytes are wrong",
                    remedy="fetch that file again",
                )
            )
    if not findings:
        found = f"{len(stored):,} of {len(wanted):,} files have the SHA-256 that was stored with them"
        findings.append(Finding(check="hash.sha256", status="passed", subject=None, found=found, count=len(stored)))
    return tuple(findings)


@dataclass(frozen=True)
class _Hash:
    """The job of hashing one file."""

    path: Path
    name: str
    notify: Notify
    stop: threading.Event

    def __call__(self) -> str:
        return sha256_of(pieces_of(self.path), self._tell, self.stop)

    def _tell(self, size: int) -> None:
        self.notify(BytesRead(name=self.name, bytes=size))


def _etag(note: Path) -> str | None:
    """Second line of a note of `hf download --local-dir`; a SHA-256 for large files, a Git hash for small ones."""
    try:
        lines = note.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return lines[1] if len(lines) > 1 and _SHA256.fullmatch(lines[1]) else None


def _recorded(folder: Path) -> Mapping[str, str]:
    """Return what fp8.json says. One that cannot be read says nothing here: that is a finding of its own."""
    try:
        facts = read_provenance(LocalFolder(folder)).files
    except Fp8Error:
        return {}
    return {name: file.sha256 for name, file in facts.items() if file.sha256 is not None}


def _listed(folder: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    for name in _LISTS:
        path = folder / name
        try:
            if not path.is_file() or path.stat().st_size > _MAX_LIST_BYTES:
                continue
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for line in text.splitlines():
            if match := _LINE.fullmatch(line):
                yield match[2], (match[1].lower(), f"`{name}`")
