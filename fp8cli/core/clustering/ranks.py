"""One program as several ranks on the nodes of a cluster: what `run_program` is on one machine.

Every node is asked first whether it sees the source and the folder of the job. Then each rank has a process where a
place is for it; the first one's events are the program's. None is begun again: when one ends before its time, or its
node is lost, all are ended, and one sentence says which and why.
"""

import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Literal, NoReturn, TypeVar

from fp8cli.core.clustering.choice import ClusterChoice
from fp8cli.core.clustering.foreman_process import Foreman, foreman_of
from fp8cli.core.clustering.judging import judge_nodes, nobody_can
from fp8cli.core.clustering.rank_messages import Muster, RankOrder, RankPlace, RanksSeen, RankState
from fp8cli.core.clustering.rank_places import place_ranks
from fp8cli.core.processes.event_file import Failed, Finished, parse
from fp8cli.core.processes.logbook import Logbook
from fp8cli.core.processes.masking import mask_file, secrets_of
from fp8cli.core.processes.process_group import end_leftovers
from fp8cli.core.processes.root_cause import Cause
from fp8cli.core.processes.supervision import Program, failure_of
from fp8cli.errors import Interrupted
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.worker.protocol import events_file

Event = TypeVar("Event")

FOLDER: Final = "cluster"
"""In the folder of the job: Ray's log, and what nodes write to show that they see it."""

_SECONDS_TO_HEAR: Final = 6.0
"""When one rank ends, the others fail too; the first reason is the one to tell."""
_OF_PEER: Final = re.compile(
    r"by peer|gloo|nccl|recvBytes|sendBytes|broken pipe|connection re|timed out waiting|TCPStore|DistBackend",
    re.IGNORECASE,
)
"""What a library's words have in them when another rank is what it misses."""


@dataclass(frozen=True, kw_only=True)
class RanksOnCluster:
    """Where a program runs, and as how many ranks. Called as `run_program` is."""

    choice: ClusterChoice
    ranks: int
    source: Path
    """The folder that every rank reads."""
    device: Literal["auto", "cpu", "cuda"]
    memory_bytes: int
    """Of main memory, for a rank."""
    begins: Callable[[], None] = lambda: None
    """Told before the cluster is joined, or begun."""
    placed: Callable[[tuple[str, ...]], None] = lambda _: None
    """Told the name of each rank's node, once it is chosen."""

    def __call__(
        self,
        program: Program[Event],
        folder: Path,
        *,
        python: Path,
        notify: Callable[[Event], None],
        stall_seconds: float,
        forced: Mapping[str, str],
        environ: Mapping[str, str],
    ) -> None:
        """See `run_program`. environ: for masking alone, for a node's environment is its own."""
        self.begins()
        end_leftovers(folder)
        for name in (program.events, *program.results):
            (folder / name).unlink(missing_ok=True)
        shared = folder / FOLDER
        shared.mkdir(exist_ok=True)
        try:
            with foreman_of(self.choice, shared) as foreman:
                places = self._places(foreman, shared)
                self.placed(tuple(place.name for place in places))
                orders = tuple(self._order(program, folder, rank, python, forced) for rank in range(self.ranks))
                starts = tuple(_length(folder / order.log) for order in orders)
                try:
                    foreman.begin(Muster(orders=orders, places=places))
                    _Roll(
                        program=program, orders=orders, places=places, starts=starts, secrets=secrets_of(environ)
                    ).wait(foreman, notify, stall_seconds)
                finally:
                    foreman.dismiss()
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None
        finally:
            end_leftovers(folder)
            for log in folder.glob(f"{Path(program.log).stem}*.log"):
                with suppress(OSError):
                    mask_file(log, secrets_of(environ))

    def _places(self, foreman: Foreman, shared: Path) -> tuple[RankPlace, ...]:
        files = LocalFolder(self.source).files()
        judged = judge_nodes(
            foreman,
            source=self.source.absolute(),
            sizes={name: size for name, size in files.items() if "/" not in name},
            shared=shared,
            token=secrets.token_hex(16),
            needed_bytes=0,
        )
        fit = [facts for facts, reason in judged if reason is None]
        if not fit:
            raise nobody_can(judged)
        return place_ranks(fit, self.ranks, device=self.device, memory_bytes=self.memory_bytes)

    def _order(
        self, program: Program[Any], folder: Path, rank: int, python: Path, forced: Mapping[str, str]
    ) -> RankOrder:
        log = Path(program.log)
        return RankOrder(
            rank=rank,
            module=program.module,
            title=f"{program.name}, process {rank + 1} of {self.ranks}",
            folder=folder.absolute(),
            events=events_file(rank),
            log=program.log if rank == 0 else f"{log.stem}-{rank}{log.suffix}",
            python=None if python == Path(sys.executable) else python,
            preset=program.environment,
            forced=forced,
        )


def _length(file: Path) -> int:
    with suppress(OSError):
        return file.stat().st_size
    return 0


@dataclass(kw_only=True)
class _Roll(Generic[Event]):
    """The time from the muster to the end of the last rank."""

    program: Program[Event]
    orders: tuple[RankOrder, ...]
    places: tuple[RankPlace, ...]
    starts: tuple[int, ...]
    """Bytes of each log that are of earlier runs."""
    secrets: tuple[str, ...]
    _ended: set[int] = field(default_factory=set)
    _failed: dict[int, Failed] = field(default_factory=dict)
    _versions: dict[int, Any] = field(default_factory=dict)

    def wait(self, foreman: Foreman, notify: Callable[[Event], None], stall_seconds: float) -> None:
        """Hear all ranks until they have done their work. Raises BadInput or CannotRun."""
        logs, heard_at = [0] * len(self.orders), time.monotonic()
        bad: dict[int, RankState] = {}
        bad_at = 0.0
        while len(self._ended) < len(self.orders):
            match foreman.hear():
                case RanksSeen(states=states):
                    for state in states:
                        if state.lines or state.log_bytes != logs[state.rank]:
                            logs[state.rank], heard_at = state.log_bytes, time.monotonic()
                        self._take(state, notify)
                        if state.is_lost or state.problem is not None or state.code:
                            bad.setdefault(state.rank, state)
                            bad_at = bad_at or time.monotonic()
                case other:
                    message = f"the answer to a muster was {type(other).__name__}"
                    raise TypeError(message)
            if bad and (
                len(bad) + len(self._ended) == len(self.orders) or time.monotonic() - bad_at > _SECONDS_TO_HEAR
            ):
                self._explain(bad)
            if time.monotonic() - heard_at > stall_seconds:
                message = f"nothing was heard of the {self.program.name} for {stall_seconds:,g} s, so it was ended"
                self._fail(0, Cause(kind="other", message=message, hint=None))

    def _take(self, state: RankState, notify: Callable[[Event], None]) -> None:
        for line in state.lines:
            # The first rank speaks for all; of the others, only what they are and why they fail is heard.
            event = parse(line, self.program.event_of)
            match event:
                case None | Finished():
                    pass
                case Failed():
                    self._failed.setdefault(state.rank, event)
                case _ if state.rank == 0:
                    notify(event)
        if state.code == 0:
            self._ended.add(state.rank)

    def _explain(self, bad: Mapping[int, RankState]) -> NoReturn:
        """Raise the error that is at the root of what befell several ranks."""
        for rank, state in bad.items():
            name = self.places[rank].name
            if state.problem is not None:
                message = f"process {rank + 1} of the {self.program.name} was not started: `{name}` {state.problem}"
                self._fail(rank, Cause(kind="other", message=message, hint="fp8 doctor --cluster ray shows all nodes"))
        causes = {rank: self._cause(rank, state) for rank, state in bad.items()}
        rank = min(causes, key=lambda each: _is_secondary(causes[each]))
        self._fail(rank, causes[rank])

    def _cause(self, rank: int, state: RankState) -> Cause:
        where = f"process {rank + 1} of the {self.program.name} on `{self.places[rank].name}`"
        if state.is_lost:
            message = f"{where} was lost with its node, or with Ray's worker there"
            return Cause(kind="other", message=message, hint="run the same command again")
        order = self.orders[rank]
        python = order.python or Path(sys.executable)
        book = Logbook(path=order.folder / order.log, start=self.starts[rank], python=python, secrets=self.secrets)
        failed = self._failed.get(rank)
        if failed is None:
            cause = book.explain_exit(state.code or 0)
        elif failed.kind == "data":
            cause = book.told_by(failed)
        else:
            cause = book.explain_failure(failed)
        return Cause(kind=cause.kind, message=f"{where}: {cause.message}", hint=cause.hint)

    def _fail(self, rank: int, cause: Cause) -> NoReturn:
        order = self.orders[rank]
        raise failure_of(self.program, cause, order.folder / order.log)


def _is_secondary(cause: Cause) -> bool:
    """Whether a rank only misses another one."""
    return cause.kind == "other" and _OF_PEER.search(cause.message) is not None
