"""A bucket of its own on 127.0.0.1: moto's real S3 API over HTTP, which remembers every request and can stumble.

What lies in it is read back by boto3, which the program under test does not use.
"""

import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from urllib.parse import parse_qs

import boto3
import moto.s3.models
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

BUCKET = "models"
Stumble = tuple[int, str] | Literal["cut", "lost"]
"""A status with S3's code; the connection cut off in the middle of the body; or done, and cut off before it is told."""

_STATUS = {200: "200 OK", 403: "403 Forbidden", 404: "404 Not Found", 500: "500 Error", 503: "503 Slow Down"}


@dataclass(frozen=True)
class Asked:
    method: str
    key: str
    query: dict[str, list[str]]

    @property
    def part(self) -> tuple[str, int] | None:
        """Key and number of a part that is sent."""
        if self.method == "PUT" and "partNumber" in self.query:
            return self.key, int(self.query["partNumber"][0])
        return None

    @property
    def what(self) -> str:
        """Such as `POST ?uploads shard`: method, the first word of the query, key."""
        return f"{self.method} ?{next(iter(self.query), '')} {self.key}"


@dataclass
class LoopbackBucket:
    """The server, while `serving`."""

    url: str
    requests: list[Asked] = field(default_factory=list)
    pause: float = 0.0
    """Seconds that every part takes."""
    _stumbles: list[tuple[str, Stumble]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it, as boto finds any S3."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": "loopback",
            "AWS_SECRET_ACCESS_KEY": "hush-hush",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @cached_property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="other",
            aws_secret_access_key="other",
            region_name="us-east-1",
        )

    def stumble(self, what: str, *stumbles: Stumble) -> None:
        """Let the next requests whose `what` matches fail, one each."""
        self._stumbles += [(what, stumble) for stumble in stumbles]

    @property
    def left_to_stumble(self) -> int:
        return len(self._stumbles)

    def recover(self) -> None:
        self._stumbles.clear()

    def parts(self) -> Counter[tuple[str, int]]:
        """How often each part was sent."""
        return Counter(asked.part for asked in self.requests if asked.part is not None)

    def contents(self, folder: str = "") -> dict[str, bytes]:
        """Every object below a folder, by name."""
        client = self.client
        listed = client.list_objects_v2(Bucket=BUCKET, Prefix=folder).get("Contents", ())
        return {
            each["Key"].removeprefix(f"{folder}/"): client.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read()
            for each in listed
        }

    def uploads(self) -> list[str]:
        """Keys of uploads that are neither completed nor aborted."""
        return [each["Key"] for each in self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())]

    def take(self, asked: Asked) -> Stumble | None:
        with self._lock:
            self.requests.append(asked)
            for index, (what, stumble) in enumerate(self._stumbles):
                if re.search(what, asked.what):
                    del self._stumbles[index]
                    return stumble
        return None


@contextmanager
def serving() -> Iterator[LoopbackBucket]:
    """Serve an empty bucket."""
    application = DomainDispatcherApplication(create_backend_app)
    bucket = LoopbackBucket(url="")

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"].removeprefix(f"/{BUCKET}").lstrip("/")
        query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        ours = environ.get("HTTP_AUTHORIZATION", "").find("Credential=other/") < 0
        asked = Asked(environ["REQUEST_METHOD"], path, query)
        stumble = bucket.take(asked) if ours else None
        if ours and asked.part is not None:
            time.sleep(bucket.pause)
        if stumble == "cut":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
            return _hang_up(environ)
        if isinstance(stumble, tuple):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code = stumble
            text = f"<Error><Code>{code}</Code><Message>stumbled</Message></Error>".encode()
            start(_STATUS[status], [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
            return [text]
        told: Iterable[bytes] = application(environ, start)
        return _hang_up(environ) if stumble == "lost" else told

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=MotoRequestHandler)
    server.daemon_threads = True
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        # moto reads the clients' own settings, and takes parts no smaller than S3 does.
        patch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 1)
        for name, value in bucket.environment.items():
            if name != "AWS_ENDPOINT_URL_S3":
                patch.setenv(name, value)
        bucket.client.create_bucket(Bucket=BUCKET)
        try:
            yield bucket
        finally:
            for each in bucket.client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
                bucket.client.delete_object(Bucket=BUCKET, Key=each["Key"])
            bucket.client.delete_bucket(Bucket=BUCKET)
            server.shutdown()
            server.server_close()


def _hang_up(environ: dict[str, Any]) -> Iterable[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def small_parts(patch: pytest.MonkeyPatch, bucket: LoopbackBucket) -> None:
    """Let this process talk to the bucket in parts of 64 KiB, and lose no time by waiting."""
    from fp8cli.formats import bucket as sending

    for name, value in bucket.environment.items():
        patch.setenv(name, value)
    patch.setattr(sending, "PART_BYTES", 2**16)
    patch.setattr(sending, "_PAUSES", (0.01,) * 5)
    patch.setattr(sending, "_FIRST_PAUSES", (0.01,) * 3)


PROGRAM = """
import sys
from fp8cli.formats import bucket
bucket.PART_BYTES = 2**16
sys.argv = ["fp8", *sys.argv[1:]]
from fp8cli.cli.app import main
sys.exit(main())
"""
"""`fp8` with parts of 64 KiB, in a process of its own."""


def environment_of(bucket: LoopbackBucket) -> dict[str, str]:
    """Everything a process of its own needs."""
    return os.environ | bucket.environment
