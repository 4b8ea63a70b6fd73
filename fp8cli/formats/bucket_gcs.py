"""Google Cloud Storage as a store that a checkpoint is sent to (`bucket.BucketStore`).

Uploads in parts are those of its XML API, which are like S3's: invisible until they are completed, told of part by
part, and kept, at the price of their bytes, until they are completed or aborted, or the bucket's lifecycle ends them.
https://cloud.google.com/storage/docs/multipart-uploads
Everything that is sent goes with its MD5, so that what is corrupted on its way is refused there.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final
from xml.etree import ElementTree as ET

from fp8cli.formats.addresses import Address
from fp8cli.formats.bucket import MARK
from fp8cli.formats.bucket_errors import missing_package
from fp8cli.formats.gcs_objects import find_objects
from fp8cli.formats.gcs_requests import GcsRefusal, GcsRequests
from fp8cli.formats.store_errors import trouble_of

_AT_A_TIME: Final = "1000"
_NAMES: Final = {"s3": "http://s3.amazonaws.com/doc/2006-03-01/"}
"""The name space of answers about uploads, GCS's own ones too."""

_FAILED: Final = 500

_TYPE: Final = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class GcsBucket:
    """The bucket of an address."""

    address: Address

    def find(self, prefix: str) -> Mapping[str, int]:
        """List page by page."""
        return {key: size for key, (size, _) in find_objects(self._requests, prefix).items()}

    def begin(self, key: str, mark: str) -> str:
        """Initiate a multipart upload."""
        headers = {f"x-goog-meta-{MARK}": mark, **_TYPE}
        answer = self._xml("POST", key, {"uploads": ""}, headers=headers)
        return answer.findtext("s3:UploadId", "", _NAMES)

    def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> str:
        """Upload a part; its tag is its ETag."""
        params = {"partNumber": str(number), "uploadId": upload_id}
        answer = self._requests.ask(
            "PUT", self._requests.upload_path(key), params, headers=_md5_of(data) | _TYPE, body=data
        )
        return str(answer.headers["ETag"])

    def parts(self, key: str, upload_id: str) -> Mapping[int, str]:
        """List the parts page by page."""
        found: dict[int, str] = {}
        more: dict[str, str] = {}
        while True:
            answer = self._xml("GET", key, {"uploadId": upload_id, "max-parts": _AT_A_TIME, **more})
            for part in answer.iterfind("s3:Part", _NAMES):
                found[int(part.findtext("s3:PartNumber", "0", _NAMES))] = part.findtext("s3:ETag", "", _NAMES)
            if answer.findtext("s3:IsTruncated", "false", _NAMES) != "true":
                return found
            more = {"part-number-marker": answer.findtext("s3:NextPartNumberMarker", "", _NAMES)}

    def complete(self, key: str, upload_id: str, parts: Mapping[int, str]) -> None:
        """Complete a multipart upload."""
        wanted = ET.Element("CompleteMultipartUpload")
        for number, tag in sorted(parts.items()):
            part = ET.SubElement(wanted, "Part")
            ET.SubElement(part, "PartNumber").text = str(number)
            ET.SubElement(part, "ETag").text = tag
        self._xml("POST", key, {"uploadId": upload_id}, body=ET.tostring(wanted))

    def abort(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload."""
        self._requests.ask("DELETE", self._requests.upload_path(key), {"uploadId": upload_id})

    def look_at(self, key: str) -> tuple[int, str | None]:
        """Ask for what is known of an object."""
        found = self._requests.ask("GET", self._requests.object_path(key), {"fields": "size,metadata"}).json()
        return int(found["size"]), found.get("metadata", {}).get(MARK)

    def put(self, key: str, data: bytes) -> None:
        """Put an object in one request."""
        self._requests.ask("PUT", self._requests.upload_path(key), headers=_md5_of(data) | _TYPE, body=data)

    def delete(self, key: str) -> None:
        """Delete an object."""
        try:
            self._requests.ask("DELETE", self._requests.object_path(key))
        except GcsRefusal as problem:
            if trouble_of(problem) != "not there":
                raise

    @cached_property
    def _requests(self) -> GcsRequests:
        requests = GcsRequests(self.address)
        try:
            requests.open()
        except ImportError as problem:
            raise missing_package(self.address, "gcs") from problem
        return requests

    def _xml(
        self,
        method: str,
        key: str,
        params: Mapping[str, str],
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> ET.Element:
        answer = self._requests.ask(method, self._requests.upload_path(key), params, headers=headers, body=body)
        told = ET.fromstring(answer.content)  # noqa: S314 - expat bounds what it expands
        if told.tag.endswith("Error"):
            # Putting parts together takes a while, and the status is sent before it is known how it ends.
            raise GcsRefusal(_FAILED, answer.headers, answer.text)
        return told


def _md5_of(data: bytes) -> dict[str, str]:
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return {"Content-MD5": base64.b64encode(digest).decode()}
