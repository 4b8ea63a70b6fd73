"""A checkpoint that was made before goes to another place: all its files, as they are, and perhaps a longer card.

It goes the way of one in the making (see `sending`): large files first, in parallel, remembered and not sent twice;
then all becomes visible at once. The folder itself is only read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from fp8cli.core.delivering.ordering import DeliveryOrder
from fp8cli.core.delivering.sending import Delivered, Notify, sending
from fp8cli.errors import BadInput
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.staging import discard, stage

CARD: Final = "README.md"
_SMALL_BYTES: Final = 8 * 2**20
"""Files up to this size go with the commit, unless they hold weights."""

_WEIGHTS: Final = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Push:
    """What is to be sent where; nothing speaks against it any more."""

    folder: LocalFolder
    files: Mapping[str, int]
    """Names with sizes in bytes; see `files_to_push`."""
    card: str | None
    """The text that goes in the place of the folder's own card; None: that one, if there is one."""
    order: DeliveryOrder
    work: Path
    """`.NAME.fp8-partial` beside this path holds the ledger of what was sent."""
    overwrite: bool
    restart: bool


def files_to_push(folder: LocalFolder) -> dict[str, int]:
    """Return every file of a checkpoint that is its own: none that is hidden, or lies in a hidden folder."""
    return {
        name: size
        for name, size in folder.files().items()
        if not any(part.startswith(".") for part in PurePosixPath(name).parts)
    }


def push(wish: Push, notify: Notify) -> Delivered:
    """Send a checkpoint. Raises BadInput if it changes meanwhile: then nothing becomes visible."""
    paths = {name: wish.folder.resolve(name) for name in wish.files}
    large = {name: size for name, size in wish.files.items() if name.endswith(_WEIGHTS) or size > _SMALL_BYTES}
    state = _state(paths)
    run = {"the checkpoint": state, "the card": wish.card, "the destination": wish.order.identity}
    with stage(wish.work, run, restart=wish.restart) as staging:
        with sending(wish.order, staging, run, overwrite=wish.overwrite, restart=wish.restart, notify=notify) as opened:
            opened.lost(wish.folder.path)
            sender = opened.begin(wish.folder.path, large)
            for name in large:
                sender.finished(name)
            opened.wait()
            small = {name: path for name, path in paths.items() if name not in large}
            if wish.card is not None:
                staging.write_file(CARD, wish.card.encode())
                small[CARD] = staging.checkpoint / CARD
            if _state(paths) != state:
                message = f"`{wish.folder.label}` was changed while it was being sent"
                raise BadInput(message, hint="run the command again when nothing writes to it")
            delivered = opened.commit(small, workers=1)
        discard(staging.out)
    return delivered


def _state(paths: Mapping[str, Path]) -> dict[str, list[int]]:
    """Size and time of last change of every file."""
    stats = {name: path.stat() for name, path in paths.items()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
