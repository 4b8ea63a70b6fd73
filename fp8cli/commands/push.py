"""`fp8 push`: a checkpoint that was made before, on the Hub or in a bucket, whole or not at all.

folder → examined as `fp8 inspect` does → place looked at → card → sent → visible at once. The sending is
core.delivering's.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fp8cli.core.comparing.comparison import Comparison
from fp8cli.core.delivering.delivery_events import DeliveryEvent
from fp8cli.core.delivering.ordering import DeliveryOrder, check_destination
from fp8cli.core.delivering.pushing import CARD, Push, files_to_push, push
from fp8cli.core.delivering.sending import Delivered
from fp8cli.core.findings import Finding
from fp8cli.core.inspection.gate import refuse_damaged
from fp8cli.errors import BadInput, UsageError
from fp8cli.formats.addresses import HUB, Address
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.destinations import MESSAGE, SendOptions, name_destination, name_repository
from fp8cli.formats.typed_json import from_json

__all__ = ["Comparison", "PushReport", "PushRequest", "read_comparison", "run"]

Card = Literal["its own", "its own, with the comparison", "the comparison alone", "none"]


@dataclass(frozen=True, kw_only=True)
class PushRequest:
    """What the user asked for."""

    folder: Path
    to: str
    """`org/name` on the Hub, or an address."""
    public: bool = False
    revision: str | None = None
    """A branch on the Hub."""
    message: str | None = None
    """Of the commit."""
    comparison: Comparison | None = None
    measured: str | None = None
    """The comparison as Markdown, for the card."""
    overwrite: bool = False
    restart: bool = False
    dry_run: bool = False
    work_dir: Path | None = None


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """One file that is sent."""

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PushReport:
    """What was sent, or with `dry_run` would be."""

    model: str
    address: str
    dry_run: bool
    files: tuple[FileRow, ...]
    """As they lie in the folder."""
    bytes: int
    card: Card
    findings: tuple[Finding, ...]
    """Of the examination; none failed."""
    warnings: tuple[str, ...]
    delivery: Delivered | None
    """None with `dry_run`."""


def run(request: PushRequest, notify: Callable[[DeliveryEvent], None] = lambda _: None) -> PushReport:
    """Push. Raises Fp8Error with what is wrong; then nothing is visible there."""
    address = _address(request)
    if not request.folder.is_dir():
        message = f"`{request.folder}` is not a checkpoint folder"
        raise BadInput(message, hint="give the folder that holds config.json and the .safetensors files")
    folder = LocalFolder(request.folder)
    files = files_to_push(folder)
    findings = refuse_damaged(folder)
    options = SendOptions(public=request.public, message=request.message or MESSAGE)
    order = DeliveryOrder(address=address, options=options, keep=True)
    # Not the name of the folder itself: an output of that name may be growing beside it.
    work = (request.work_dir or Path()) / f"{address.name}.push"
    check_destination(order, out=work, overwrite=request.overwrite or request.dry_run)
    text, card = _card(folder, files, request.measured)
    delivered = None
    if not request.dry_run:
        wish = Push(
            folder=folder,
            files=files,
            card=text,
            order=order,
            work=work,
            overwrite=request.overwrite,
            restart=request.restart,
        )
        delivered = push(wish, notify)
    return PushReport(
        model=str(request.folder),
        address=address.text,
        dry_run=request.dry_run,
        files=tuple(FileRow(name=name, bytes=size) for name, size in files.items()),
        bytes=sum(files.values()),
        card=card,
        findings=findings,
        warnings=_warnings(request),
        delivery=delivered,
    )


def read_comparison(path: Path) -> Comparison:
    """Read what `fp8 compare --json` printed. Raises BadInput for what is none."""
    try:
        document = json.loads(path.read_text("utf-8"))
        return from_json(Comparison, document["result"]["comparison"])
    except OSError as problem:
        message = f"`{path}` cannot be read: {problem.strerror}"
        raise BadInput(message, hint="make it with: fp8 compare BASE OTHER --json > compare.json") from problem
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        message = f"`{path}` is not a comparison that `fp8 compare --json` printed: {problem}"
        raise BadInput(message, hint="make it with: fp8 compare BASE OTHER --json > compare.json") from problem


def _address(request: PushRequest) -> Address:
    address = name_destination(request.to) or name_repository(request.to)
    words = [
        word
        for word, said in (
            ("--public", request.public),
            ("--revision", request.revision),
            ("--message", request.message),
        )
        if said
    ]
    if address.scheme != HUB and words:
        message = f"{' and '.join(words)} would have no effect: `{address.text}` is not on the Hub"
        raise UsageError(message, hint="leave it out")
    if request.revision is None:
        return address
    if address.revision is not None:
        message = f"`{request.to}` names a branch already"
        raise UsageError(message, hint="leave --revision out")
    return name_repository(f"{address.text}@{request.revision}")


def _card(folder: LocalFolder, files: dict[str, int], measured: str | None) -> tuple[str | None, Card]:
    """Return the text of the card, if it is not the folder's own, and what it is. Nothing is made up."""
    if measured is None:
        return None, "its own" if CARD in files else "none"
    if CARD not in files:
        return measured, "the comparison alone"
    own = folder.read(CARD).decode(errors="replace").rstrip("\n")
    return f"{own}\n\n{measured}", "its own, with the comparison"


def _warnings(request: PushRequest) -> tuple[str, ...]:
    """Say where the comparison may be another model's: nothing in it names this folder."""
    if request.comparison is None:
        return ()
    name = request.folder.resolve().name
    sides = [contest.other for contest in request.comparison.contests]
    named = {side.label for side in sides} | {Path(side.model).name for side in sides if side.model is not None}
    if name in named:
        return ()
    return (f"the comparison is of {', '.join(sorted(named))}, and none of them is called {name}",)
