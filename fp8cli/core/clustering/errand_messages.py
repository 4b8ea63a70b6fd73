"""What travels where a node is sent for something that concerns one file: to hash it, or to send it elsewhere.

this process ──Errand──▶ foreman ──HashOrder, SendOrder──▶ node
this process ◀──HashDone, SendDone, ErrandFailed, CannotSend── foreman ◀──the first three── node

No order holds a credential: a node has its own, where they usually lie.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fp8cli.formats.addresses import Address
from fp8cli.formats.destinations import SendOptions, Upload

Kind = Literal["hash", "send"]


@dataclass(frozen=True, kw_only=True)
class Sight:
    """How a node makes sure that it sees what this machine sees, with the same code."""

    shared: Path
    """The folder with the token."""
    token: str
    code: str


@dataclass(frozen=True, kw_only=True)
class HashOrder:
    """A file to be read from its first byte to its last."""

    number: int
    sight: Sight
    folder: Path
    file: str
    """Its name in the folder."""
    bytes: int


@dataclass(frozen=True, kw_only=True)
class SendOrder:
    """A file to be sent to a place where nobody sees it yet."""

    number: int
    sight: Sight
    folder: Path
    file: str
    bytes: int
    address: Address
    options: SendOptions
    before: Upload | None
    """What is known of it to be there."""
    notes: Path
    """The folder, seen by all, in which whoever sends the file notes each part; see `sending_notes`."""


Order = HashOrder | SendOrder


@dataclass(frozen=True, kw_only=True)
class Errand:
    """An order, with where it may go."""

    order: Order
    left_out: tuple[str, ...]
    """Ids of nodes that get none."""
    able: tuple[str, ...]
    """Ids of the nodes that may send; for a file to be hashed any may be asked that is not left out."""

    @property
    def kind(self) -> Kind:
        """What is to be done."""
        return "hash" if isinstance(self.order, HashOrder) else "send"


@dataclass(frozen=True, kw_only=True)
class HashDone:
    """A file was read."""

    number: int
    node: str
    name: str
    bytes: int
    sha256: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SendDone:
    """A file is there."""

    number: int
    node: str
    name: str
    bytes: int
    upload: Upload
    sha256: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ErrandFailed:
    """Nobody did it; from a node: it could not."""

    number: int
    node: str
    name: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CannotSend:
    """A node sends nothing any more."""

    node: str
    name: str
    reason: str


ErrandDone = HashDone | SendDone
