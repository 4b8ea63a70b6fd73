"""A checkpoint in an object store, or wherever else fsspec reads: listed, looked into, and read by ranges.

The first listing pins every file: size and version (the ETag of S3, the generation of Google's, else what the store
has in their place) go with each, and these two are asked for no other version. What changes all the same shows when
`state` lists anew. Credentials, endpoint and the like are those of the store's own library (AWS_…, GOOGLE_…,
FSSPEC_…), and are never shown.
"""

# Imports inside functions: fsspec and the libraries of stores take a second, and a local checkpoint needs none of them.
# ruff: noqa: PLC0415

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Final

from fp8cli.errors import BadInput, CannotRun, Fp8Error
from fp8cli.formats import remote_errors, store_errors
from fp8cli.formats.addresses import Address
from fp8cli.formats.checkpoint import MAX_JSON_BYTES
from fp8cli.formats.complaints import Complain, refuse
from fp8cli.formats.gcs_objects import find_objects, stream_object
from fp8cli.formats.gcs_requests import GcsRequests
from fp8cli.formats.patience import FEW, Patience
from fp8cli.formats.remote_headers import RemoteHeaders, fetch_header
from fp8cli.formats.safetensors import Header

CHUNK_BYTES: Final = 2**20
READ_TIMEOUT: Final = 20
"""Seconds for which a connection may be silent."""

_VERSIONS: Final = (
    "ETag",
    "etag",
    "VersionId",
    "version_id",
    "LastModified",
    "mtime",
    "created",
)
"""What stores call the version of a file, the surest first."""


@dataclass(frozen=True)
class RemoteFolder:
    """A folder by its address."""

    address: Address
    _headers: RemoteHeaders = field(default_factory=RemoteHeaders, init=False, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The address, without what may be secret in it."""
        return self.address.label

    def files(self) -> Mapping[str, int]:
        """Every file below the folder with its size, as they were when they were first listed."""
        return {name: size for name, (size, _) in self._pinned.items()}

    def state(self, names: Sequence[str]) -> dict[str, list[int | str]]:
        """Size and version of these files, listed anew. Raises BadInput for one that is not the one listed at first."""
        found = self._list()
        changed = next((name for name in names if found.get(name) != self._pinned.get(name)), None)
        if changed is not None:
            raise remote_errors.changed(self.address, changed)
        return {name: [*found[name]] for name in names}

    def read(self, name: str) -> bytes:
        """Return a small file. Raises BadInput if it is far too large for what it is."""
        size = self.files()[name]
        if size > MAX_JSON_BYTES:
            message = f"`{name}` is {size:,} bytes long, which no such file is"
            raise BadInput(message)
        return self.fetch(name, 0, size)

    def header(self, name: str, complain: Complain = refuse) -> Header:
        """Return the header of one file. The first call fetches those of all shards, several at a time."""
        return self._headers.get(name, self.files(), self._fetch_header, complain)

    def fetch_headers(self, names: Sequence[str]) -> None:
        """Fetch several headers at a time, for `header` to return; what is wrong with one shows there."""
        self._headers.fetch(names, self._fetch_header)

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        """Return bytes [begin, end) of a file. Raises CannotRun if it ends before. Threads may call it at once."""
        data = bytearray()
        got = Patience(self).read(
            lambda at: self.stream(name, at, end), begin, end, lambda _, chunk: data.extend(chunk)
        )
        if got < end - begin:
            message = f"`{name}` in `{self.label}` ends at byte {begin + got:,}, but {self.files()[name]:,} were listed"
            raise CannotRun(message, hint="run the command again; if it stays so, the file is cut short")
        return bytes(data)

    def stream(self, name: str, begin: int, end: int) -> Generator[bytes]:
        """Yield bytes [begin, end) of a file as they arrive. Raises what the store's library does: see `explain`."""
        version = str(self._pinned[name][1])
        if self._google is not None:
            key = f"{self._prefix}{name}"
            yield from stream_object(self._google, key, (begin, end), version, silence=READ_TIMEOUT)
            return
        path = f"{self._root}/{name}"
        if _is_s3(self._system):
            yield from _stream_object(self._system, path, (begin, end), version)
            return
        for at in range(begin, end, CHUNK_BYTES):
            yield self._system.cat_file(path, start=at, end=min(at + CHUNK_BYTES, end))

    def is_passing(self, problem: BaseException) -> bool:
        """Whether asking again may help."""
        return store_errors.is_passing(problem)

    def pause_asked(self, problem: BaseException) -> float | None:
        """For how many seconds the store wants to be left alone."""
        return store_errors.pause_asked(problem)

    def explain(self, problem: BaseException) -> Fp8Error:
        """Return what to tell the user about an error of `stream`."""
        return remote_errors.explain(problem, self.address)

    def _fetch_header(self, name: str, complain: Complain) -> Header:
        return fetch_header(self.fetch, name, self.files()[name], complain)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system of fsspec, and what it calls the folder."""
        try:
            import fsspec

            # An instance of its own: what is asked again, and when, is decided here (see formats.patience).
            system, root = fsspec.core.url_to_fs(self.address.text, skip_instance_cache=True, **_settings(self.address))
        except (ImportError, ValueError) as problem:
            raise remote_errors.no_library(self.address, problem) from problem
        except Exception as problem:
            raise self.explain(problem) from problem
        if _is_s3(system):
            system.retries = 1
        return system, root

    @cached_property
    def _google(self) -> GcsRequests | None:
        """Requests to Google Cloud Storage, if that is where it lies."""
        if remote_errors.EXTRAS.get(self.address.scheme) != "gcs":
            return None
        requests = GcsRequests(self.address)
        try:
            requests.open()
        except ImportError as problem:
            raise remote_errors.no_library(self.address, problem) from problem
        return requests

    @property
    def _prefix(self) -> str:
        """What the key of every file in the folder begins with."""
        folder = self.address.path.partition("/")[2].rstrip("/")
        return f"{folder}/" if folder else ""

    @property
    def _system(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1].rstrip("/")

    @cached_property
    def _pinned(self) -> Mapping[str, tuple[int, str]]:
        return self._list()

    def _list(self) -> Mapping[str, tuple[int, str]]:
        """Ask for every file with its size and version, hidden folders left out as in a local folder."""
        found: dict[str, tuple[int, str]] = {}
        for name, pinned in sorted(Patience(self, pauses=FEW).ask(self._find).items()):
            if not name or name.endswith("/"):
                continue
            parts = name.split("/")
            if {"", ".", ".."} & set(parts) or "\0" in name:
                message = f"`{self.label}` holds `{name}`, which is no name for a file"
                raise BadInput(message, hint="remove or rename it")
            if any(part.startswith((".", "__pycache__")) for part in PurePosixPath(name).parts[:-1]):
                continue
            found[name] = pinned
        if not found:
            # A store has no empty folders.
            raise self.explain(FileNotFoundError())
        return found

    def _find(self) -> dict[str, tuple[int, str]]:
        """Return size and version of whatever lies below the folder, by its path from there."""
        if self._google is not None:
            listed = find_objects(self._google, self._prefix)
            return {key.removeprefix(self._prefix): pinned for key, pinned in listed.items()}
        system, root = self._system, self._root
        system.invalidate_cache()
        files = {path: info for path, info in system.find(root, detail=True).items() if info.get("type") == "file"}
        return {path.removeprefix(root).removeprefix("/"): _pin(info) for path, info in files.items()}


def _pin(info: Mapping[str, Any]) -> tuple[int, str]:
    """Return size and version of a file as fsspec describes it."""
    version = next((str(info[key]) for key in _VERSIONS if info.get(key) is not None), "")
    return int(info["size"] or 0), version


def _settings(address: Address) -> Mapping[str, object]:
    """Return what to open a store with, besides what the user has set for it."""
    if remote_errors.EXTRAS.get(address.scheme) != "s3":
        return {}
    from fsspec.config import conf

    if "config_kwargs" in conf.get("s3", {}):
        return {}
    settings = {
        "read_timeout": READ_TIMEOUT,
        "connect_timeout": READ_TIMEOUT,
        "max_pool_connections": 64,
        "retries": {"max_attempts": 0},
    }
    return {"config_kwargs": settings}


def _is_s3(system: Any) -> bool:
    return "s3" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol)


def _stream_object(system: Any, path: str, span: tuple[int, int], version: str) -> Generator[bytes]:
    """Yield a range of an object of S3, of that version alone."""
    from fsspec.asyn import sync

    bucket, key, _ = system.split_path(path)
    wanted = {"Range": f"bytes={span[0]}-{span[1] - 1}", **({"IfMatch": version} if version else {})}
    body = system.call_s3("get_object", Bucket=bucket, Key=key, **wanted)["Body"]
    try:
        while chunk := sync(system.loop, body.read, CHUNK_BYTES):
            yield chunk
    finally:
        system.loop.call_soon_threadsafe(body.close)
