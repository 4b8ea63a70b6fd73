"""Objects of Google Cloud Storage as a source: listed with their generations, and read by ranges of that one alone.

https://cloud.google.com/storage/docs/json_api/v1/objects
"""

from collections.abc import Generator
from typing import Final

from fp8cli.errors import CannotRun
from fp8cli.formats.gcs_requests import GcsRequests

_PARTIAL: Final = 206
_STORED: Final = "x-goog-stored-content-encoding"
"""Tells of an object that is stored compressed: it is unpacked on its way, and ranges of it mean nothing."""


def find_objects(requests: GcsRequests, prefix: str) -> dict[str, tuple[int, str]]:
    """Return every object whose key begins so, with its size and its generation, which changes with its bytes."""
    found: dict[str, tuple[int, str]] = {}
    params = {"prefix": prefix, "fields": "items(name,size,generation),nextPageToken"}
    while True:
        answer = requests.ask("GET", requests.list_path(), params).json()
        for each in answer.get("items", ()):
            found[each["name"]] = (int(each["size"]), str(each["generation"]))
        if "nextPageToken" not in answer:
            return found
        params["pageToken"] = answer["nextPageToken"]


def stream_object(
    requests: GcsRequests, key: str, span: tuple[int, int], generation: str, *, silence: float
) -> Generator[bytes]:
    """Yield bytes [begin, end) of an object, in one request; an object of another generation is refused (412).

    silence: seconds that the server may take to go on. Raises CannotRun where it sends no parts of the object, as it
    does of one that is stored compressed.
    """
    begin, end = span
    params = {"alt": "media", "ifGenerationMatch": generation}
    headers = {"Range": f"bytes={begin}-{end - 1}"}
    with requests.stream(requests.object_path(key), params, headers, silence=silence) as answer:
        is_whole = answer.status_code != _PARTIAL
        if is_whole and (begin or answer.headers.get(_STORED, "identity") != "identity"):
            message = f"`{key.rpartition('/')[2]}` in `{requests.address.label}` is not sent in parts"
            raise CannotRun(message, hint="is it stored compressed? store it again without compression")
        yield from answer.iter_raw()
