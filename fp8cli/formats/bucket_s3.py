"""S3 as a store that a checkpoint is sent to (`bucket.BucketStore`), through s3fs.

Credentials, region, endpoint and proxies are botocore's own (environment, ~/.aws, the machine's role).
"""

# Imports inside functions: s3fs takes half a second to load.
# ruff: noqa: PLC0415

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from fp8cli.formats.addresses import Address
from fp8cli.formats.bucket import MARK
from fp8cli.formats.bucket_errors import missing_package

_AT_A_TIME: Final = 1000
"""Keys, or parts, that are told in one answer."""


@dataclass(frozen=True)
class S3Bucket:
    """The bucket of an address."""

    address: Address

    def find(self, prefix: str) -> Mapping[str, int]:
        """List page by page."""
        found: dict[str, int] = {}
        more: dict[str, str] = {}
        while True:
            answer = self._call("list_objects_v2", Prefix=prefix, **more)
            found.update({each["Key"]: each["Size"] for each in answer.get("Contents", ())})
            if not answer.get("IsTruncated"):
                return found
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    def begin(self, key: str, mark: str) -> str:
        """Create a multipart upload."""
        return str(self._call("create_multipart_upload", Key=key, Metadata={MARK: mark})["UploadId"])

    def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> str:
        """Upload a part; its tag is its ETag."""
        answer = self._call("upload_part", Key=key, UploadId=upload_id, PartNumber=number, Body=data)
        return str(answer["ETag"])

    def parts(self, key: str, upload_id: str) -> Mapping[int, str]:
        """List the parts page by page."""
        found: dict[int, str] = {}
        marker = 0
        while True:
            answer = self._call("list_parts", Key=key, UploadId=upload_id, PartNumberMarker=marker, MaxParts=_AT_A_TIME)
            found.update({part["PartNumber"]: part["ETag"] for part in answer.get("Parts", ())})
            if not answer.get("IsTruncated"):
                return found
            marker = answer["NextPartNumberMarker"]

    def complete(self, key: str, upload_id: str, parts: Mapping[int, str]) -> None:
        """Complete a multipart upload."""
        named = [{"PartNumber": number, "ETag": tag} for number, tag in sorted(parts.items())]
        self._call("complete_multipart_upload", Key=key, UploadId=upload_id, MultipartUpload={"Parts": named})

    def abort(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload."""
        self._call("abort_multipart_upload", Key=key, UploadId=upload_id)

    def look_at(self, key: str) -> tuple[int, str | None]:
        """Ask for the head of an object."""
        answer = self._call("head_object", Key=key)
        return int(answer["ContentLength"]), answer["Metadata"].get(MARK)

    def put(self, key: str, data: bytes) -> None:
        """Put an object in one request."""
        self._call("put_object", Key=key, Body=data)

    def delete(self, key: str) -> None:
        """Delete an object; S3 says nothing of one that is not there."""
        self._call("delete_object", Key=key)

    def _call(self, method: str, **words: object) -> Any:
        return self._files.call_s3(method, Bucket=self.address.path.partition("/")[0], **words)

    @cached_property
    def _files(self) -> Any:
        """The file system. Any, because s3fs has no types."""
        try:
            import s3fs
        except ImportError as problem:
            raise missing_package(self.address, "s3") from problem
        # Patience is had elsewhere, by one rule: botocore and s3fs together would ask two dozen times.
        once = {"retries": {"total_max_attempts": 1}}
        files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, config_kwargs=once)
        files.retries = 1
        return files
