"""A folder in a bucket as the place a checkpoint is sent to: parts in parallel, visible when all is there.

Every large file is a multipart upload. A store shows nothing of one until it is completed, keeps its parts meanwhile,
and tells which it has, so that a run that was killed sends none twice. `commit` completes them, puts small files beside
them, and config.json last; while it is at work there is no config.json, hence no checkpoint.

S3 and Google Cloud Storage have such uploads: see `bucket_s3` and `bucket_gcs`.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from fp8cli.errors import CannotRun, Fp8Error, UsageError
from fp8cli.formats.addresses import Address
from fp8cli.formats.bucket_errors import explain
from fp8cli.formats.checkpoint import CONFIG
from fp8cli.formats.destinations import Notes, Sent, Standing, Upload
from fp8cli.formats.patience import Patience
from fp8cli.formats.store_errors import is_passing, pause_asked, trouble_of
from fp8cli.formats.waiting_threads import for_each

PART_BYTES: Final = 16 * 2**20
MAX_PARTS: Final = 10_000
"""Of S3 and of GCS. https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html,
https://cloud.google.com/storage/quotas"""

CONNECTIONS: Final = 4
"""Parts of one file under way at a time; each is in memory meanwhile."""

MARK: Final = "fp8-upload"
"""Metadata of an object that tells which upload made it: completing one whose answer was lost cannot be repeated."""

_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds to wait before asking again: an outage of a minute is survived."""

_FIRST_PAUSES: Final = _PAUSES[:3]
"""The same before anything was sent: a wrong address is said to be wrong soon."""

_Answer = TypeVar("_Answer")


class BucketStore(Protocol):
    """What is asked of a store. It asks once, and raises what its library does: see `store_errors`."""

    def find(self, prefix: str) -> Mapping[str, int]:
        """Return every object whose key begins so, with its size."""

    def begin(self, key: str, mark: str) -> str:
        """Begin an upload whose object will carry `mark` as MARK; return its id."""

    def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> str:
        """Send a part, from 1; return its tag."""

    def parts(self, key: str, upload_id: str) -> Mapping[int, str]:
        """Return the parts that are there, each with its tag."""

    def complete(self, key: str, upload_id: str, parts: Mapping[int, str]) -> None:
        """Make an object of the parts."""

    def abort(self, key: str, upload_id: str) -> None:
        """Let the store forget an upload."""

    def look_at(self, key: str) -> tuple[int, str | None]:
        """Return size and mark of an object."""

    def put(self, key: str, data: bytes) -> None:
        """Make a small object."""

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no news."""


@dataclass(frozen=True)
class BucketDestination:
    """A folder of a bucket; see `destinations.Destination`."""

    address: Address
    store: BucketStore

    @property
    def label(self) -> str:
        """The address."""
        return self.address.text

    def _key(self, name: str) -> str:
        folder = self.address.path.partition("/")[2]
        return f"{folder}/{name}" if folder else name

    def look(self) -> Standing:
        """List what lies in the folder."""
        return Standing(files=tuple(self._list(_FIRST_PAUSES)))

    def prepare(self, standing: Standing | None) -> Standing:
        """A folder of a bucket need not be made."""
        return standing or Standing(files=())

    def begin(self, name: str, size: int) -> Upload:
        """Begin a multipart upload."""
        mark = os.urandom(16).hex()
        upload_id = self._ask(lambda: self.store.begin(self._key(name), mark))
        return Upload(id=f"{mark}/{upload_id}", part_bytes=max(PART_BYTES, -(-size // MAX_PARTS)))

    def send(self, name: str, file: Path, before: Upload | None, notes: Notes) -> tuple[Upload, str]:
        """Send the parts that are not there yet, and read all for the hash."""
        there = None if before is None else self._parts(name, before)
        if before is None or there is None:
            before, there = self.begin(name, file.stat().st_size), {}
            notes.begun(before)
        upload, parts, digest = before, dict(there), hashlib.sha256()

        def missing() -> Iterator[tuple[int, bytes]]:
            with file.open("rb") as reading:
                number = 0
                while data := reading.read(upload.part_bytes):
                    number += 1
                    digest.update(data)
                    if number in parts:
                        notes.sent(len(data), before=True)
                    else:
                        yield number, data

        def send_part(part: tuple[int, bytes]) -> None:
            number, data = part
            notes.about_to_send()
            tag = self._ask(lambda: self.store.put_part(self._key(name), _upload_id(upload), number, data))
            parts[number] = tag
            notes.part(number, tag)
            notes.sent(len(data))

        for_each(missing(), send_part, threads=CONNECTIONS)
        return Upload(id=upload.id, part_bytes=upload.part_bytes, parts=parts), digest.hexdigest()

    def holds(self, name: str, size: int, upload: Upload) -> bool:
        """Ask for the parts, or whether the object is there already."""
        there = self._parts(name, upload)
        if there is None:
            return self._is_completed(name, size, upload)
        return there == dict(upload.parts) and len(there) == -(-size // upload.part_bytes)

    def commit(self, large: Sequence[Sent], small: Mapping[str, Path], standing: Standing) -> None:
        """Complete all uploads, then the small files, config.json last; then remove what else was there."""
        if CONFIG in standing.files:
            # From here to the end there is no checkpoint, rather than an old one with new shards.
            self._delete(CONFIG)
        for_each(large, self._complete, threads=CONNECTIONS)
        first = [name for name in small if name != CONFIG]
        for_each(first, lambda name: self._put(name, small[name]), threads=CONNECTIONS)
        if CONFIG in small:
            self._put(CONFIG, small[CONFIG])
        wanted = {**{sent.name: sent.file for sent in large}, **small}
        for_each([name for name in standing.files if name not in wanted], self._delete, threads=CONNECTIONS)
        self._check(wanted)

    def abort(self, uploads: Mapping[str, Upload]) -> None:
        """Abort the uploads; one that is not known any more is no news."""

        def abort(name: str) -> None:
            with suppress(_Gone):
                self._ask(lambda: self.store.abort(self._key(name), _upload_id(uploads[name])))

        for_each(uploads, abort, threads=CONNECTIONS)

    def _list(self, pauses: Sequence[float]) -> dict[str, int]:
        """Return every file in the folder with its size."""
        prefix = self._key("")
        found = self._ask(lambda: self.store.find(prefix), pauses)
        names = {key.removeprefix(prefix): size for key, size in found.items()}
        # An empty object that ends in a slash is how consoles make a folder.
        return {name: size for name, size in names.items() if name and not name.endswith("/")}

    def _parts(self, name: str, upload: Upload) -> dict[int, str] | None:
        """Return the parts that are there and are ours; None if nothing is known of the upload."""
        with suppress(_Gone):
            found = self._ask(lambda: self.store.parts(self._key(name), _upload_id(upload)))
            return {number: tag for number, tag in found.items() if upload.parts.get(number) == tag}
        return None

    def _complete(self, sent: Sent) -> None:
        try:
            self._ask(lambda: self.store.complete(self._key(sent.name), _upload_id(sent.upload), sent.upload.parts))
        except _Gone as problem:
            if not self._is_completed(sent.name, sent.file.stat().st_size, sent.upload):
                message = f"`{self.label}` has forgotten what was sent of `{sent.name}`"
                raise CannotRun(message, hint="run the same command again: that file is sent anew") from problem

    def _is_completed(self, name: str, size: int, upload: Upload) -> bool:
        """Whether the object that is there was made by this upload."""
        with suppress(_Gone):
            return self._ask(lambda: self.store.look_at(self._key(name))) == (size, _mark(upload))
        return False

    def _put(self, name: str, file: Path) -> None:
        self._ask(lambda: self.store.put(self._key(name), file.read_bytes()))

    def _delete(self, name: str) -> None:
        self._ask(lambda: self.store.delete(self._key(name)))

    def _check(self, wanted: Mapping[str, Path]) -> None:
        """Look whether all is there with its size. Raises CannotRun."""
        there = self._list(_PAUSES)
        for name, file in wanted.items():
            if there.get(name) != file.stat().st_size:
                found = "is not there" if name not in there else f"has {there[name]:,} bytes"
                message = f"`{name}` was sent to `{self.label}` with {file.stat().st_size:,} bytes and {found}"
                raise CannotRun(message, hint="is something else writing there? run the same command again")

    def _ask(self, question: Callable[[], _Answer], pauses: Sequence[float] | None = None) -> _Answer:
        """Ask the store, and again where that may help. Raises _Gone for what is not there, else Fp8Error."""
        return Patience(self, pauses=pauses or _PAUSES).ask(question)

    def is_passing(self, problem: BaseException) -> bool:
        """Whether asking again may help."""
        return is_passing(problem)

    def pause_asked(self, problem: BaseException) -> float | None:
        """For how many seconds the store wants to be left alone."""
        return pause_asked(problem)

    def explain(self, problem: BaseException) -> Fp8Error:
        """Return what to tell the user about an error of the store."""
        if trouble_of(problem) == "not there":
            return _Gone(f"`{self.address.text}` does not have it")
        return explain(problem, self.address)


class _Gone(UsageError):
    """The store does not know the upload or the object."""


def _upload_id(upload: Upload) -> str:
    return upload.id.partition("/")[2]


def _mark(upload: Upload) -> str:
    return upload.id.partition("/")[0]
