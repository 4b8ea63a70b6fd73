"""A Google Cloud Storage of its own on 127.0.0.1: HTTP as the JSON and the XML API speak it, of which it can stumble.

What a checkpoint needs of it and no more: listing page by page, reading by ranges of one generation, deleting, putting,
uploads in parts, and tokens for the key of a service account. https://cloud.google.com/storage/docs/json_api/v1,
https://cloud.google.com/storage/docs/xml-api/reference-methods. Google's own client can talk to it, and does so in
tests/test_gcs_server.py: the program under test is not what says that it is right.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.loopback_hub import Break, Busy, Stall

BUCKET = "models"
TOKEN = "ya29.hush-hush"  # noqa: S105 - of a server that is gone after the test
S3_NAMES = "http://s3.amazonaws.com/doc/2006-03-01/"
Stumble = tuple[int, str] | Busy | Break | Stall | Literal["cut", "lost"]
"""A status with a code of the XML API; how a body ends; cut off before the request is read, or done and not told."""


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: dict[str, list[str]]
    span: str

    @property
    def what(self) -> str:
        """Such as `PUT ?partNumber=3 models/tiny/shard`: method, the query's first field, the object's name."""
        first = next((f"{key}={values[0]}" for key, values in self.query.items()), "")
        return f"{self.method} ?{first} {self.name}"

    @property
    def name(self) -> str:
        """The object's name, whichever API was asked."""
        found = re.fullmatch(r"(?:/download)?/storage/v1/b/[^/]+/o(?:/(.*))?|/[^/]+/(.*)", self.path)
        return unquote((found[1] or found[2] or "") if found else "")

    @property
    def part(self) -> tuple[str, int] | None:
        if self.method == "PUT" and "partNumber" in self.query:
            return self.name, int(self.query["partNumber"][0])
        return None


@dataclass(frozen=True)
class Stored:
    data: bytes
    generation: int
    metadata: dict[str, str] = field(default_factory=dict)

    def described(self, name: str) -> dict[str, object]:
        """Return what is told of it; without an MD5, which objects that came in parts have not."""
        facts = {"kind": "storage#object", "name": name, "bucket": BUCKET, "size": str(len(self.data))}
        return {**facts, "generation": str(self.generation), "metadata": self.metadata}


@dataclass
class Upload:
    name: str
    metadata: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class LoopbackGcs:
    """The server, running while it is entered."""

    page: int = 4
    """Objects, or parts, that are told in one answer at most."""
    least_part_bytes: int = 5 * 2**20
    """Of every part but the last. https://cloud.google.com/storage/quotas"""
    pause: float = 0.0
    """Seconds that every part takes."""
    anyone: bool = False
    """Whether nobody has to say who he is."""
    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    requests: list[Asked] = field(default_factory=list)
    tokens_given: int = 0
    _stumbles: list[tuple[str, Stumble]] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1_700_000_000_000_000))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, name: str, data: bytes, metadata: dict[str, str] | None = None) -> Stored:
        with self._lock:
            self.objects[name] = Stored(data, next(self._numbers), metadata or {})
            return self.objects[name]

    def contents(self, folder: str) -> dict[str, bytes]:
        """Every object below a folder, by name."""
        return {
            name.removeprefix(f"{folder}/"): each.data
            for name, each in sorted(self.objects.items())
            if name.startswith(f"{folder}/")
        }

    def parts(self) -> Counter[tuple[str, int]]:
        """How often each part was sent."""
        return Counter(asked.part for asked in self.requests if asked.part is not None)

    def stumble(self, what: str, *how: Stumble) -> None:
        """Let the next requests whose `what` matches fail, one each."""
        self._stumbles += [(what, each) for each in how]

    @property
    def left_to_stumble(self) -> int:
        return len(self._stumbles)

    def recover(self) -> None:
        self._stumbles.clear()

    def empty(self) -> None:
        """Forget everything."""
        self.recover()
        self.objects.clear()
        self.uploads.clear()
        self.requests.clear()
        self.pause, self.anyone, self.least_part_bytes = 0.0, False, 5 * 2**20

    def environment(self, folder: Path) -> dict[str, str]:
        """What a process needs to find it and to be let in, as Google's clients look for it; `folder` gets a key."""
        key = folder / "key.json"
        key.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "project_id": "loopback",
                    "private_key_id": "1",
                    "private_key": _private_key(),
                    "client_email": "tests@loopback.iam.gserviceaccount.com",
                    "client_id": "1",
                    "token_uri": f"{self.url}/token",
                }
            )
        )
        return {"STORAGE_EMULATOR_HOST": self.url, "GOOGLE_APPLICATION_CREDENTIALS": str(key), "NO_GCE_CHECK": "true"}

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"store": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def meet(self, asked: Asked) -> Stumble | None:
        with self._lock:
            self.requests.append(asked)
            for place, (what, how) in enumerate(self._stumbles):
                if re.search(what, f"{asked.what} {asked.span}"):
                    del self._stumbles[place]
                    return how
        return None

    def begin(self, name: str, metadata: dict[str, str]) -> str:
        with self._lock:
            number = f"upload-{next(self._numbers)}"
            self.uploads[number] = Upload(name, metadata)
        return number


class Answer(Exception):
    """What is answered, from wherever it is known."""

    def __init__(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers or {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    store: LoopbackGcs

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class calls it so
        """Say nothing."""

    def do_GET(self) -> None:
        try:
            self._serve()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 -- the base class looks for these names

    def _serve(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        asked = Asked(self.command, url.path, query, self.headers.get("Range", ""))
        how = None if asked.path == "/token" else self.store.meet(asked)
        if how == "cut":
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if asked.part is not None:
            time.sleep(self.store.pause)
        try:
            if isinstance(how, tuple):
                raise _xml_error(*how)
            if isinstance(how, Busy):
                raise Answer(how.status, headers={"Retry-After": how.retry_after})
            self._answer(asked, body)
        except Answer as answer:
            if how == "lost":
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: how.after] if isinstance(how, Break | Stall) else answer.body)
            if isinstance(how, Stall):
                self.wfile.flush()
                self.rfile.read(1)
            if isinstance(how, Break | Stall):
                self.close_connection = True

    def _answer(self, asked: Asked, body: bytes) -> None:
        if asked.path == "/token":
            if "urn:ietf:params:oauth:grant-type:jwt-bearer" not in parse_qs(body.decode()).get("grant_type", ()):
                raise Answer(400, b'{"error": "unsupported_grant_type"}')
            self.store.tokens_given += 1
            raise _json({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})
        is_json = asked.path.startswith(("/storage/v1/", "/download/storage/v1/"))
        if not self.store.anyone and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            told = "Anonymous caller does not have storage.objects.list access to the Google Cloud Storage bucket."
            raise _json_error(401, told) if is_json else _xml_error(401, "AuthenticationRequired", told)
        if is_json:
            self._answer_json(asked)
        self._answer_xml(asked, body)

    def _answer_json(self, asked: Asked) -> None:
        found = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)/o(/.*)?", asked.path)
        if found is None or found[1] != BUCKET:
            raise _json_error(404, "The specified bucket does not exist.")
        if found[2] is None:
            raise self._list(asked.query)
        stored = self.store.objects.get(asked.name)
        if stored is None:
            raise _json_error(404, f"No such object: {BUCKET}/{asked.name}")
        wanted = asked.query.get("ifGenerationMatch", [str(stored.generation)])[0]
        if wanted != str(stored.generation):
            raise _json_error(412, "At least one of the pre-conditions you specified did not hold.")
        if asked.query.get("generation", [str(stored.generation)])[0] != str(stored.generation):
            raise _json_error(404, f"No such object: {BUCKET}/{asked.name}")
        if asked.method == "DELETE":
            del self.store.objects[asked.name]
            raise Answer(204)
        if asked.query.get("alt") == ["media"]:
            raise self._send(stored)
        raise _json(stored.described(asked.name))

    def _list(self, query: dict[str, list[str]]) -> Answer:
        prefix, after = query.get("prefix", [""])[0], query.get("pageToken", [""])[0]
        names = [name for name in sorted(self.store.objects) if name.startswith(prefix) and name > after]
        page = names[: self.store.page]
        told: dict[str, object] = {"kind": "storage#objects"}
        if page:
            told["items"] = [self.store.objects[name].described(name) for name in page]
        if len(names) > len(page):
            told["nextPageToken"] = page[-1]
        return _json(told)

    def _send(self, stored: Stored) -> Answer:
        headers = {"x-goog-generation": str(stored.generation)}
        stored_as = stored.metadata.get("Content-Encoding")
        if stored_as is not None:
            # Unpacked on its way, and never in parts.
            headers["x-goog-stored-content-encoding"] = stored_as
            return Answer(200, stored.data, headers)
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return Answer(200, stored.data, headers)
        begin, size = int(span[1]), len(stored.data)
        end = min(int(span[2]) + 1 if span[2] else size, size)
        if begin >= size:
            return Answer(416, headers={"Content-Range": f"bytes */{size}"})
        return Answer(206, stored.data[begin:end], {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{size}"})

    def _answer_xml(self, asked: Asked, body: bytes) -> None:
        bucket, _, name = unquote(asked.path).lstrip("/").partition("/")
        if bucket != BUCKET:
            raise _xml_error(404, "NoSuchBucket", "The specified bucket does not exist.")
        told = self.headers.get("Content-MD5")
        if told is not None and base64.b64decode(told) != hashlib.md5(body, usedforsecurity=False).digest():
            raise _xml_error(400, "BadDigest", "The MD5 you specified in Content-MD5 did not match.")
        metadata = {
            key.lower().removeprefix("x-goog-meta-"): value
            for key, value in self.headers.items()
            if key.lower().startswith("x-goog-meta-")
        }
        if asked.method == "PUT" and "uploadId" not in asked.query:
            stored = self.store.put(name, body, metadata)
            raise Answer(200, headers={"x-goog-generation": str(stored.generation), "ETag": _tag(body)})
        if asked.method == "POST" and "uploads" in asked.query:
            number = self.store.begin(name, metadata)
            told = f"<Bucket>{BUCKET}</Bucket><Key>{name}</Key><UploadId>{number}</UploadId>"
            raise _xml("InitiateMultipartUploadResult", told)
        self._answer_upload(asked, name, body)

    def _answer_upload(self, asked: Asked, name: str, body: bytes) -> None:
        number = asked.query["uploadId"][0]
        upload = self.store.uploads.get(number)
        if upload is None or upload.name != name:
            raise _xml_error(404, "NoSuchUpload", "The requested upload was not found.")
        if asked.part is not None:
            upload.parts[asked.part[1]] = body
            raise Answer(200, headers={"ETag": _tag(body)})
        if asked.method == "DELETE":
            del self.store.uploads[number]
            raise Answer(204)
        if asked.method == "GET":
            marker = int(asked.query.get("part-number-marker", ["0"])[0])
            numbers = [each for each in sorted(upload.parts) if each > marker]
            page = numbers[: self.store.page]
            told = "".join(
                f"<Part><PartNumber>{each}</PartNumber><ETag>{_tag(upload.parts[each])}</ETag></Part>" for each in page
            )
            more = f"<NextPartNumberMarker>{page[-1]}</NextPartNumberMarker>" if page else ""
            cut = f"<IsTruncated>{str(len(numbers) > len(page)).lower()}</IsTruncated>"
            raise _xml("ListPartsResult", more + cut + told)
        self._complete(number, upload, body)

    def _complete(self, number: str, upload: Upload, body: bytes) -> None:
        wanted = re.findall(r"<PartNumber>(\d+)</PartNumber>\s*<ETag>(.*?)</ETag>", body.decode())
        named = [(int(each), tag.replace("&quot;", '"')) for each, tag in wanted]
        if not named or any(_tag(upload.parts.get(each, b"")) != tag for each, tag in named):
            raise _xml_error(400, "InvalidPart", "One or more of the specified parts could not be found.")
        if named != sorted(named):
            raise _xml_error(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        if any(len(upload.parts[each]) < self.store.least_part_bytes for each, _ in named[:-1]):
            raise _xml_error(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size.")
        stored = self.store.put(upload.name, b"".join(upload.parts[each] for each, _ in named), upload.metadata)
        del self.store.uploads[number]
        told = f"<Bucket>{BUCKET}</Bucket><Key>{upload.name}</Key><ETag>{_tag(stored.data)}</ETag>"
        raise _xml("CompleteMultipartUploadResult", told)


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _json(told: dict[str, object]) -> Answer:
    return Answer(200, json.dumps(told).encode(), {"Content-Type": "application/json; charset=UTF-8"})


def _json_error(status: int, message: str) -> Answer:
    told = {"error": {"code": status, "message": message, "errors": [{"message": message, "domain": "global"}]}}
    return Answer(status, json.dumps(told).encode(), {"Content-Type": "application/json; charset=UTF-8"})


def _xml(kind: str, inside: str) -> Answer:
    text = f"<?xml version='1.0' encoding='UTF-8'?><{kind} xmlns='{S3_NAMES}'>{inside}</{kind}>"
    return Answer(200, text.encode(), {"Content-Type": "application/xml; charset=UTF-8"})


def _xml_error(status: int, code: str, message: str = "stumbled") -> Answer:
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, text.encode(), {"Content-Type": "application/xml; charset=UTF-8"})


@cache
def _private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
