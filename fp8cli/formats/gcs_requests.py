"""One request to Google Cloud Storage, asked once: gcsfs knows who asks and where, httpx carries it.

Credentials are those of gcsfs (GOOGLE_APPLICATION_CREDENTIALS, gcloud's login, the machine's service account, else
FSSPEC_GCS_… as fsspec has it), and are never shown. STORAGE_EMULATOR_HOST names another server.
gcsfs itself asks again for half a minute whatever was asked, and keeps from its answers neither their code nor
how long a server wants to be left alone.
"""

# Imports inside functions: gcsfs takes more than a second to load.
# ruff: noqa: PLC0415

import json
import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from fp8cli.formats.addresses import Address

if TYPE_CHECKING:
    from httpx import Client, Response

SECONDS_OF_SILENCE: Final = 60.0
"""For which a server may be silent, such as while it puts the parts of an upload together."""

_CONNECTIONS: Final = 64
_JSON_API: Final = "/storage/v1/"
_CODE: Final = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_MESSAGE: Final = re.compile(r"<(?:Message|Details)>([^<]*)<")
_NO_SUCH_BUCKET: Final = "bucket does not exist"
_UNAUTHORIZED: Final = 401
_ERRORS_BEGIN: Final = 400


class GcsRefusal(Exception):
    """An answer that is an error. `response` has the shape of botocore's, so that one rule judges both."""

    def __init__(self, status: int, headers: Mapping[str, str], text: str) -> None:
        """Take the answer; of its text only what it says in words is kept."""
        code, message = _told(text)
        if _NO_SUCH_BUCKET in message:
            code = "NoSuchBucket"
        self.response = {
            "Error": {"Code": code or str(status), "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {k.lower(): v for k, v in headers.items()}},
        }
        super().__init__(f"{message} ({status})" if message else f"it answers {status}")


class AnonymousRefused(GcsRefusal):
    """The same, to who had no credentials to show."""


@dataclass(frozen=True)
class GcsRequests:
    """Requests about the bucket of an address. Threads may share it. Raises GcsRefusal, and what httpx raises."""

    address: Address

    def open(self) -> None:
        """Load gcsfs, and look for credentials. Raises ImportError where it is not installed."""
        _ = self._files

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.address.path.partition("/")[0]

    def object_path(self, key: str) -> str:
        """Return the path of an object in the JSON API."""
        return f"{_JSON_API}b/{quote(self.bucket, safe='')}/o/{quote(key, safe='')}"

    def list_path(self) -> str:
        """Return the path of all objects in the JSON API."""
        return f"{_JSON_API}b/{quote(self.bucket, safe='')}/o"

    def upload_path(self, key: str) -> str:
        """Return the path of an object in the XML API, the one that has multipart uploads."""
        return f"/{quote(self.bucket, safe='')}/{quote(key, safe='/~')}"

    def ask(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> "Response":
        """Return the answer to one request, if it is none of an error."""
        response = self._client.request(
            method, f"{self._host}{path}", params=params, headers=self._headers(headers), content=body
        )
        self._refuse_errors(response)
        return response

    @contextmanager
    def stream(
        self, path: str, params: Mapping[str, str], headers: Mapping[str, str], *, silence: float
    ) -> Iterator["Response"]:
        """Open the answer to a GET, if it is none of an error. silence: seconds that it may take to go on."""
        with self._client.stream(
            "GET", f"{self._host}{path}", params=params, headers=self._headers(headers), timeout=silence
        ) as response:
            if response.status_code >= _ERRORS_BEGIN:
                response.read()
            self._refuse_errors(response)
            yield response

    def _headers(self, more: Mapping[str, str] | None) -> dict[str, str]:
        # Compressed answers cannot be cut by bytes.
        headers = {"Accept-Encoding": "identity", **(more or {})}
        self._files.credentials.apply(headers)
        payer = self._files.requester_pays
        if payer:
            headers["x-goog-user-project"] = payer if isinstance(payer, str) else str(self._files.project)
        return headers

    def _refuse_errors(self, response: "Response") -> None:
        status = response.status_code
        if status < _ERRORS_BEGIN:
            return
        is_anonymous = status == _UNAUTHORIZED and self._files.credentials.credentials is None
        kind = AnonymousRefused if is_anonymous else GcsRefusal
        raise kind(status, response.headers, response.text)

    @property
    def _host(self) -> str:
        return str(self._files.base).removesuffix(_JSON_API)

    @cached_property
    def _client(self) -> "Client":
        import httpx

        limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
        client = httpx.Client(timeout=SECONDS_OF_SILENCE, limits=limits)
        weakref.finalize(self, client.close)
        return client

    @cached_property
    def _files(self) -> Any:
        """The file system of gcsfs, for what it knows. Any, because it has no types."""
        import gcsfs

        return gcsfs.GCSFileSystem(skip_instance_cache=True)


def _told(text: str) -> tuple[str, str]:
    """Return code and message of an error, as the JSON or the XML API has them; empty for what is not there."""
    with suppress(ValueError):
        error = json.loads(text)["error"] if text.startswith("{") else {}
        if isinstance(error, dict) and error:
            return "", str(error.get("message", ""))
        if isinstance(error, str):
            return "", error  # Of the server that gives tokens out.
    code, message = _CODE.search(text), _MESSAGE.search(text)
    return code[1] if code else "", message[1] if message else ""
