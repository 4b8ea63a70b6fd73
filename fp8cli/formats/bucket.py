"""A folder in an S3 bucket as the place a checkpoint is sent to: parts in parallel, visible when all is there.

Every large file is a multipart upload. S3 shows nothing of one until it is completed, keeps its parts meanwhile, and
tells which it has, so that a run that was killed sends none twice. `commit` completes them, puts small files beside
them, and config.json last; while it is at work there is no config.json, hence no checkpoint.

Credentials, region, endpoint and proxies are botocore's own (environment, ~/.aws, the machine's role), through s3fs.
"""

# Imports inside functions: s3fs takes half a second to load.
# ruff: noqa: PLC0415

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from fp8cli.errors import CannotRun, Fp8Error, UsageError
from fp8cli.formats.addresses import Address
from fp8cli.formats.bucket_errors import code_of, explain, is_passing, missing_package
from fp8cli.formats.checkpoint import CONFIG
from fp8cli.formats.destinations import Notes, Sent, Standing, Upload
from fp8cli.formats.patience import Patience
from fp8cli.formats.waiting_threads import for_each

PART_BYTES: Final = 16 * 2**20
MAX_PARTS: Final = 10_000
"""S3's own limit. https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""

CONNECTIONS: Final = 4
"""Parts of one file under way at a time; each is in memory meanwhile."""

_MARK: Final = "fp8-upload"
"""Metadata of an object that tells which upload made it: completing one whose answer was lost cannot be repeated."""

_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds to wait before asking again: an outage of a minute is survived."""

_FIRST_PAUSES: Final = _PAUSES[:3]
"""The same before anything was sent: a wrong address is said to be wrong soon."""

_KEYS_A_REQUEST: Final = 1000
_GONE: Final = frozenset({"NoSuchUpload", "NoSuchKey", "404"})


@dataclass(frozen=True)
class BucketDestination:
    """A folder of a bucket; see `destinations.Destination`."""

    address: Address

    @property
    def label(self) -> str:
        """The address."""
        return self.address.text

    @property
    def _bucket(self) -> str:
        return self.address.path.partition("/")[0]

    def _key(self, name: str) -> str:
        folder = self.address.path.partition("/")[2]
        return f"{folder}/{name}" if folder else name

    @cached_property
    def _files(self) -> Any:
        """The file system. Any, because s3fs has no types."""
        try:
            import s3fs
        except ImportError as problem:
            raise missing_package(self.address, "s3") from problem
        # Patience is had here, by one rule: botocore and s3fs together would ask two dozen times.
        once = {"retries": {"total_max_attempts": 1}}
        files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, config_kwargs=once)
        files.retries = 1
        return files

    def look(self) -> Standing:
        """List what lies in the folder."""
        return Standing(files=tuple(self._list(_FIRST_PAUSES)))

    def prepare(self, standing: Standing | None) -> Standing:
        """A folder of a bucket need not be made."""
        return standing or Standing(files=())

    def begin(self, name: str, size: int) -> Upload:
        """Begin a multipart upload."""
        mark = os.urandom(16).hex()
        answer = self._ask("create_multipart_upload", Bucket=self._bucket, Key=self._key(name), Metadata={_MARK: mark})
        return Upload(id=f"{mark}/{answer['UploadId']}", part_bytes=max(PART_BYTES, -(-size // MAX_PARTS)))

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
            answer = self._ask(
                "upload_part",
                Bucket=self._bucket,
                Key=self._key(name),
                UploadId=_upload_id(upload),
                PartNumber=number,
                Body=data,
            )
            parts[number] = answer["ETag"]
            notes.part(number, answer["ETag"])
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
            self._ask("delete_object", Bucket=self._bucket, Key=self._key(CONFIG))
        for_each(large, self._complete, threads=CONNECTIONS)
        first = [name for name in small if name != CONFIG]
        for_each(first, lambda name: self._put(name, small[name]), threads=CONNECTIONS)
        if CONFIG in small:
            self._put(CONFIG, small[CONFIG])
        wanted = {**{sent.name: sent.file for sent in large}, **small}
        for_each(
            [name for name in standing.files if name not in wanted],
            lambda name: self._ask("delete_object", Bucket=self._bucket, Key=self._key(name)),
            threads=CONNECTIONS,
        )
        self._check(wanted)

    def abort(self, uploads: Mapping[str, Upload]) -> None:
        """Abort the uploads; one that S3 does not know any more is no news."""
        for name, upload in uploads.items():
            with suppress(_Gone):
                self._ask(
                    "abort_multipart_upload", Bucket=self._bucket, Key=self._key(name), UploadId=_upload_id(upload)
                )

    def _list(self, pauses: Sequence[float]) -> dict[str, int]:
        """Return every file in the folder with its size."""
        prefix = self._key("")
        found: dict[str, int] = {}
        more: dict[str, str] = {}
        while True:
            answer = self._ask("list_objects_v2", pauses, Bucket=self._bucket, Prefix=prefix, **more)
            found.update({each["Key"].removeprefix(prefix): each["Size"] for each in answer.get("Contents", ())})
            if not answer.get("IsTruncated"):
                # An empty object that ends in a slash is how consoles make a folder.
                return {name: size for name, size in found.items() if name and not name.endswith("/")}
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    def _parts(self, name: str, upload: Upload) -> dict[int, str] | None:
        """Return the parts that are there and are ours; None if S3 knows nothing of the upload."""
        found: dict[int, str] = {}
        marker = 0
        with suppress(_Gone):
            while True:
                answer = self._ask(
                    "list_parts",
                    Bucket=self._bucket,
                    Key=self._key(name),
                    UploadId=_upload_id(upload),
                    PartNumberMarker=marker,
                    MaxParts=_KEYS_A_REQUEST,
                )
                found.update({part["PartNumber"]: part["ETag"] for part in answer.get("Parts", ())})
                if not answer.get("IsTruncated"):
                    return {number: tag for number, tag in found.items() if upload.parts.get(number) == tag}
                marker = answer["NextPartNumberMarker"]
        return None

    def _complete(self, sent: Sent) -> None:
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in sorted(sent.upload.parts.items())]
        try:
            self._ask(
                "complete_multipart_upload",
                Bucket=self._bucket,
                Key=self._key(sent.name),
                UploadId=_upload_id(sent.upload),
                MultipartUpload={"Parts": parts},
            )
        except _Gone as problem:
            if not self._is_completed(sent.name, sent.file.stat().st_size, sent.upload):
                message = f"`{self.label}` has forgotten what was sent of `{sent.name}`"
                raise CannotRun(message, hint="run the same command again: that file is sent anew") from problem

    def _is_completed(self, name: str, size: int, upload: Upload) -> bool:
        """Whether the object that is there was made by this upload."""
        with suppress(_Gone):
            answer = self._ask("head_object", Bucket=self._bucket, Key=self._key(name))
            return bool(answer["ContentLength"] == size and answer["Metadata"].get(_MARK) == _mark(upload))
        return False

    def _put(self, name: str, file: Path) -> None:
        self._ask("put_object", Bucket=self._bucket, Key=self._key(name), Body=file.read_bytes())

    def _check(self, wanted: Mapping[str, Path]) -> None:
        """Look whether all is there with its size. Raises CannotRun."""
        there = self._list(_PAUSES)
        for name, file in wanted.items():
            if there.get(name) != file.stat().st_size:
                found = "is not there" if name not in there else f"has {there[name]:,} bytes"
                message = f"`{name}` was sent to `{self.label}` with {file.stat().st_size:,} bytes and {found}"
                raise CannotRun(message, hint="is something else writing there? run the same command again")

    def _ask(self, method: str, pauses: Sequence[float] | None = None, /, **words: object) -> Any:
        """Make one request, and again where that may help. Raises _Gone for what is not there, else Fp8Error."""
        return Patience(self, pauses=pauses or _PAUSES).ask(lambda: self._files.call_s3(method, **words))

    def is_passing(self, problem: BaseException) -> bool:
        """Whether asking again may help."""
        return is_passing(problem)

    def pause_asked(self, problem: BaseException) -> float | None:
        """Return None: S3 does not say for how long it wants to be left alone."""
        del problem
        return None

    def explain(self, problem: BaseException) -> Fp8Error:
        """Return what to tell the user about an error of `call_s3`."""
        if code_of(problem) in _GONE:
            return _Gone(f"`{self.address.text}` does not have it")
        return explain(problem, self.address)


class _Gone(UsageError):
    """S3 does not know the upload or the object."""


def _upload_id(upload: Upload) -> str:
    return upload.id.partition("/")[2]


def _mark(upload: Upload) -> str:
    return upload.id.partition("/")[0]
