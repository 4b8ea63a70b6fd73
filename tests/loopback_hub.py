"""A Hugging Face Hub of its own on 127.0.0.1: a real HTTP server with the part of the API that downloads use.

It keeps repositories, of models and of data sets, with commits and branches in memory, counts every byte it sends,
remembers every request, and can be told to stumble: answer with a status, break off in the middle of a file, ignore
ranges, or send the large files from a second host, as the Hub's CDN does (which, like the real one, takes no access
tokens).
"""

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote, unquote, urlsplit

_BLOCK = 64 * 2**10

_LISTING = (
    r"/api/(?P<type>models|datasets)/(?P<id>.+?)"
    r"(?:/(?P<kind>revision|tree)/(?P<revision>[^/]+)(?:/(?P<below>.+))?)?"
)


@dataclass(frozen=True)
class File:
    """Bytes that are written down, followed by as many zeros as wanted: large files cost no memory."""

    head: bytes
    zeros: int = 0

    @property
    def size(self) -> int:
        return len(self.head) + self.zeros

    @property
    def etag(self) -> str:
        """As on the Hub, the SHA-256; but of a file with zeros, which would take long, something as distinct."""
        return hashlib.sha256(self.head + (b"%d" % self.zeros if self.zeros else b"")).hexdigest()

    def slice(self, begin: int, end: int) -> bytes:
        end = min(end, self.size)
        head = self.head[begin:end]
        return head + bytes(max(0, end - begin - len(head)))


@dataclass
class Repo:
    """A repository: what each commit holds, and which commit each branch is at."""

    commits: dict[str, Mapping[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    access: Literal["public", "private", "gated"] = "public"
    readers: set[str] = field(default_factory=set)
    """Tokens that may read it when it is not public."""

    def push(self, files: Mapping[str, bytes | File], branch: str = "main") -> str:
        """Make a commit that holds exactly these files; return its name."""
        commit = hashlib.sha1(f"{branch} {len(self.commits)}".encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = {
            name: file if isinstance(file, File) else File(file) for name, file in sorted(files.items())
        }
        self.branches[branch] = commit
        return commit


@dataclass(frozen=True)
class Request:
    method: str
    host: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""


@dataclass(frozen=True)
class Break:
    """Send that many bytes of the body, then break the connection off."""

    after: int


@dataclass(frozen=True)
class Stall:
    """Send that many bytes of the body, then nothing more, until the client hangs up."""

    after: int


@dataclass(frozen=True)
class Short:
    """Send, and announce, no more than that many bytes of what was asked for."""

    bytes: int


@dataclass(frozen=True)
class Busy:
    """Answer with a status, and say for how long to keep away."""

    status: int
    retry_after: str


@dataclass(frozen=True)
class Changed:
    """Answer as if the file were another one by now."""


Failure = int | Break | Stall | Short | Busy | Changed


@dataclass
class LoopbackHub:
    """The server, running while it is entered. `url` is what HF_ENDPOINT must be."""

    repos: dict[str, Repo] = field(default_factory=dict)
    """By id; that of a data set has `datasets/` in front, as on the Hub's own pages."""
    tokens: set[str] = field(default_factory=set)
    """Every token that exists; any other one is refused."""
    ranges: Literal["honoured", "ignored", "shifted"] = "honoured"
    cdn: bool = False
    """Send .safetensors files from another host."""
    page: bytes | None = None
    """Answer everything with this HTML instead, as a login page of a network does."""
    sizes: bool = True
    """Tell the sizes of files in the listing."""
    pause: float = 0.0
    """Seconds to wait after every 64 KiB of a file."""
    requests: list[Request] = field(default_factory=list)
    bytes_sent: int = 0
    """Bytes of bodies, over all connections."""
    _failures: list[tuple[str, Failure, bool]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, path: str, *failures: Failure, inside: bool = False) -> None:
        """Let the next GETs whose path contains `path` fail: a number is a status, one failure a request.

        inside: only those for a range that does not begin where the file does, as its header does.
        """
        self._failures += [(path, failure, inside) for failure in failures]

    def recover(self) -> None:
        """Fail no more."""
        self._failures.clear()

    def paths(self, method: str, containing: str = "") -> list[str]:
        return [request.path for request in self.requests if request.method == method and containing in request.path]

    def forget(self) -> None:
        """Count from zero again."""
        self.requests.clear()
        self.bytes_sent = 0

    def __enter__(self) -> Self:
        self._servers = [_Server(self, is_cdn) for is_cdn in (False, True)]
        self.url = f"http://127.0.0.1:{self._servers[0].server_port}"
        # Another name for the same machine is another host to any client.
        self.cdn_url = f"http://localhost:{self._servers[1].server_port}"
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _note(self, request: Request) -> Failure | None:
        with self._lock:
            self.requests.append(request)
            whole = request.headers.get("range", "bytes=0-").startswith("bytes=0-")
            for index, (path, failure, inside) in enumerate(self._failures):
                if request.method == "GET" and path in request.path and not (inside and whole):
                    del self._failures[index]
                    return failure
        return None

    def _count(self, sent: int) -> None:
        with self._lock:
            self.bytes_sent += sent


class _Server(ThreadingHTTPServer):
    # Waiting for the connections to end would wait for clients that keep them open.
    daemon_threads = True

    def __init__(self, hub: LoopbackHub, is_cdn: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.is_cdn = is_cdn


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: _Server

    def setup(self) -> None:
        # Small buffers, so that what is counted as sent is about what the client has taken.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BLOCK)
        super().setup()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class calls it so
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def _respond(self) -> None:
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.failure = hub._note(Request(self.command, headers["host"], self.path, headers))
        token = headers.get("authorization", "").removeprefix("Bearer ")
        path = urlsplit(self.path).path
        if isinstance(self.failure, int):
            self._refuse(self.failure, message="the server stumbled")
        elif isinstance(self.failure, Busy):
            self._refuse(self.failure.status, message="slow down", headers={"Retry-After": self.failure.retry_after})
        elif self.server.is_cdn:
            self._answer_as_cdn(path, token)
        elif hub.page is not None:
            self._send(HTTPStatus.OK, {"Content-Type": "text/html"}, File(hub.page))
        elif token and token not in hub.tokens:
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif match := re.fullmatch(_LISTING, path):
            repo_id = match["id"] if match["type"] == "models" else f"{match['type']}/{match['id']}"
            revision = unquote(match["revision"] or "main")
            if match["kind"] == "tree":
                self._answer_tree(repo_id, revision, unquote(match["below"] or ""), token)
            else:
                self._answer_info(repo_id, revision, token)
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._answer_file(match[1], unquote(match[2]), unquote(match[3]), token)
        else:
            self._refuse(404)

    def _open(self, repo_id: str, revision: str, token: str) -> tuple[Repo, str] | None:
        """Return the repository and the commit, or refuse and return None."""
        repo = self.server.hub.repos.get(repo_id)
        if repo is None or (repo.access == "private" and token not in repo.readers):
            # A stranger is not told whether a repository exists.
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, commit

    def _answer_info(self, repo_id: str, revision: str, token: str) -> None:
        if (found := self._open(repo_id, revision, token)) is None:
            return
        repo, commit = found
        entries = []
        for name, file in repo.commits[commit].items():
            entry: dict[str, object] = {"rfilename": name}
            if self.server.hub.sizes:
                entry |= {"size": file.size, "blobId": file.etag[:40]}
                if _is_large(name):
                    entry["lfs"] = {"size": file.size, "pointerSize": 134, "sha256": file.etag}
            entries.append(entry)
        self._send_json({"id": repo_id.removeprefix("datasets/"), "sha": commit, "siblings": entries})

    def _answer_tree(self, repo_id: str, revision: str, below: str, token: str) -> None:
        """List what is in a folder, and in the folders inside it if asked to."""
        if (found := self._open(repo_id, revision, token)) is None:
            return
        repo, commit = found
        files = repo.commits[commit]
        root = PurePosixPath(below)
        folders = {folder for name in files for folder in PurePosixPath(name).parents[:-1]}
        if below and root not in folders:
            self._refuse(404, "EntryNotFound", f"{below} does not exist on {revision}")
            return
        recursive = "recursive=true" in urlsplit(self.path).query.lower()
        entries = [(folder, _describe_folder(str(folder))) for folder in sorted(folders)]
        entries += [(PurePosixPath(name), _describe(name, file)) for name, file in files.items()]
        self._send_json([entry for path, entry in entries if _is_in(path, root, recursive=recursive)])

    def _answer_file(self, repo_id: str, revision: str, name: str, token: str) -> None:
        if (found := self._open(repo_id, revision, token)) is None:
            return
        repo, commit = found
        if repo.access == "gated" and token not in repo.readers:
            self._refuse(403 if token else 401, "GatedRepo", f"Access to {repo_id} is restricted")
            return
        file = repo.commits[commit].get(name)
        if file is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        etag = file.etag[::-1] if isinstance(self.failure, Changed) else file.etag
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
        if self.server.hub.cdn and _is_large(name):
            place = f"{self.server.hub.cdn_url}/{repo_id}/{commit}/{quote(name)}?Signature=signed"
            headers |= {"Location": place, "X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.etag}"'}
            self._send(HTTPStatus.FOUND, headers, File(b"Found. Redirecting"))
        else:
            self._send_range(headers, file)

    def _answer_as_cdn(self, path: str, token: str) -> None:
        if token:
            self._refuse(400, message="Only one auth mechanism allowed")
            return
        match = re.fullmatch(r"/(.+)/([0-9a-f]{40})/(.+)", path)
        assert match is not None
        file = self.server.hub.repos[match[1]].commits[match[2]][unquote(match[3])]
        self._send_range({"ETag": f'"{file.etag}"'}, file)

    def _send_range(self, headers: dict[str, str], file: File) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or self.server.hub.ranges == "ignored":
            self._send(HTTPStatus.OK, headers, file)
            return
        begin = int(wanted[1])
        end = min(int(wanted[2]) + 1 if wanted[2] else file.size, file.size)
        if begin >= file.size:
            self._refuse(416, message="range starts past the end")
            return
        told = begin + 1 if self.server.hub.ranges == "shifted" else begin
        headers |= {"Content-Range": f"bytes {told}-{end - 1}/{file.size}"}
        self._send(HTTPStatus.PARTIAL_CONTENT, headers, file, begin, end)

    def _send_json(self, answer: object) -> None:
        self._send(HTTPStatus.OK, {"Content-Type": "application/json"}, File(json.dumps(answer).encode()))

    def _refuse(
        self, status: int, code: str | None = None, message: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self._send(HTTPStatus(status), headers, File(json.dumps({"error": message}).encode()))

    def _send(
        self, status: HTTPStatus, headers: Mapping[str, str], body: File, begin: int = 0, end: int | None = None
    ) -> None:
        end = body.size if end is None else end
        if isinstance(self.failure, Short):
            end = min(end, begin + self.failure.bytes)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if self.command == "HEAD":
            return
        stop = min(end, begin + self.failure.after) if isinstance(self.failure, Break | Stall) else end
        for at in range(begin, stop, _BLOCK):
            block = body.slice(at, min(at + _BLOCK, stop))
            self.wfile.write(block)
            self.server.hub._count(len(block))
            if len(block) == _BLOCK:
                time.sleep(self.server.hub.pause)
        if stop < end:
            if isinstance(self.failure, Stall):
                self.rfile.read(1)
            self.close_connection = True


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def _describe(name: str, file: File) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": file.size, "oid": file.etag[:40]}
    return entry | ({"lfs": {"size": file.size, "pointerSize": 134, "oid": file.etag}} if _is_large(name) else {})


def _describe_folder(name: str) -> dict[str, object]:
    return {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha256(name.encode()).hexdigest()[:40]}


def _is_in(path: PurePosixPath, folder: PurePosixPath, *, recursive: bool) -> bool:
    return path != folder and (path.is_relative_to(folder) if recursive else path.parent == folder)
