"""A repository on the Hub as the place a checkpoint is sent to: large files first, then one commit with everything.

Large files go into the Hub's storage by their SHA-256, where nobody sees them, and huggingface_hub sees to parts and
repetition. The commit names them, brings the small files along, removes what was there before, and is made only on top
of the commit that was found at the start. A repository that is not there is made, for its owner alone unless asked.

Endpoint, token and proxies are huggingface_hub's own (HF_ENDPOINT, HF_TOKEN, HF_HOME, …), and are never shown.
"""

# Imports inside functions: huggingface_hub takes a third of a second to load.
# ruff: noqa: PLC0415

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from fp8cli.errors import CannotRun, Fp8Error
from fp8cli.formats.addresses import Address
from fp8cli.formats.destinations import Notes, SendOptions, Sent, Standing, Upload
from fp8cli.formats.hub_errors import HubRequest
from fp8cli.formats.hub_upload_errors import explain_upload, is_passing_upload, retry_after, status_of
from fp8cli.formats.patience import Patience

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo

_PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds to wait before asking again, after huggingface_hub has asked several times itself."""

_LEFT_BY_OTHERS: Final = frozenset({"README.md", "LICENSE", "LICENSE.txt"})
"""What a repository has that was made on the Hub's pages: nothing that would be lost."""

_AT_THE_HUB: Final = "lfs"
_IN_THE_COMMIT: Final = "regular"
"""The Hub's own words for where a file lies; its .gitattributes decide."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class HubDestination:
    """A branch of a repository; see `destinations.Destination`."""

    address: Address
    options: SendOptions

    @property
    def label(self) -> str:
        """The address."""
        return self.address.text

    def look(self) -> Standing | None:
        """List the branch; None if there is no such repository. A branch that is not there is an empty one."""
        with self._explained():
            found = self._find()
        if found is None:
            return None
        version, files = found
        kept = tuple(name for name in files if not name.startswith("."))
        return Standing(files=() if _LEFT_BY_OTHERS.issuperset(kept) else kept, version=version)

    def prepare(self, standing: Standing | None) -> Standing:
        """Make the repository and the branch where they are missing."""
        if standing is not None and standing.version is not None:
            return standing
        repo, branch = self.address.path, self.address.revision
        with self._explained():
            if standing is None:
                self._ask(lambda: self._api.create_repo(repo, private=not self.options.public, exist_ok=True))
            if branch is not None:
                self._ask(lambda: self._api.create_branch(repo, branch=branch, exist_ok=True))
        standing = self.look()
        if standing is None:
            message = f"`{self.label}` was made, and {self._request.host} does not show it"
            raise CannotRun(message, hint="your token needs to read it too; run the command again")
        return standing

    def begin(self, name: str, size: int) -> None:
        """Nothing to do: the storage knows files by their content."""
        del name, size

    def send(self, name: str, file: Path, before: Upload | None, notes: Notes) -> tuple[Upload, str]:
        """Put a file into the Hub's storage, which takes no file twice."""
        del before
        with self._explained():
            addition = self._addition(name, file)
            self._ask(lambda: self._preupload(addition))
            sha256 = addition.upload_info.sha256.hex()
        # What went into the storage is let go of; a file that has to travel in the commit is not.
        kept = addition.path_or_fileobj == b""
        notes.sent(file.stat().st_size)
        return Upload(id=_AT_THE_HUB if kept else _IN_THE_COMMIT, parts={1: sha256}), sha256

    def holds(self, name: str, size: int, upload: Upload) -> bool:
        """Ask the Hub's storage, which says what it wants to have sent."""
        del name
        if upload.id != _AT_THE_HUB:
            return True
        from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # lazy

        wanted = UploadInfo(size=size, sample=b"", sha256=bytes.fromhex(upload.parts[1]))
        with self._explained():
            actions, errors, _ = self._ask(
                lambda: post_lfs_batch_info(
                    upload_infos=[wanted],
                    token=None,
                    repo_type="model",
                    repo_id=self.address.path,
                    headers=build_hf_headers(),
                )
            )
        return not errors and all(action.get("actions") is None for action in actions)

    def commit(self, large: Sequence[Sent], small: Mapping[str, Path], standing: Standing) -> str:
        """Make one commit with everything; what it made of one whose answer was lost is found out."""
        names = {**{sent.name: sent.file for sent in large}, **small}
        gone = [name for name in standing.files if name not in names]

        def ask() -> str:
            additions = [self._of_sent(sent) for sent in large]
            additions += [self._addition(name, file) for name, file in small.items()]
            return self._commit(additions, gone, standing)

        def ask_once() -> str:
            try:
                return ask()
            except Exception:
                # A commit can be made only once: perhaps it was, and the answer was lost.
                if (made := self._is_made(large, small)) is None:
                    raise
                return made

        with self._explained():
            return self._ask(ask_once)

    def abort(self, uploads: Mapping[str, Upload]) -> None:
        """Nothing to do: the Hub throws away what no commit names."""

    @cached_property
    def _api(self) -> "HfApi":
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars, logging  # type: ignore[attr-defined]  # lazy

        # Its warnings hold the addresses of uploads, which are signed; what went wrong in the end is said here.
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # a function without types
        disable_progress_bars()
        return HfApi()

    @property
    def _branch(self) -> str:
        return self.address.revision or "main"

    @property
    def _request(self) -> HubRequest:
        from huggingface_hub import constants

        return HubRequest(
            repo_id=self.address.path,
            revision=self.address.revision,
            endpoint=constants.ENDPOINT,
            cache=Path(constants.HF_HUB_CACHE),
        )

    def _find(self) -> tuple[str | None, Mapping[str, tuple[int, str]]] | None:
        """Return the branch's commit, and size and hash of each of its files; None if there is no repository."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        def ask() -> "ModelInfo | Literal['no repository', 'no branch']":
            try:
                return self._api.model_info(self.address.path, revision=self._branch, files_metadata=True)
            except RepositoryNotFoundError as problem:
                if status_of(problem) == 401 and "authorization" in problem.response.request.headers:
                    raise
                return "no repository"
            except RevisionNotFoundError:
                return "no branch"

        info = self._ask(ask)
        if isinstance(info, str):
            return None if info == "no repository" else (None, {})
        files = {}
        for file in info.siblings or ():
            files[file.rfilename] = (file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        return info.sha, files

    def _addition(self, name: str, file: Path) -> "CommitOperationAdd":
        from huggingface_hub import CommitOperationAdd

        return CommitOperationAdd(path_in_repo=name, path_or_fileobj=file)

    def _preupload(self, addition: "CommitOperationAdd") -> None:
        self._api.preupload_lfs_files(self.address.path, [addition], revision=self._branch)

    def _of_sent(self, sent: Sent) -> "CommitOperationAdd":
        """Return the part of a commit that names a large file.

        The file here may be full of holes by now, so that it must not be looked at again. huggingface_hub has no
        public way to say that a file was sent by another process; the fields it keeps for itself are looked for first.
        """
        addition = self._addition(sent.name, sent.file)
        if sent.upload.id != _AT_THE_HUB:
            return addition
        if not hasattr(addition, "_is_uploaded") or not hasattr(addition, "_upload_mode"):
            message = "this version of huggingface_hub cannot commit what was sent before"
            raise CannotRun(message, hint="pip install 'huggingface_hub<2'; what was sent is kept")
        addition.upload_info.sha256 = bytes.fromhex(sent.sha256)
        addition._is_uploaded, addition._upload_mode = True, "lfs"  # noqa: SLF001 - as said above
        return addition

    def _commit(self, additions: Sequence["CommitOperationAdd"], gone: Sequence[str], standing: Standing) -> str:
        from huggingface_hub import CommitOperationDelete

        made = self._api.create_commit(
            self.address.path,
            operations=[*additions, *(CommitOperationDelete(name) for name in gone)],
            commit_message=self.options.message,
            revision=self._branch,
            parent_commit=standing.version,
        )
        return made.oid

    def _is_made(self, large: Sequence[Sent], small: Mapping[str, Path]) -> str | None:
        """Return the commit that stands there, if it holds what is to be committed."""
        found = self._find()
        if found is None or found[0] is None:
            return None
        hashes = {sent.name: {sent.sha256} for sent in large}
        hashes |= {name: _hashes(file.read_bytes()) for name, file in small.items()}
        there = {name: sha for name, (_, sha) in found[1].items()}
        return found[0] if all(there.get(name) in wanted for name, wanted in hashes.items()) else None

    def is_passing(self, problem: BaseException) -> bool:
        """Whether asking again may help."""
        return is_passing_upload(problem)

    def pause_asked(self, problem: BaseException) -> float | None:
        """For how many seconds the Hub wants to be left alone."""
        return retry_after(problem)

    def explain(self, problem: BaseException) -> Fp8Error:
        """Return what to tell the user about an error of huggingface_hub."""
        return explain_upload(problem, self._request)

    def _ask(self, question: Callable[[], _Answer]) -> _Answer:
        """Ask the Hub, and again where that may help. Raises Fp8Error."""
        return Patience(self, pauses=_PAUSES).ask(question)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Fp8Error:
            raise
        except Exception as problem:
            raise self.explain(problem) from problem


def _hashes(content: bytes) -> set[str]:
    """Return what the Hub may call a small file by: SHA-256 of what lies in its storage, git's SHA-1 of the rest."""
    blob = b"blob %d\0" % len(content) + content
    return {hashlib.sha256(content).hexdigest(), hashlib.sha1(blob, usedforsecurity=False).hexdigest()}
