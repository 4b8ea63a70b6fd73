"""Shards of the output sent by nodes: begun by this machine, carried by whichever node, finished by this machine.

This machine opens the upload of a file and keeps its ledger, so that nothing is sent that nobody knows of, and makes
everything visible at the end. A node sends the parts with credentials of its own. Each part that it notes where all
machines see it goes into the ledger: another node, or another run, sends it no second time. What a node says it has
sent is asked of the place; what no node can send, this machine sends.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fp8cli.core.clustering.errand_messages import ErrandFailed, HashDone, Order, SendDone, SendOrder, Sight
from fp8cli.core.clustering.errands import Answer, Errands
from fp8cli.core.clustering.sending_notes import read_notes, with_notes
from fp8cli.errors import Fp8Error, Interrupted
from fp8cli.formats.addresses import Address
from fp8cli.formats.destinations import Destination, Notes, SendOptions, Upload

_LOOK_SECONDS: Final = 0.5
_OF_ONE_MACHINE: Final = frozenset({"file", "local", "memory"})


def travels(address: Address) -> bool:
    """Whether a node can be told of a place: it is one place from anywhere, and its address holds no secret."""
    return address.scheme not in _OF_ONE_MACHINE and address.text == address.label


@dataclass(frozen=True, kw_only=True)
class Carrier:
    """Sends files of one folder to one place; see `formats.destinations.Destination.send`."""

    errands: Errands
    sight: Callable[[], Sight]
    notes: Path
    """The folder for what nodes note."""
    address: Address
    options: SendOptions
    destination: Destination
    """The same place, as this machine sees it."""

    def send(self, name: str, file: Path, before: Upload | None, notes: Notes) -> tuple[Upload, str]:
        """Have a node send a file. Raises Fp8Error for what goes wrong here after no node could, or at the place."""
        size = file.stat().st_size
        if before is None:
            before = self.destination.begin(name, size)
            if before is not None:
                notes.begun(before)
        self.notes.mkdir(exist_ok=True)
        books = _Books(folder=self.notes, file=name, size=size, upload=before, notes=notes)
        books.read(earlier=True)
        promise = self.errands.ask(lambda number: self._order(number, name, file, size, books.upload))
        done = self._wait(promise, books)
        if done is not None and self.destination.holds(name, size, done.upload):
            books.close(done.upload)
            return done.upload, done.sha256
        if done is not None:
            self.errands.mute(done.node, done.name, f"what it sent of `{name}` is not at `{self.destination.label}`")
        return self.destination.send(name, file, books.upload, books)

    def _wait(self, promise: "Future[Answer]", books: "_Books") -> SendDone | None:
        """Wait for a node, and keep the books meanwhile; None where none could."""
        while True:
            try:
                answer = promise.result(_LOOK_SECONDS)
            except TimeoutError:
                books.read()
                continue
            except Interrupted:
                raise
            except Fp8Error:
                answer = None
            books.read()
            match answer:
                case SendDone():
                    return answer
                case ErrandFailed() | HashDone() | None:
                    return None

    def _order(self, number: int, name: str, file: Path, size: int, before: Upload | None) -> Order:
        return SendOrder(
            number=number,
            sight=self.sight(),
            folder=file.parent.absolute(),
            file=name,
            bytes=size,
            address=self.address,
            options=self.options,
            before=before,
            notes=self.notes.absolute(),
        )


@dataclass
class _Books:
    """What is known to be there of one file, told to whoever keeps the ledger, once."""

    folder: Path
    file: str
    size: int
    upload: Upload | None
    notes: Notes
    _counted: set[int] = field(default_factory=set)
    """Parts whose bytes were told of."""
    _told_bytes: int = 0

    def read(self, *, earlier: bool = False) -> None:
        """Take in what nodes have noted since; earlier: in another run."""
        before = self.upload
        if before is None:
            return
        upload = self.upload = with_notes(before, read_notes(self.folder, self.file)) or before
        for number, tag in sorted(upload.parts.items()):
            if before.parts.get(number) != tag:
                self.notes.part(number, tag)
            if number not in self._counted:
                self._counted.add(number)
                part = min(upload.part_bytes, self.size - (number - 1) * upload.part_bytes)
                self._tell(part, before=earlier)

    def close(self, upload: Upload) -> None:
        """Take in what a node says it has sent."""
        if self.upload is not None and upload.id != self.upload.id:
            # The place had forgotten what was begun, and the node began anew.
            self.notes.begun(upload)
            for number, tag in sorted(upload.parts.items()):
                self.notes.part(number, tag)
        self._tell(self.size - self._told_bytes, before=False)

    def begun(self, upload: Upload) -> None:
        """Hand on what this machine does after all; see formats.destinations.Notes."""
        self.notes.begun(upload)

    def about_to_send(self) -> None:
        """Ask on."""
        self.notes.about_to_send()

    def part(self, number: int, tag: str) -> None:
        """Hand it on."""
        self.notes.part(number, tag)

    def sent(self, count: int, *, before: bool = False) -> None:
        """Hand it on, but for what was told of."""
        if not before:
            self._tell(min(count, self.size - self._told_bytes), before=False)

    def _tell(self, count: int, *, before: bool) -> None:
        if count > 0:
            self._told_bytes += count
            self.notes.sent(count, before=before)
