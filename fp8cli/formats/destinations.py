"""Where a checkpoint goes that is to lie elsewhere: the Hub, a bucket, or any other place that fsspec can write to.

Large files are sent one by one, as they become ready, and nobody sees them. `commit` then makes everything visible,
config.json last, because that is what makes a folder a checkpoint. What is known of a file that is under way fits into
JSON, so that a run that was killed sends nothing twice.
"""

# Imports inside functions: each kind of place has a library of its own, and none of them is quick to load.
# ruff: noqa: PLC0415

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from fp8cli.errors import UsageError
from fp8cli.formats.addresses import HUB, Address, parse_address

_S3: Final = frozenset({"s3", "s3a"})
_GCS: Final = frozenset({"gs", "gcs"})
_READ_ONLY: Final = frozenset({"http", "https"})

MESSAGE: Final = "Upload an FP8 checkpoint"
"""What a commit on the Hub says, if the user says nothing."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file under way, or there and not visible yet."""

    id: str
    """What the place calls it: an upload id, the SHA-256 of the content, or the name it has until the end."""
    part_bytes: int = 0
    parts: Mapping[int, str] = field(default_factory=dict)
    """Parts that are there, from 1, each with the tag that the place gave it."""


class Notes(Protocol):
    """Who keeps track of one file under way. Any thread may call it."""

    def begun(self, upload: Upload) -> None:
        """Remember that it was begun, before anything of it is sent."""

    def about_to_send(self) -> None:
        """Look, when a part was read and before it is sent, whether it is wanted. Raises CannotRun if it is not."""

    def part(self, number: int, tag: str) -> None:
        """Remember that a part is there."""

    def sent(self, count: int, *, before: bool = False) -> None:
        """Take note that so many more bytes are there, or were there `before`."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a place holds before anything is sent."""

    files: tuple[str, ...]
    version: str | None = None
    """The commit that was found, where there are commits."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A large file that is there, and not visible yet."""

    name: str
    file: Path
    """Its file here. Its weights may be gone; its size and its beginning are not."""
    upload: Upload
    sha256: str


class Sends(Protocol):
    """Who sends files to a place: the place as this machine sees it, or others on its behalf."""

    def send(self, name: str, file: Path, before: Upload | None, notes: Notes) -> tuple[Upload, str]:
        """Send a file, going on from what was sent `before`; return what `commit` needs, and its SHA-256 in hex."""


class Destination(Sends, Protocol):
    """A place that a checkpoint can be sent to. Raises Fp8Error, in one sentence, for whatever goes wrong there."""

    @property
    def label(self) -> str:
        """Its address."""

    def look(self) -> Standing | None:
        """Tell what is there; None: there is no such place yet. Changes nothing."""

    def prepare(self, standing: Standing | None) -> Standing:
        """Make the place, if there is none; return how it stands."""

    def begin(self, name: str, size: int) -> Upload | None:
        """Let it take a file of so many bytes, of which nothing is sent yet; None where there is nothing to begin."""

    def holds(self, name: str, size: int, upload: Upload) -> bool:
        """Whether all of a file that was sent is still there."""

    def commit(self, large: Sequence[Sent], small: Mapping[str, Path], standing: Standing) -> str | None:
        """Make everything visible, and what was there before go. Returns the commit, where there are commits.

        May be called again after it was cut short. Raises CannotRun if the place changed since `standing`.
        """

    def abort(self, uploads: Mapping[str, Upload]) -> None:
        """Give up what was sent and not committed."""


@dataclass(frozen=True, kw_only=True)
class SendOptions:
    """What the user said about the sending, beyond where to."""

    public: bool = False
    """Whether a repository that is made on the Hub is for everybody."""
    message: str = MESSAGE


def name_destination(text: str) -> Address | None:
    """Return the address that an output is to be sent to; None for a folder. Raises UsageError for what cannot be one.

    `hf://org/name@branch` names the branch to be written to.
    """
    address = parse_address(text)
    if address is None:
        return None
    if address.scheme in _READ_ONLY:
        message = f"`{text}` can be read, but nothing can be written there"
        raise UsageError(message, hint="write to a folder, hf://ORG/NAME, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
    if address.scheme == HUB and address.path.count("/") != 1:
        message = f"`{text}` is not the address of a repository on the Hub"
        raise UsageError(message, hint="write hf://ORG/NAME, or hf://ORG/NAME@BRANCH")
    return address


def name_repository(text: str) -> Address:
    """Return the address of `org/name` or `org/name@branch` on the Hub. Raises UsageError for what is none."""
    address = name_destination(text if "://" in text else f"hf://{text}")
    assert address is not None  # noqa: S101 - it has `://` in it
    return address


def open_destination(address: Address, options: SendOptions) -> Destination:
    """Return the place with this address. Asks no server, and loads no library of a store."""
    if address.scheme == HUB:
        from fp8cli.formats.hub_uploads import HubDestination

        return HubDestination(address, options)
    if address.scheme in _S3:
        from fp8cli.formats.bucket import BucketDestination
        from fp8cli.formats.bucket_s3 import S3Bucket

        return BucketDestination(address, S3Bucket(address))
    if address.scheme in _GCS:
        from fp8cli.formats.bucket import BucketDestination
        from fp8cli.formats.bucket_gcs import GcsBucket

        return BucketDestination(address, GcsBucket(address))
    from fp8cli.formats.moved_files import MovedFiles

    return MovedFiles(address)
