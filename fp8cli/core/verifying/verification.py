"""The files of a checkpoint, or of its source, against what fp8.json says of them: one verdict for each.

A file that is missing or of another size is not read. One that fp8.json does not name is a difference too, but for
signatures of fp8.json itself and for what the Hub adds to every repository. Folders whose name begins with a dot are
not looked into, nor are folders that are links.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fp8cli.core.hashing import sha256_of
from fp8cli.core.inspection.reading import BytesRead, Notify, ReadingBegins, run_all
from fp8cli.core.verifying.streaming import stream
from fp8cli.errors import Fp8Error
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.provenance import PROVENANCE, FileFacts
from fp8cli.formats.sources import Source

Status = Literal["matches", "missing", "extra", "other size", "other bytes", "unreadable", "not recorded"]

DIFFERENT: Final[frozenset[Status]] = frozenset({"missing", "extra", "other size", "other bytes"})
UNKNOWN: Final[frozenset[Status]] = frozenset({"unreadable", "not recorded"})

_ADDED_BY_THE_HUB: Final = ".gitattributes"


@dataclass(frozen=True, kw_only=True)
class FileVerdict:
    """One file."""

    name: str
    status: Status
    """`not recorded`: its size is right, and no SHA-256 was ever written down."""
    bytes: int | None
    """As it is; None: it is missing."""
    sha256: str | None
    """As it is; None: it was not read."""
    recorded_bytes: int | None
    """None for an extra file."""
    recorded_sha256: str | None
    why: str | None = None
    """Why it could not be read."""


def verify_files(
    source: Source, recorded: Mapping[str, FileFacts], *, extras: bool, workers: int, notify: Notify
) -> tuple[FileVerdict, ...]:
    """Judge every recorded file, and with `extras` every other one in the folder; in the order of their names.

    Raises Fp8Error where the folder cannot be listed.
    """
    files = source.files()
    others = [name for name in files if name not in recorded and not _is_beside(name)] if extras else []
    stop = threading.Event()
    names = (*recorded, *others)
    jobs = [_Job(source, name, files.get(name), recorded.get(name), notify, stop) for name in names]
    notify(ReadingBegins(what="verifying", bytes=sum(job.bytes_to_read for job in jobs)))
    # The largest first, so that no thread is left with one at the end.
    ordered = sorted(jobs, key=lambda job: -job.bytes_to_read)
    verdicts = run_all(ordered, workers=workers, stop=stop)
    return tuple(sorted(verdicts, key=lambda verdict: verdict.name))


def _is_beside(name: str) -> bool:
    """Whether nobody expects fp8.json to name it: itself, its signatures, what the Hub adds."""
    return name in {PROVENANCE, _ADDED_BY_THE_HUB} or name.startswith(f"{PROVENANCE}.")


@dataclass(frozen=True)
class _Job:
    """The judgement of one file."""

    source: Source
    name: str
    size: int | None
    facts: FileFacts | None
    notify: Notify
    stop: threading.Event

    @property
    def bytes_to_read(self) -> int:
        """What it takes: nothing where the size says it all, or no hash was written down."""
        facts = self.facts
        return facts.bytes if facts is not None and facts.sha256 is not None and self.size == facts.bytes else 0

    def __call__(self) -> FileVerdict:
        """Read the file if need be."""
        facts, size = self.facts, self.size
        if facts is None:
            return self._verdict("extra")
        if size is None:
            return self._verdict("missing")
        try:
            if isinstance(self.source, LocalFolder):
                # Before its size is trusted: a link that leads nowhere has none.
                self.source.resolve(self.name)
            if size != facts.bytes:
                return self._verdict("other size")
            if facts.sha256 is None:
                return self._verdict("not recorded")
            found = sha256_of(stream(self.source, self.name, size), self._tell, self.stop)
        except Fp8Error as problem:
            return self._verdict("unreadable", why=problem.message)
        return self._verdict("matches" if found == facts.sha256 else "other bytes", sha256=found)

    def _tell(self, size: int) -> None:
        self.notify(BytesRead(name=self.name, bytes=size))

    def _verdict(self, status: Status, *, sha256: str | None = None, why: str | None = None) -> FileVerdict:
        return FileVerdict(
            name=self.name,
            status=status,
            bytes=self.size,
            sha256=sha256,
            recorded_bytes=None if self.facts is None else self.facts.bytes,
            recorded_sha256=None if self.facts is None else self.facts.sha256,
            why=why,
        )
