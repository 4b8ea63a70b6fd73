"""The part of the loopback Hub that takes uploads: repositories made, files put into its storage, commits.

It speaks what huggingface_hub speaks without Xet: preupload, LFS batch, PUT of a file or of its parts, completion, and
commits as lines of JSON. It checks what it gets, as the Hub does: a commit that names what is not in the storage, or
that stands on another commit than the branch does, is refused.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

from fp8cli.formats import hub_uploads
from tests.loopback_hub import File, LoopbackHub, Repo, Request, _Handler, _is_large

Stumble = int | Literal["cut", "lost"]
"""A status; the connection cut off in the middle of the body; or done, and cut off before it is told."""


@dataclass(frozen=True)
class Uploaded(File):
    """A file by what the Hub really calls it: SHA-256 of what lies in its storage, git's SHA-1 of the rest."""

    large: bool = False

    @property
    def etag(self) -> str:
        if self.large:
            return hashlib.sha256(self.head).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.head) + self.head, usedforsecurity=False).hexdigest()


@dataclass
class UploadHub(LoopbackHub):
    """A loopback Hub that can be written to."""

    writers: set[str] = field(default_factory=set)
    """Tokens that may write; others of `tokens` only read."""
    storage: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256, in a commit or not."""
    chunk_bytes: int | None = None
    """Ask for files in parts of that size."""
    retry_after: str | None = None
    """What a status of `stumble` comes with."""
    bytes_taken: int = 0
    """Bytes of bodies of PUT."""
    _parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    _stumbles: list[tuple[str, str, Stumble]] = field(default_factory=list)

    def stumble(self, method: str, path: str, *stumbles: Stumble) -> None:
        """Let the next requests of that method whose path contains `path` fail, one each."""
        self._stumbles += [(method, path, stumble) for stumble in stumbles]

    def contents(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a branch holds, but for what every repository has."""
        repo = self.repos[repo_id]
        return {name: file.head for name, file in repo.commits[repo.branches[revision]].items() if name[0] != "."}

    def __enter__(self) -> Self:
        super().__enter__()
        for server in self._servers:
            server.RequestHandlerClass = _UploadHandler
        return self

    def _next_stumble(self, method: str, path: str) -> Stumble | None:
        with self._lock:
            for index, (wanted, part, stumble) in enumerate(self._stumbles):
                if method == wanted and part in path:
                    del self._stumbles[index]
                    return stumble
        return None


@contextmanager
def serving(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """Serve an empty Hub, for this process alone, to whom it is known as one who may write. No pause lasts."""
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    patch.setenv("HF_TOKEN", "hf_writer")
    patch.setattr(hub_uploads, "_PAUSES", (0.0, 0.0))
    # What huggingface_hub repeats by itself, it repeats after some seconds.
    patch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None, time=time.time))
    with UploadHub(tokens={"hf_writer", "hf_reader"}, writers={"hf_writer"}) as running:
        patch.setattr(constants, "ENDPOINT", running.url)
        yield running
        close_session()


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Exists(_Refused):
    """A repository is there already; the Hub tells where."""


class _UploadHandler(_Handler):
    def do_POST(self) -> None:  # noqa: N802 -- http.server calls it so
        self._take()

    def do_PUT(self) -> None:  # noqa: N802
        self._take()

    def _take(self) -> None:
        hub = self.server.hub
        assert isinstance(hub, UploadHub)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.failure = None
        hub._note(Request(self.command, headers["host"], self.path, headers))
        stumble = hub._next_stumble(self.command, self.path)
        try:
            if stumble == "cut":
                self.rfile.read(int(headers.get("content-length", 0)) // 2)
                self.close_connection = True
                return
            body = self._body(headers)
            if isinstance(stumble, int):
                self._stumble(stumble, hub.retry_after)
                return
            token = headers.get("authorization", "").removeprefix("Bearer ")
            answer, extra = self._act(hub, urlsplit(self.path).path, token, body)
            if stumble == "lost":
                self.close_connection = True
                return
            content = json.dumps(answer).encode()
            self.send_response(200)
            for name, value in {"Content-Length": str(len(content)), **extra}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except _Exists as known:
            self._stumble(known.status, None, {"error": "You already created this model repo", "url": str(known)})
        except _Refused as refusal:
            self._refuse(refusal.status, message=str(refusal))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _stumble(self, status: int, retry_after: str | None, answer: Mapping[str, str] | None = None) -> None:
        content = json.dumps(answer or {"error": "the server stumbled"}).encode()
        self.send_response(status)
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _act(self, hub: UploadHub, path: str, token: str, body: bytes) -> tuple[object, dict[str, str]]:
        if match := re.fullmatch(r"/storage/([0-9a-f]{64})(?:/(\d+|complete))?", path):
            return self._store(hub, match[1], match[2], body)
        if token not in hub.tokens:
            raise _Refused(401, "Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}, {}
        if token not in hub.writers:
            raise _Refused(403, "you have no write access")
        asked = [json.loads(line) for line in body.splitlines() if line.strip()]
        if path == "/api/repos/create":
            return _create(hub, asked[0], token), {}
        match = re.fullmatch(r"(?:/api/models)?/(?P<id>[^/]+/[^/]+?)(?:\.git)?/(?P<what>[a-z-]+)/(?P<rest>.+)", path)
        if match is None or match["id"] not in hub.repos:
            raise _Refused(404, "Repository not found")
        repo, rest = hub.repos[match["id"]], unquote(match["rest"])
        match match["what"]:
            case "branch":
                repo.branches[rest] = repo.branches["main"]
                return {}, {}
            case "preupload":
                modes = {True: "lfs", False: "regular"}
                names = [file["path"] for file in asked[0]["files"]]
                files = [{"path": n, "uploadMode": modes[_is_large(n)], "shouldIgnore": False} for n in names]
                return {"files": files}, {}
            case "info":
                return {"objects": [self._batch(hub, each) for each in asked[0]["objects"]]}, {}
            case "commit":
                return _commit(hub, repo, match["id"], rest, asked), {}
        raise _Refused(404, "no such thing")

    def _batch(self, hub: UploadHub, wanted: Mapping[str, object]) -> dict[str, object]:
        oid, size = wanted["oid"], wanted["size"]
        if oid in hub.storage:
            return {"oid": oid, "size": size}
        place = f"{hub.url}/storage/{oid}"
        if hub.chunk_bytes is None:
            return {"oid": oid, "size": size, "actions": {"upload": {"href": f"{place}?Signature=signed"}}}
        assert isinstance(size, int)
        count = -(-size // hub.chunk_bytes)
        header = {"chunk_size": str(hub.chunk_bytes)}
        header |= {str(number): f"{place}/{number}?Signature=signed" for number in range(1, count + 1)}
        return {"oid": oid, "size": size, "actions": {"upload": {"href": f"{place}/complete", "header": header}}}

    def _store(self, hub: UploadHub, oid: str, what: str | None, body: bytes) -> tuple[object, dict[str, str]]:
        if what == "complete":
            parts = hub._parts.pop(oid)
            content = b"".join(parts[number] for number in sorted(parts))
        elif what is not None:
            hub.bytes_taken += len(body)
            hub._parts.setdefault(oid, {})[int(what)] = body
            return {}, {"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'}
        else:
            hub.bytes_taken += len(body)
            content = body
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refused(400, "the content is not that of the SHA-256")
        hub.storage[oid] = content
        return {}, {}


def _create(hub: UploadHub, asked: Mapping[str, str], token: str) -> object:
    repo_id = f"{asked['organization']}/{asked['name']}"
    if repo_id in hub.repos:
        raise _Exists(409, f"{hub.url}/{repo_id}")
    access: Literal["public", "private"] = "public" if asked.get("visibility") == "public" else "private"
    hub.repos[repo_id] = Repo(access=access, readers={token})
    hub.repos[repo_id].push({".gitattributes": Uploaded(b"*.safetensors filter=lfs\n")})
    return {"url": f"{hub.url}/{repo_id}", "name": repo_id}


def _commit(hub: UploadHub, repo: Repo, repo_id: str, branch: str, asked: list[dict[str, dict[str, str]]]) -> object:
    parent = asked[0]["value"].get("parentCommit")
    if parent is not None and repo.branches[branch] != parent:
        raise _Refused(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repo.commits[repo.branches[branch]])
    for line in asked[1:]:
        value = line["value"]
        match line["key"]:
            case "file":
                files[value["path"]] = Uploaded(base64.b64decode(value["content"]))
            case "lfsFile":
                if value["oid"] not in hub.storage:
                    raise _Refused(400, f"{value['oid']} was not uploaded")
                files[value["path"]] = Uploaded(hub.storage[value["oid"]], large=True)
            case "deletedFile":
                del files[value["path"]]
    commit = repo.push(files, branch)
    return {"commitUrl": f"{hub.url}/{repo_id}/commit/{commit}", "commitOid": commit}
