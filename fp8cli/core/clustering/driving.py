"""A cluster as the labour of one run: its nodes looked at, the pieces cut into batches, the results taken in.

Files that are whole, and those of the source, its nodes hash or send as well (see `errands`, `carrier`). The journal
stays with the engine: a piece is told to it when its node has seen its bytes reach the disk, so that a run that is
killed goes on with the cluster, with another one, or without.
"""

import pickle
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from fp8cli.core.clustering.admission import admit
from fp8cli.core.clustering.batches import SHARDS_PER_SLOT, Batch, cut_batches, excerpt, source_shards, whole_shards
from fp8cli.core.clustering.carrier import Carrier, travels
from fp8cli.core.clustering.choice import ClusterChoice
from fp8cli.core.clustering.code import code_digest
from fp8cli.core.clustering.errand_messages import HashDone, HashOrder, Order, Sight
from fp8cli.core.clustering.errands import Answer, Errands
from fp8cli.core.clustering.foreman_process import Foreman, foreman_of
from fp8cli.core.clustering.judging import judge_nodes, nobody_can
from fp8cli.core.clustering.messages import BatchesDone, BatchOrder, Ended, NodeFacts, Place, Work
from fp8cli.core.clustering.report import ClusterReport
from fp8cli.core.clustering.sending_notes import FOLDER as SENT
from fp8cli.core.clustering.slots import Slots, share_nodes
from fp8cli.core.clustering.tally import Tally
from fp8cli.core.fetching.streaming import Streaming
from fp8cli.core.fetching.window_hashing import ShardToHash
from fp8cli.core.hashing import Hash
from fp8cli.core.quantizing.crew import ShardWatch
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import Resources
from fp8cli.errors import Interrupted
from fp8cli.formats.addresses import Address
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.destinations import Destination, SendOptions, Sends
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.remote_folder import RemoteFolder
from fp8cli.formats.sources import Elsewhere
from fp8cli.formats.staging import Harm, Piece, Staging, bytes_on_disk, disk_errors, source_key

FOLDER: Final = "cluster"
"""Beside the output in the making: the log, the token, and what nodes write to show that they see it."""


@dataclass(frozen=True, kw_only=True)
class ClusterWork:
    """What a cluster is to do, and may use."""

    choice: ClusterChoice
    workers: int | None
    """At most so many on each node; None: one per processor."""
    begins: Callable[[], None]
    """Told before anything is begun."""
    stays_bytes: int | None = None
    """What of the output lies on the shared disk at once, where it is sent elsewhere; None: all of it."""


@contextmanager
def cluster_labour(
    work: ClusterWork,
    place: LocalFolder | Elsewhere,
    streaming: Streaming | None,
    staging: Staging,
    resources: Resources,
    *,
    hashing: Mapping[str, ShardToHash] | None = None,
) -> Iterator["ClusterLabour"]:
    """Join the cluster, or begin one, for the time of a run. Raises CannotRun if there is none to be had.

    hashing: the shards of a source that is streamed whose SHA-256 is wanted.
    """
    work.begins()
    begun = time.monotonic()
    folder = staging.folder / FOLDER
    with disk_errors(staging.out):
        folder.mkdir(exist_ok=True)
    with foreman_of(work.choice, folder) as foreman:
        tally = Tally()
        errands = Errands(foreman, tally.take)
        try:
            yield ClusterLabour(
                work=work,
                place=place,
                streaming=streaming,
                staging=staging,
                resources=resources,
                hashing=hashing or {},
                foreman=foreman,
                errands=errands,
                begun=begun,
                tally=tally,
            )
        finally:
            errands.close()


@dataclass
class ClusterLabour:
    """Does pieces on the nodes of a cluster; see core.quantizing.crew.Labour."""

    work: ClusterWork
    place: LocalFolder | Elsewhere
    streaming: Streaming | None
    staging: Staging
    resources: Resources
    hashing: Mapping[str, ShardToHash]
    foreman: Foreman
    errands: Errands
    begun: float
    tally: Tally
    _slots: Slots | None = None
    _whole: bool = False
    """Whether a batch is a whole shard."""
    _batches: int = 0
    _start_seconds: float = 0.0
    _work_seconds: float = 0.0
    _found: dict[str, int] = field(default_factory=dict)
    _token: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def report(self) -> ClusterReport | None:
        """What came of it; None before."""
        if self._slots is None:
            return None
        return ClusterReport(
            address=self.work.choice.address,
            start_seconds=self._start_seconds,
            work_seconds=self._work_seconds,
            batches=self._batches,
            slots=self._slots.count,
            cpus_per_task=self._slots.cpus,
            shards_not_hashed=sum(
                shard.told is None and source_key(name) not in self.staging.hashes
                for name, shard in self.hashing.items()
            ),
            nodes=self.tally.rows(),
        )

    def carry_out(
        self, plan: Plan, pieces: Sequence[Piece], finished: Callable[[Mapping[Piece, Harm]], None], watch: ShardWatch
    ) -> None:
        """Do these pieces. Raises CannotRun where no node may work, or all that could are gone."""
        nodes = self._survey(plan)
        left_out = {facts.node: reason for facts, reason in nodes if reason is not None}
        fit = [facts for facts, reason in nodes if reason is None]
        if not fit:
            raise nobody_can(nodes)
        slots = self._slots = self._share(plan, fit)
        tally = self.tally
        tally.nodes, tally.begun = {facts.node: facts for facts, _ in nodes}, time.monotonic()
        tally.left_out.update(left_out)
        self._start_seconds = tally.begun - self.begun
        self.errands.open(left_out=left_out, able=(facts.node for facts in fit))
        try:
            for batches in self._waves(plan, pieces, slots, watch):
                self._batches += len(batches)
                self.foreman.begin(self._orders(plan, batches, slots, tuple(tally.left_out)))
                self._hear(batches, finished)
        finally:
            self._work_seconds = time.monotonic() - tally.begun

    def hash_file(self, folder: Path, name: str) -> "Future[Hash | None]":
        """Have a node hash a file of a folder that all of them see; None where none could."""
        size = LocalFolder(folder).resolve(name).stat().st_size

        def order(number: int) -> Order:
            return HashOrder(number=number, sight=self._sight, folder=folder.absolute(), file=name, bytes=size)

        promise: Future[Hash | None] = Future()
        self.errands.ask(order).add_done_callback(lambda done: _keep(promise, done))
        return promise

    def carry(self, address: Address, options: SendOptions, destination: Destination) -> Sends:
        """Return who sends files of the output to this place: nodes, where one can be told of it."""
        if not travels(address):
            return destination
        return Carrier(
            errands=self.errands,
            sight=lambda: self._sight,
            notes=self.staging.folder / FOLDER / SENT,
            address=address,
            options=options,
            destination=destination,
        )

    def _waves(
        self, plan: Plan, pieces: Sequence[Piece], slots: Slots, watch: ShardWatch
    ) -> Iterator[tuple[Batch, ...]]:
        """Yield the batches of shards as they may begin: of all there are at once, unless room for them is scarce."""
        by_shard: dict[str, list[Piece]] = {}
        for piece in pieces:
            by_shard.setdefault(plan.tensors[piece[0]].shard, []).append(piece)
        share = self.work.choice.batch_bytes
        # Whoever streams a whole shard hashes it on its way; parts of one that several tasks read make no hash.
        self._whole = bool(self.hashing) and share is None and len(by_shard) >= SHARDS_PER_SLOT * slots.count
        for shards in admit(watch, tuple(by_shard)):
            admitted = [piece for shard in shards for piece in by_shard[shard]]
            if self._whole:
                yield whole_shards(plan, admitted)
            else:
                yield cut_batches(plan, admitted, slots=slots.count, share_bytes=share)

    def _hear(self, batches: Sequence[Batch], finished: Callable[[Mapping[Piece, Harm]], None]) -> None:
        while True:
            match self.errands.hear():
                case BatchesDone(done=several):
                    pieces: dict[Piece, Harm] = {}
                    for done in several:
                        self.tally.count(done)
                        pieces.update(zip(batches[done.number].pieces, done.harms, strict=True))
                        for name, digest in done.sha256.items():
                            self.staging.record_hash(source_key(name), digest)
                    finished(pieces)
                case Ended():
                    return
                case other:
                    message = f"the answer to work was {type(other).__name__}"
                    raise TypeError(message)

    def _survey(self, plan: Plan) -> list[tuple[NodeFacts, str | None]]:
        """Ask every node; return its facts, and why it may not work."""
        lies = plan.bytes_written if self.work.stays_bytes is None else self.work.stays_bytes
        with disk_errors(self.staging.out):
            return judge_nodes(
                self.foreman,
                source=self._place,
                sizes=self._sizes(source_shards(plan.tensors)),
                shared=self.staging.folder / FOLDER,
                token=self._token,
                needed_bytes=max(0, lies - bytes_on_disk(self.staging.checkpoint)),
            )

    def _share(self, plan: Plan, fit: Sequence[NodeFacts]) -> Slots:
        cpus = [facts.cpus for facts in fit]
        return share_nodes(plan, cpus, workers=self.work.workers, memory_bytes=self.resources.memory_bytes)

    def _orders(self, plan: Plan, batches: Sequence[Batch], slots: Slots, left_out: tuple[str, ...]) -> Work:
        return Work(
            orders=tuple(pickle.dumps(self._order(plan, number, batch, slots)) for number, batch in enumerate(batches)),
            cpus=slots.cpus,
            gpus=1 if self.resources.device == "cuda" else 0,
            slots=slots.count,
            bundle=slots.bundle,
            left_out=left_out,
        )

    def _order(self, plan: Plan, number: int, batch: Batch, slots: Slots) -> BatchOrder:
        part, pieces = excerpt(plan, batch.pieces)
        return BatchOrder(
            number=number,
            plan=part,
            pieces=pieces,
            sight=self._sight,
            source=self._place,
            streaming=self.streaming,
            sizes=self._sizes(source_shards(part.tensors)),
            hashing=self._hashed_by(part) if self._whole else {},
            checkpoint=self._checkpoint,
            out=self.staging.out,
            workers=slots.workers,
            memory_bytes=slots.memory_bytes,
            device=self.resources.device,
            piece_bytes=self.resources.piece_bytes,
        )

    def _hashed_by(self, part: Plan) -> Mapping[str, ShardToHash]:
        """Return what of the source is hashed by who makes these tensors: the shard from which the output's comes."""
        names = dict.fromkeys(tensor.shard for tensor in part.tensors)
        return {name: self.hashing[name] for name in names if name in self.hashing}

    @cached_property
    def _checkpoint(self) -> Path:
        return self.staging.checkpoint.absolute()

    @cached_property
    def _sight(self) -> Sight:
        return Sight(shared=(self.staging.folder / FOLDER).absolute(), token=self._token, code=code_digest())

    def _sizes(self, names: Sequence[str]) -> Mapping[str, int]:
        """Return the bytes of files of the source, as they were when they were asked for first."""
        for name in names:
            if name not in self._found:
                self._found[name] = self._ask_size(name)
        return {name: self._found[name] for name in names}

    def _ask_size(self, name: str) -> int:
        if isinstance(self.place, LocalFolder):
            return self.place.resolve(name).stat().st_size
        return self.place.files()[name]

    @cached_property
    def _place(self) -> Place:
        """Return the source as every node finds it: of a repository the commit that this machine has read."""
        match self.place:
            case LocalFolder():
                return self.place.path.absolute()
            case HubRepo():
                return HubRepo(self.place.repo_id, self.place.commit)
            case RemoteFolder():
                return RemoteFolder(self.place.address)


def _keep(promise: "Future[Hash | None]", answered: "Future[Answer]") -> None:
    """Hand on what a node has found; None where none could, so that whoever asked does it."""
    problem = answered.exception()
    if isinstance(problem, Interrupted):
        promise.set_exception(problem)
        return
    answer = None if problem is not None else answered.result()
    promise.set_result((answer.bytes, answer.sha256) if isinstance(answer, HashDone) else None)
