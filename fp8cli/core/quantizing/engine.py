"""Carries a plan out: many workers, bounded memory, every finished piece in the journal.

The work is cut into pieces: a range of rows of one tensor to quantize or dequantize, or a range of bytes to copy.
A crew does them (core.quantizing.crew), or other machines (core.clustering). A committer thread flushes what is
finished to the disk and only then writes it into the journal.

The order of pieces, their size, the number of workers, machines and devices change nothing in the result.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fp8cli.core.quantizing.calibrated_scales import PlannedScale, check_scales
from fp8cli.core.quantizing.crew import Crew, Labour, ShardWatch, Unwatched
from fp8cli.core.quantizing.pieces import cut, source_bytes
from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.core.quantizing.resources import Resources
from fp8cli.core.quantizing.supply import Supply
from fp8cli.errors import BadInput, Interrupted
from fp8cli.formats.staging import Harm, Piece, Staging, disk_errors

_COMMIT_SHARE: Final = 0.5
"""At most this share of the time goes into flushing for the journal; the rest is flushed at the end."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What `notify` receives, from any worker thread but never from two at once."""

    tensor: str
    bytes_read: int
    tensor_finished: bool
    resumed: bool = False


@dataclass(frozen=True, kw_only=True)
class HarmedRows:
    """Rows (or bands of blocks) of one tensor whose reference scale loses their values; see core.quantizing.fp8."""

    tensor: str
    count: int
    first: int


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of it."""

    harmed: tuple[HarmedRows, ...]
    bytes_resumed: int
    """Bytes of source an earlier run had already done."""


def execute(
    plan: Plan,
    supply: Supply,
    staging: Staging,
    resources: Resources,
    notify: Callable[[Progress], None],
    *,
    scales: Mapping[str, bytes] | None = None,
    watch: ShardWatch | None = None,
    labour: Labour | None = None,
) -> Written:
    """Write every shard of the plan into the staging folder, going on from what an earlier run finished.

    scales: the bytes of each of `plan.calibrated`. watch: told of the output's files. labour: who does the pieces, if
    not a crew of this process. Raises BadInput for NaN or Inf
    in a weight, for scales that are not those of the plan (before anything is written), or for a source that changes
    meanwhile, CannotRun for a disk that is full or broken, Interrupted on Ctrl-C; the journal is kept.
    """
    scales = scales or {}
    check_scales(plan.calibrated, scales)
    run = _Run(plan, supply, staging, resources, notify, watch or Unwatched(), labour)
    with disk_errors(staging.out):
        prepare_files(plan, supply, staging.checkpoint, scales)
    return run.carry_out()


def check_duplicates(plan: Plan, same: Callable[[PlannedTensor, PlannedTensor], bool]) -> None:
    """Refuse a tied tensor that is stored twice with different values: readers disagree on which copy counts.

    same: whether two tensors of as many bytes hold the same ones.
    """
    by_name = {tensor.source.name: tensor for tensor in plan.tensors}
    for dropped, kept in plan.duplicates:
        one, other = by_name[dropped], by_name[kept]
        if one.source.bytes == other.source.bytes and same(one, other):
            continue
        message = f"config.json ties `{dropped}` to `{kept}`, but the checkpoint holds different values for the two"
        raise BadInput(message, hint='if both are meant, set "tie_word_embeddings": false in config.json')


def prepare_files(plan: Plan, supply: Supply, folder: Path, scales: Mapping[str, bytes]) -> None:
    """Create every output shard at its full size, with header and calibrated scales. An earlier run's data stay."""
    calibrated: dict[str, list[PlannedScale]] = {}
    for scale in plan.calibrated:
        calibrated.setdefault(scale.shard, []).append(scale)
    for shard in plan.shards:
        descriptor = os.open(folder / shard.name, os.O_RDWR | os.O_CREAT, supply.mode(shard.name))
        try:
            os.truncate(descriptor, shard.header.file_bytes)
            os.pwrite(descriptor, shard.head, 0)
            for scale in calibrated.get(shard.name, ()):
                os.pwrite(descriptor, scales[scale.name], scale.info.begin)
            if shard.name in calibrated:
                # Not left to the journal's flushes: an earlier run may have left it nothing to flush.
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush_shards(folder: Path, names: Iterable[str]) -> None:
    """Wait until what was written to some shards in `folder` has reached the disk."""
    for name in sorted(names):
        descriptor = os.open(folder / name, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@dataclass
class _Run:
    """One execution: what is done, what of it is in the journal, and which files are whole."""

    plan: Plan
    supply: Supply
    staging: Staging
    resources: Resources
    notify: Callable[[Progress], None]
    watch: ShardWatch
    labour: Labour | None
    _left: Counter[int] = field(default_factory=Counter)
    """Pieces of a tensor that are not done."""
    _unwritten: Counter[str] = field(default_factory=Counter)
    """Pieces of a shard that are not in the journal."""
    _done: dict[Piece, Harm] = field(default_factory=dict)
    _uncommitted: dict[Piece, Harm] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def carry_out(self) -> Written:
        """Run all pieces that are not done yet."""
        pieces = cut(self.plan, self.resources.piece_bytes)
        self._done = {piece: self.staging.done[piece] for piece in pieces if piece in self.staging.done}
        todo = [piece for piece in pieces if piece not in self._done]
        self._left.update(number for number, _, _ in todo)
        self._unwritten.update(self.plan.tensors[number].shard for number, _, _ in todo)
        resumed = sum(self._announce_resumed(piece) for piece in self._done)
        self._tell_finished([shard.name for shard in self.plan.shards])
        committer = threading.Thread(target=self._commit_regularly, name="fp8-commit", daemon=True)
        committer.start()
        try:
            self._do(todo)
        except KeyboardInterrupt:
            message = f"interrupted; what is done is kept beside `{self.staging.out}`"
            raise Interrupted(message, hint="go on with") from None
        finally:
            self._stop.set()
            committer.join()
            with disk_errors(self.staging.out):
                self._commit()
        return Written(harmed=self._merge_harm(), bytes_resumed=resumed)

    def _do(self, pieces: Sequence[Piece]) -> None:
        if self.labour is not None:
            self.labour.carry_out(self.plan, pieces, self._note_all, self.watch)
            return
        crew = Crew(
            plan=self.plan,
            supply=self.supply,
            folder=self.staging.checkpoint,
            out=self.staging.out,
            resources=self.resources,
            finished=self._note,
            watch=self.watch,
        )
        crew.carry_out(pieces)

    def _note(self, piece: Piece, harm: Harm) -> None:
        tensor = self.plan.tensors[piece[0]]
        with self._lock:
            self._done[piece] = self._uncommitted[piece] = harm
            self._left[piece[0]] -= 1
            finished = not self._left[piece[0]]
        self.notify(Progress(tensor=tensor.name, bytes_read=source_bytes(tensor, piece), tensor_finished=finished))

    def _note_all(self, done: Mapping[Piece, Harm]) -> None:
        """Note many at once, and tell of each tensor once: others do thousands in a second."""
        read: Counter[int] = Counter()
        for piece in done:
            read[piece[0]] += source_bytes(self.plan.tensors[piece[0]], piece)
        with self._lock:
            self._done.update(done)
            self._uncommitted.update(done)
            self._left.subtract(number for number, _, _ in done)
            finished = {number for number in read if not self._left[number]}
        for number, size in read.items():
            tensor = self.plan.tensors[number].name
            self.notify(Progress(tensor=tensor, bytes_read=size, tensor_finished=number in finished))

    def _announce_resumed(self, piece: Piece) -> int:
        tensor = self.plan.tensors[piece[0]]
        size = source_bytes(tensor, piece)
        finished = piece[0] not in self._left and piece[1] == 0
        self.notify(Progress(tensor=tensor.name, bytes_read=size, tensor_finished=finished, resumed=True))
        return size

    def _merge_harm(self) -> tuple[HarmedRows, ...]:
        """One entry per harmed tensor, from what its pieces reported, in this run or an earlier one."""
        merged: dict[int, HarmedRows] = {}
        for (number, _, _), (count, first) in sorted(self._done.items()):
            if count:
                before = merged.get(number, HarmedRows(tensor=self.plan.tensors[number].name, count=0, first=first))
                merged[number] = HarmedRows(tensor=before.tensor, count=before.count + count, first=before.first)
        return tuple(merged.values())

    def _commit_regularly(self) -> None:
        pause = 0.02
        while not self._stop.wait(pause):
            begun = time.monotonic()
            try:
                self._commit()
            except OSError:
                return  # The final commit meets the same error, in the main thread, and reports it.
            pause = max(0.02, (time.monotonic() - begun) / _COMMIT_SHARE)

    def _commit(self) -> None:
        """Flush what is finished to the disk, then say so in the journal. The order is what makes it safe."""
        with self._lock:
            finished, self._uncommitted = self._uncommitted, {}
        if not finished:
            return
        if self.labour is None:
            flush_shards(self.staging.checkpoint, {self.plan.tensors[number].shard for number, _, _ in finished})
        self.staging.record(finished)
        self._unwritten.subtract(self.plan.tensors[number].shard for number, _, _ in finished)
        self._tell_finished(sorted({self.plan.tensors[number].shard for number, _, _ in finished}))

    def _tell_finished(self, shards: Sequence[str]) -> None:
        for shard in shards:
            if not self._unwritten[shard]:
                self.watch.finished(shard)
