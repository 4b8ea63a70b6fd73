"""Models on the Hugging Face Hub: looked at by range requests, downloaded when their weights are needed.

`HubRepo` is a folder like any other to `open_checkpoint`: the listing gives names and sizes, small files come
through the cache, and of a shard only the header travels, some 256 KiB instead of gigabytes. The first answer
pins the commit, and everything after it is asked of that commit, so a push in between cannot mix two versions.
`download` fetches what a quantization reads and nothing else.

Endpoint, token, proxies, cache and offline mode are huggingface_hub's own (HF_ENDPOINT, HF_TOKEN, HF_HOME,
HF_HUB_OFFLINE, …). No message from here carries a token (see `hub_errors`).
"""

# Imports inside functions: huggingface_hub takes a third of a second to load, and a local checkpoint needs none of it.
# ruff: noqa: PLC0415

import contextlib
import glob
import re
import shutil
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from fp8cli.errors import BadInput, CannotRun, Fp8Error
from fp8cli.formats.checkpoint import CONFIG, MAX_JSON_BYTES, LocalFolder, open_checkpoint
from fp8cli.formats.complaints import Complain, refuse
from fp8cli.formats.hub_errors import (
    HubRequest,
    explain,
    is_out_of_reach,
    is_passing,
    no_room,
    not_a_hub,
    not_cached,
    pause_asked,
)
from fp8cli.formats.hub_transfer import stream_range
from fp8cli.formats.interruption import first_on_stop
from fp8cli.formats.patience import Patience
from fp8cli.formats.remote_headers import RemoteHeaders, fetch_header
from fp8cli.formats.safetensors import Header

_PAUSES: Final = (1.0, 2.0)
"""Seconds to wait before asking again when a server stumbles."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Downloading:
    """Told to `notify` once, before a download that has something to fetch."""

    repo_id: str
    commit: str
    files: int
    bytes: int


@dataclass(frozen=True)
class _Listing:
    commit: str
    files: Mapping[str, int]
    cached: LocalFolder | None
    """The snapshot in the cache, when there is nothing but the cache to ask."""
    versions: Mapping[str, str]
    """SHA-256 of the files that the Hub tells it of, Git's hash of the others."""


@dataclass(frozen=True)
class HubRepo:
    """A model repository at one commit. With HF_HUB_OFFLINE, what the cache holds of it."""

    repo_id: str
    revision: str | None = None
    """Branch, tag or commit, as the user gave it; None is the main branch."""
    _headers: RemoteHeaders = field(default_factory=RemoteHeaders, init=False, repr=False, compare=False)
    _versions: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What the first answer called each file."""

    @property
    def label(self) -> str:
        """The Hub id, with the revision if one was asked for."""
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"

    @property
    def commit(self) -> str:
        """The commit that everything is read from."""
        return self._listing.commit

    @property
    def cached(self) -> LocalFolder | None:
        """The snapshot in the cache, in offline mode."""
        return self._listing.cached

    def files(self) -> Mapping[str, int]:
        """Every file of the commit with its size, from one request."""
        return self._listing.files

    def read(self, name: str) -> bytes:
        """Return a small file, through the cache. Raises BadInput if it is far too large for what it is."""
        if self.cached is not None:
            return self.cached.read(name)
        if self.files()[name] > MAX_JSON_BYTES:
            message = f"`{name}` is {self.files()[name]:,} bytes long, which no such file is"
            raise BadInput(message)
        with _explained(self), _progress_bars(wanted=False):
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(self.repo_id, name, revision=self.commit)).read_bytes()

    def header(self, name: str, complain: Complain = refuse) -> Header:
        """Return the header of one file. The first call fetches those of all shards, several at a time."""
        return self._headers.get(name, self.files(), self._fetch_header, complain)

    def fetch_headers(self, names: Sequence[str]) -> None:
        """Fetch several headers at a time, for `header` to return; what is wrong with one shows there."""
        self._headers.fetch(names, self._fetch_header)

    def fetch(self, name: str, begin: int, end: int) -> bytes:
        """Return bytes [begin, end) of a file. Raises CannotRun if it ends before. Threads may call it at once."""
        data = bytearray()
        patience = Patience(self, pauses=_PAUSES)
        got = patience.read(lambda at: self.stream(name, at, end), begin, end, lambda _, chunk: data.extend(chunk))
        if got < end - begin:
            message = f"`{name}` of `{self.label}` ends at byte {begin + got:,}, before its header does"
            raise CannotRun(message, hint="run the command again; if it stays so, the repository is broken")
        return bytes(data)

    def stream(self, name: str, begin: int, end: int) -> Generator[bytes]:
        """Yield bytes [begin, end) of a file as they arrive. Raises what huggingface_hub does; see `explain`."""
        return stream_range(self.request, self.commit, name, (begin, end), self._versions)

    def state(self, names: Sequence[str]) -> dict[str, list[int | str]]:
        """Size and version of these files. A commit never changes, so they are those that were listed."""
        return {name: [self.files()[name], self._listing.versions.get(name, self.commit)] for name in names}

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 of a file that the Hub keeps as a large one; None for others, and offline."""
        version = self._listing.versions.get(name, "")
        return version if _SHA256.fullmatch(version) else None

    def is_passing(self, problem: BaseException) -> bool:
        """Whether asking again may help, of a Hub that has answered before."""
        return is_passing(problem) or is_out_of_reach(problem)

    def pause_asked(self, problem: BaseException) -> float | None:
        """For how many seconds the Hub wants to be left alone."""
        return pause_asked(problem)

    def explain(self, problem: BaseException) -> Fp8Error:
        """Return what to tell the user about an error of `stream`."""
        return explain(problem, self.request)

    @property
    def request(self) -> HubRequest:
        """What is asked, and of whom."""
        return _request_of(self)

    @cached_property
    def _listing(self) -> _Listing:
        with _explained(self):
            from huggingface_hub import HfApi, constants, try_to_load_from_cache

            if constants.HF_HUB_OFFLINE:
                config = try_to_load_from_cache(self.repo_id, CONFIG, revision=self.revision)
                if not isinstance(config, str):
                    raise not_cached(_request_of(self))
                folder = LocalFolder(Path(config).parent)
                return _Listing(folder.path.name, folder.files(), folder, {})
            info = Patience(self, pauses=_PAUSES).ask(
                lambda: HfApi().model_info(
                    self.repo_id, revision=self.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
                )
            )
        files = {file.rfilename: file.size for file in info.siblings or ()}
        sizes = {name: size for name, size in files.items() if size is not None}
        if info.sha is None or len(sizes) < len(files):
            raise not_a_hub(_request_of(self))
        versions = {each.rfilename: each.lfs.sha256 if each.lfs else each.blob_id for each in info.siblings or ()}
        return _Listing(info.sha, sizes, None, {name: version for name, version in versions.items() if version})

    def _fetch_header(self, name: str, complain: Complain) -> Header:
        if self.cached is not None:
            return self.cached.header(name, complain)
        return fetch_header(self.fetch, name, self.files()[name], complain)


def download(
    repo: HubRepo, notify: Callable[[Downloading], None] = lambda _: None, *, progress: bool = True
) -> LocalFolder:
    """Fetch what a quantization reads into the Hub cache and return the snapshot of `repo.commit`.

    Files that are there already are not fetched again. `progress` shows huggingface_hub's bars on a terminal.
    Raises BadInput for a broken checkpoint, before any shard is fetched, and CannotRun if it does not fit.
    """
    checkpoint = open_checkpoint(repo)
    if repo.cached is not None:
        return repo.cached
    small = checkpoint.small_files
    shards = [shard.name for shard in checkpoint.shards]
    missing = _missing(repo, [*small, *shards])
    _check_room(repo, sum(missing))
    if missing:
        notify(Downloading(repo_id=repo.repo_id, commit=repo.commit, files=len(missing), bytes=sum(missing)))
    with _progress_bars(wanted=progress), _stopped_at_once():
        _snapshot(repo, small)
        # Shards last: in offline mode, a snapshot with all shards is then a whole one.
        folder = _snapshot(repo, shards)
    _remember_revision(repo, folder)
    return LocalFolder(folder)


def _missing(repo: HubRepo, names: Sequence[str]) -> Sequence[int]:
    """Return the sizes of those files that are not in the cache, at this commit or another one that shares them."""
    with _explained(repo), _progress_bars(wanted=False):
        from huggingface_hub import snapshot_download

        patterns = [glob.escape(name) for name in names]  # `[` is legal in the name of a file.
        plan = snapshot_download(repo.repo_id, revision=repo.commit, allow_patterns=patterns, dry_run=True)
    return [file.file_size or 0 for file in plan if file.will_download]


def _snapshot(repo: HubRepo, names: Sequence[str]) -> Path:
    with _explained(repo):
        from huggingface_hub import snapshot_download

        patterns = [glob.escape(name) for name in names]
        return Path(
            Patience(repo, pauses=_PAUSES).ask(
                lambda: snapshot_download(repo.repo_id, revision=repo.commit, allow_patterns=patterns)
            )
        )


def _check_room(repo: HubRepo, needed: int) -> None:
    request = _request_of(repo)
    existing = next(folder for folder in (request.cache, *request.cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise no_room(request, needed=needed, free=free)


def _remember_revision(repo: HubRepo, snapshot: Path) -> None:
    """Note in the cache which commit the revision was, so that it is found offline; asking by commit does not."""
    if repo.revision == repo.commit:
        return
    note = snapshot.parent.parent / "refs" / (repo.revision or "main")
    # A cache that cannot be written is no reason to fail now that everything is there.
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(repo.commit)


@contextmanager
def _progress_bars(*, wanted: bool) -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]  # lazy

    if (wanted and sys.stderr.isatty()) or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _stopped_at_once() -> Iterator[None]:
    """Let Ctrl-C end a download now: huggingface_hub would first finish the files it is at, for minutes perhaps."""
    from huggingface_hub import close_session, constants

    def hang_up() -> None:
        close_session()
        with contextlib.suppress(ImportError):  # Not in every version, and there is no public way.
            from huggingface_hub.utils._xet import abort_xet_session

            abort_xet_session()  # type: ignore[no-untyped-call]

    def stop() -> None:
        constants.HF_HUB_OFFLINE = True  # So that no worker asks again, nor for the next file.
        # On another thread, because this one may just be holding a lock of the HTTP client.
        threading.Thread(target=hang_up).start()

    try:
        with first_on_stop(stop):
            yield
    finally:
        constants.HF_HUB_OFFLINE = False


@contextmanager
def _explained(repo: HubRepo) -> Iterator[None]:
    """Turn what huggingface_hub raises into one sentence with the next step."""
    try:
        yield
    except Fp8Error:
        raise
    except Exception as problem:
        raise explain(problem, _request_of(repo)) from problem


def _request_of(repo: HubRepo) -> HubRequest:
    from huggingface_hub import constants

    return HubRequest(
        repo_id=repo.repo_id, revision=repo.revision, endpoint=constants.ENDPOINT, cache=Path(constants.HF_HUB_CACHE)
    )
