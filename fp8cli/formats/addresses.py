"""Where a checkpoint lies that is in no folder here: `hf://org/name@revision`, `s3://bucket/folder`, `gs://…`."""

import re
from dataclasses import dataclass
from typing import Final

from fp8cli.errors import UsageError

HUB: Final = "hf"
"""The one scheme that is not fsspec's here: the Hub has commits, which no other store has."""

_SECRETS: Final = re.compile(r"(?<=://)[^/\s@]*@|(?<=\?)[^\s'\"`]+")
"""A user and password, or a query, which may be a signature."""

_ADDRESS: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Address:
    """A place by its address."""

    scheme: str
    """`hf`, `s3`, `gs`, or another protocol of fsspec."""
    path: str
    """What follows `://`, without slashes at its end: `org/name`, `bucket/folder`."""
    revision: str | None = None
    """Of the Hub alone: branch, tag or commit."""

    @property
    def text(self) -> str:
        """The address as messages have it."""
        return f"{self.scheme}://{self.path}" + ("" if self.revision is None else f"@{self.revision}")

    @property
    def label(self) -> str:
        """The address without what may be secret in it."""
        return mask(self.text)

    @property
    def name(self) -> str:
        """Its last part, as a folder would be called."""
        return self.path.rsplit("/", maxsplit=1)[-1]


def parse_address(text: str) -> Address | None:
    """Return the address that `text` is; None for what is none. Raises UsageError for one without a place."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return None
    scheme, path = match[1], match[2].rstrip("/")
    revision: str | None = None
    if scheme == HUB:
        path, at, behind = path.partition("@")
        revision = behind if at else None
    if not path.strip("/") or revision == "":
        message = f"`{text}` names no place"
        raise UsageError(message, hint="write hf://ORG/NAME, hf://ORG/NAME@REVISION or s3://BUCKET/FOLDER")
    return Address(scheme=scheme, path=path, revision=revision)


def mask(text: str) -> str:
    """Return a text without users, passwords and queries of the addresses in it."""
    return _SECRETS.sub(lambda found: "…@" if found[0].endswith("@") else "…", text)
