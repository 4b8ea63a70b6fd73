"""Many workers at one plan: each takes pieces, of one file as long as it has any, until there are none.

A crew knows nothing of journals: it tells what is finished, and whoever asked for it keeps the books. What only torch
can do comes last, so that it is imported while the rest is done (see core.quantizing.arithmetic).
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fp8cli.core.quantizing.arithmetic import Arithmetic, Worker
from fp8cli.core.quantizing.pieces import source_ranges
from fp8cli.core.quantizing.plan import Plan, PlannedTensor
from fp8cli.core.quantizing.resources import Resources
from fp8cli.core.quantizing.supply import Line, Supply
from fp8cli.formats.staging import Harm, Piece, disk_errors
from fp8cli.formats.weight_files import OpenFiles, copy_range


class ShardWatch(Protocol):
    """Who wants to know how far the output's files are. Any thread may call it."""

    def begins(self, shard: str) -> None:
        """Let a worker write to a shard; no byte is written before this returns. Called more than once for each."""

    def finished(self, shard: str) -> None:
        """Take note that a shard is whole, on the disk and in the journal, once. Must return at once."""

    def abandon(self) -> None:
        """Let nobody wait to begin any more: the work failed, and whoever waits has nothing left to do."""


class Unwatched:
    """Nobody does."""

    def begins(self, shard: str) -> None:
        """Let it begin."""

    def finished(self, shard: str) -> None:
        """Take no note."""

    def abandon(self) -> None:
        """Nobody waits."""


class Labour(Protocol):
    """Who does the pieces where it is not a crew of this process."""

    def carry_out(
        self, plan: Plan, pieces: Sequence[Piece], finished: Callable[[Mapping[Piece, Harm]], None], watch: ShardWatch
    ) -> None:
        """Do these pieces, and tell of some at a time, by one thread, once their bytes have reached the disk.

        No shard is begun before the watch lets it. The files of the output are there, at their full size. Raises as a
        crew does; a KeyboardInterrupt ends the work first.
        """


@dataclass(frozen=True)
class Together:
    """Several watches as one."""

    watches: tuple[ShardWatch, ...]

    def begins(self, shard: str) -> None:
        """Ask each of them."""
        for watch in self.watches:
            watch.begins(shard)

    def finished(self, shard: str) -> None:
        """Tell each of them."""
        for watch in self.watches:
            watch.finished(shard)

    def abandon(self) -> None:
        """Tell each of them."""
        for watch in self.watches:
            watch.abandon()


@dataclass
class Crew:
    """The workers of one run. Files of the output must be there, at their full size, before they begin."""

    plan: Plan
    supply: Supply
    folder: Path
    """Where the output's shards lie."""
    out: Path
    """What messages call the output."""
    resources: Resources
    finished: Callable[[Piece, Harm], None]
    """Told of every piece, by one thread at a time. Its bytes need not have reached the disk."""
    watch: ShardWatch = field(default_factory=Unwatched)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _line: Line = field(init=False)
    _arithmetic: Arithmetic = field(init=False)

    def carry_out(self, pieces: Sequence[Piece]) -> None:
        """Do these pieces. Raises BadInput for NaN or Inf in a weight, CannotRun for a disk that is full or broken.

        An exception that the caller's thread gets meanwhile, such as KeyboardInterrupt, stops the workers first.
        """
        self._arithmetic = Arithmetic(self.plan, self.resources)
        todo = sorted(pieces, key=self._needs_torch)
        self._line = self.supply.line_up(self.plan, todo)
        with ThreadPoolExecutor(self.resources.workers, thread_name_prefix="fp8-worker") as pool:
            try:
                jobs = [pool.submit(self._work) for _ in range(self.resources.workers)]
                if todo and self._needs_torch(todo[-1]):
                    self._arithmetic.load_torch()
                _wait_for(jobs)
            except BaseException:
                self.watch.abandon()
                raise
            finally:
                self._stop.set()
                self._line.stop()
                self._arithmetic.stop()

    def _needs_torch(self, piece: Piece) -> bool:
        return self._arithmetic.needs_torch(self.plan.tensors[piece[0]])

    def _work(self) -> None:
        """Take pieces until there are none; keep the two files of the current shard open."""
        worker = self._arithmetic.worker()
        files = OpenFiles(self.supply.path, self.folder)
        try:
            shard: str | None = None
            while not self._stop.is_set() and (piece := self._line.take(shard)) is not None:
                tensor = self.plan.tensors[piece[0]]
                if tensor.shard != shard:
                    shard = tensor.shard
                    self.watch.begins(shard)
                self._do(piece, tensor, worker, files)
        except BaseException:
            self._stop.set()
            self._line.stop()
            raise
        finally:
            files.close()

    def _do(self, piece: Piece, tensor: PlannedTensor, worker: Worker, files: OpenFiles) -> None:
        ranges = source_ranges(tensor, piece)
        self.supply.fetch(ranges)
        try:
            with disk_errors(self.out):
                harm = _convert(piece, tensor, worker, files)
        finally:
            self.supply.release(ranges)
        if harm is not None:
            with self._lock:
                self.finished(piece, harm)


def _convert(piece: Piece, tensor: PlannedTensor, worker: Worker, files: OpenFiles) -> Harm | None:
    """Do one piece. None: the run stops, nothing was done."""
    _, begin, end = piece
    source, target = files.source(tensor.source_shard), files.target(tensor.shard)
    if tensor.action == "copy":
        assert tensor.weight is not None  # noqa: S101 - the plan gives every copy a weight
        copy_range(source, target, tensor.source.begin + begin, tensor.weight.begin + begin, end - begin)
        return (0, -1)
    scales = None if tensor.decoding is None else files.scales(tensor.decoding.shard)
    return worker.convert(tensor, range(begin, end), source, target, scales)


def _wait_for(jobs: Sequence[Future[None]]) -> None:
    done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
    for job in done:
        job.result()
