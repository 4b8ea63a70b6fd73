"""The checkpoint that something is made from: its files here, or elsewhere and read as they are needed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from fp8cli.core.fetching.duplicates import same_elsewhere
from fp8cli.core.fetching.streaming import Streaming
from fp8cli.core.fetching.window_hashing import ShardToHash
from fp8cli.core.fetching.window_supply import WindowSupply
from fp8cli.core.inspection.gate import refuse_broken_files
from fp8cli.core.quantizing.engine import check_duplicates
from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.core.quantizing.supply import LocalSupply, Supply
from fp8cli.errors import BadInput
from fp8cli.formats import hub
from fp8cli.formats.checkpoint import CONFIG, Checkpoint, LocalFolder, open_checkpoint
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.sources import Elsewhere
from fp8cli.formats.staging import Staging
from fp8cli.formats.weight_files import same_bytes

WINDOW: Final = "window"
"""The folder, beside the output in the making, that holds what is needed of the source just now."""


def open_files(
    place: LocalFolder | Elsewhere, checkpoint: Checkpoint, streaming: Streaming | None, *, progress: bool
) -> "Source":
    """Return the checkpoint in `place`, downloaded if it is on the Hub and is not to be streamed.

    progress: show huggingface_hub's bars on a terminal. Raises BadInput for files beside the weights that are broken.
    """
    commit = place.commit if isinstance(place, HubRepo) else None
    if isinstance(place, HubRepo) and streaming is None:
        place = hub.download(place, progress=progress)
        checkpoint = open_checkpoint(place)
    if isinstance(place, LocalFolder):
        refuse_broken_files(place, checkpoint.side_files)
    return Source(folder=place, checkpoint=checkpoint, commit=commit, streaming=streaming)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint to read."""

    folder: LocalFolder | Elsewhere
    """What is elsewhere is streamed."""
    checkpoint: Checkpoint
    commit: str | None
    streaming: Streaming | None = None
    """How; None where the files are here."""

    @property
    def local(self) -> LocalFolder:
        """The folder, for what loads a model from files: it is refused beforehand where there are none."""
        assert isinstance(self.folder, LocalFolder)  # noqa: S101 - see core.fetching.streaming.refuse_without_files
        return self.folder

    def state(self) -> dict[str, list[int | str]]:
        """Size, and time of last change or version, of every file the output depends on.

        Raises BadInput for a file in a store that is not the one that its header was read from.
        """
        checkpoint = self.checkpoint
        names = (CONFIG, *checkpoint.side_files, *(shard.name for shard in checkpoint.shards))
        if isinstance(self.folder, LocalFolder):
            stats = {name: self.folder.resolve(name).stat() for name in names}
            return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        return self.folder.state(names)

    def refuse_changed(self, before: Mapping[str, Sequence[int | str]], *, called: str) -> None:
        """Raise BadInput if its files are not as they were.

        before: its state then; called: what the message calls it.
        """
        if self.state() != before:
            message = f"`{called}` was changed while it was being read"
            raise BadInput(message, hint="run the command again when nothing writes to it")

    def check_duplicates(self, plan: Plan) -> None:
        """Refuse a tied tensor that is stored twice with different values."""
        if isinstance(self.folder, LocalFolder):
            check_duplicates(plan, partial(_same_here, folder=self.folder))
        elif self.streaming is not None:
            check_duplicates(plan, partial(same_elsewhere, place=self.folder, connections=self.streaming.connections))

    def check_carried(self, staging: Staging) -> None:
        """Refuse files beside the weights that are broken; those that are here were looked at before anything began."""
        if not isinstance(self.folder, LocalFolder):
            refuse_broken_files(LocalFolder(staging.checkpoint), self.checkpoint.side_files, called=self.folder.label)

    @contextmanager
    def supply(self, staging: Staging, *, hashed: bool) -> Iterator[Supply]:
        """Open the weights for reading; a window is gone afterwards, whatever happens.

        hashed: whether what is streamed is hashed meanwhile.
        """
        if isinstance(self.folder, LocalFolder):
            yield LocalSupply(self.folder.resolve)
            return
        assert self.streaming is not None  # noqa: S101 - what is elsewhere is streamed
        window = WindowSupply(
            place=self.folder,
            folder=staging.folder / WINDOW,
            out=staging.out,
            connections=self.streaming.connections,
            window_bytes=self.streaming.window_bytes,
            hashing=self.to_hash() if hashed else {},
        )
        try:
            yield window
        finally:
            window.close()

    def to_hash(self) -> Mapping[str, ShardToHash]:
        """Return what is to be hashed on its way, with what the Hub says of it; nothing where the files are here."""
        if isinstance(self.folder, LocalFolder):
            return {}
        told = self.folder.sha256 if isinstance(self.folder, HubRepo) else lambda _: None
        sizes = {shard.name: self.checkpoint.files[shard.name] for shard in self.checkpoint.shards}
        return {name: ShardToHash(bytes=size, told=told(name)) for name, size in sizes.items()}


def _same_here(one: PlannedTensor, other: PlannedTensor, *, folder: LocalFolder) -> bool:
    files = folder.resolve(one.source_shard), folder.resolve(other.source_shard)
    return same_bytes(*files, one.source.begin, other.source.begin, one.source.bytes)
