"""Bytes of one file of a Hub repository, as they arrive: the request, and whether the answer is one to it.

Threads share huggingface_hub's client, with its proxies and its token; the time that it may be silent is
HF_HUB_DOWNLOAD_TIMEOUT. Every answer says which version of the file it is of, and that version may not change between
two ranges: a commit never changes, so that whoever serves another file under its name is not believed.
"""

# Imports inside functions: huggingface_hub takes a third of a second to load, and a local checkpoint needs none of it.
# ruff: noqa: PLC0415

from collections.abc import Generator, MutableMapping
from typing import TYPE_CHECKING, Final

from fp8cli.errors import BadInput, CannotRun
from fp8cli.formats.hub_errors import HubRequest, not_a_hub
from fp8cli.formats.safetensors import MAX_HEADER_BYTES

if TYPE_CHECKING:
    from httpx import Response

_PARTIAL: Final = 206
_PAST_THE_END: Final = 416
"""What is answered to a range of which the file has nothing."""

_SKIPPED_BYTES: Final = MAX_HEADER_BYTES
"""A server that ignores ranges sends the file from its start: so much of it, a long header, is read and dropped."""


def stream_range(
    request: HubRequest, commit: str, name: str, span: tuple[int, int], versions: MutableMapping[str, str]
) -> Generator[bytes]:
    """Yield the bytes [begin, end) of a file, in pieces; fewer if it is shorter.

    versions: of each file, what its first answer called it. Raises BadInput where that is another one now, and what
    huggingface_hub and its client raise.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]  # lazy

    begin, end = span
    url = hf_hub_url(request.repo_id, name, revision=commit)
    # Compressed answers cannot be cut by bytes: a CDN that compresses ignores the range.
    headers = build_hf_headers() | {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code == _PAST_THE_END and begin:
            return
        hf_raise_for_status(response)
        partial = response.headers.get("Content-Range", "").startswith(f"bytes {begin}-")
        if response.status_code == _PARTIAL and not partial:
            raise not_a_hub(request)
        version = _version(response)
        if version is not None and versions.setdefault(name, version) != version:
            message = f"`{name}` of `{request.repo_id}` was changed while it was being read"
            raise BadInput(message, hint="run the command again; if it stays so, the repository is broken")
        if not partial and begin > _SKIPPED_BYTES:
            message = f"{request.host} does not send parts of files, which reading `{name}` from the Hub needs"
            raise CannotRun(message, hint=f"fetch it first: hf download {request.repo_id} --local-dir DIR")
        at = begin if partial else 0
        # The connection is dropped at `end`, whatever else the server would send.
        for chunk in response.iter_bytes():
            if piece := chunk[max(0, begin - at) : end - at]:
                yield piece
            at += len(chunk)
            if at >= end:
                return


def _version(response: "Response") -> str | None:
    """Return what the Hub calls the version of the file; a CDN that it leads to has names of its own."""
    answers = [*response.history, response]
    for answer in answers:
        if linked := answer.headers.get("X-Linked-ETag"):
            return str(linked)
    told = [answer.headers.get("ETag") for answer in answers if "X-Repo-Commit" in answer.headers]
    return told[0] if told else None
