"""What the foreman has under way: batches and errands handed to Ray, results taken in, nodes that are lost or unfit.

Which node does something is Ray's to decide, and so is doing it again when a worker or a node dies; this side keeps
Ray's queue filled, leaves out nodes that are unfit (by a label selector), and begins a batch a second time when all
others are done and it takes far longer than they did. While batches wait, errands get no more than half of the places.

What is handed out is packed before it comes here, on a large cluster in bundles (`tasks`), and results are asked for
many at a time: a driver keeps no more nodes busy than it hands out batches in the time that one takes.
"""

import queue
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ray

from fp8cli.core.clustering.errand_messages import CannotSend, Errand, ErrandFailed, HashDone, SendDone
from fp8cli.core.clustering.messages import (
    BatchDone,
    BatchesDone,
    BatchFailed,
    Ended,
    GaveUp,
    Lost,
    NodeLeftOut,
    NodeLost,
    Work,
)
from fp8cli.core.clustering.roll import name_of, reached, working_nodes
from fp8cli.core.clustering.tasks import RETRIES, answers, batch_task, hashing_task, relay_task, sending_task

_LOOK_SECONDS: Final = 1.0
"""Between looking at which nodes there are, and which batch takes long."""
_HEAR_SECONDS: Final = 0.05
"""For which a result is waited for, before it is seen whether this process wants something."""
_GATHER_SECONDS: Final = 0.01
"""For which others are waited for that come with it: what Ray has ahead lasts longer."""
_LEAST_AHEAD: Final = 64
"""Batches that Ray has at least; more than the tasks at once, so that none waits for this process."""
_EMPTY_SECONDS: Final = 60.0
"""A cluster without a node that may work is given up after so long."""
_SLOW: Final = 3.0
"""A batch that takes so many times the median is begun a second time."""
_SLOW_SECONDS: Final = 5.0
"""But not before so long."""
_PATIENCE_SECONDS: Final = 6.0
"""A node that does not answer for so long is called lost."""

Said = Work | Errand | None
"""None: nobody listens any more."""


@dataclass
class _Try:
    """What was handed out: batches by their numbers in `Work`, or an errand."""

    what: tuple[int, ...] | Errand
    begun: float
    again: bool = False
    """Whether it is a second time, or has had one."""

    def is_late(self, seconds: float, *, running_since: float = 0.0) -> bool:
        """Whether it takes longer than that. running_since: when it waited for its turn no longer, at the latest."""
        return time.monotonic() - max(self.begun, running_since) > seconds


@dataclass
class Site:
    """All that is under way at a time."""

    tell: Callable[[Any], None]
    inbox: "queue.SimpleQueue[Any]"
    """What this process says meanwhile."""
    _work: Work | None = None
    _batches: deque[int] = field(default_factory=deque)
    _errands: deque[Errand] = field(default_factory=deque)
    _tries: dict[Any, _Try] = field(default_factory=dict)
    """By their references."""
    _under_way: int = 0
    """Batches among them."""
    _unfit: set[str] = field(default_factory=set)
    """Nodes that got nothing from the beginning."""
    _left_out: set[str] = field(default_factory=set)
    """Those, and others that were unfit when they had got something."""
    _mute: set[str] = field(default_factory=set)
    """Nodes that cannot send."""
    _gone: set[str] = field(default_factory=set)
    """Nodes that were out of reach when that was looked at last; an errand goes to none of them."""
    _done: set[int] = field(default_factory=set)
    _seconds: list[float] = field(default_factory=list)
    _heard: list[BatchDone] = field(default_factory=list)
    """What this process was not told yet."""
    _nodes: dict[str, str] = field(default_factory=dict)
    _named: set[str] = field(default_factory=set)
    """Nodes that were told of as lost."""
    _seen_at: float = 0.0
    _running_since: float | None = None
    """When all batches that are left had a place of their own; None: some wait for one."""
    _reached_at: float = 0.0
    _gone_at: float = 0.0
    """When a node was found to be out of reach."""

    def carry_out(self, said: Work | Errand) -> None:
        """Begin with this, and go on until nothing is left of all that is said meanwhile. Raises EOFError."""
        self._seen_at = time.monotonic()
        self._begin(said)
        looked = 0.0
        while self._work is not None or self._errands or self._tries:
            self._listen()
            self._hand_out()
            given_up = self._take_in()
            if given_up is None and time.monotonic() - looked >= _LOOK_SECONDS:
                looked = time.monotonic()
                given_up = self._look_around()
            if given_up is not None:
                self._end(given_up)
        self._name_unreached()

    def _listen(self) -> None:
        while not self.inbox.empty():
            said = self.inbox.get()
            if said is None:
                raise EOFError
            self._begin(said)

    def _begin(self, said: Work | Errand) -> None:
        match said:
            case Work():
                self._work = said
                self._batches = deque(range(len(said.orders)))
                self._refuse(said.left_out)
                self._done, self._seconds, self._running_since = set(), [], None
                self._end_if_done(said)
            case Errand():
                self._refuse(said.left_out)
                self._errands.append(said)
            case other:
                message = f"at work it was told {type(other).__name__}"
                raise TypeError(message)

    def _refuse(self, nodes: Sequence[str]) -> None:
        self._unfit.update(node for node in nodes if node not in self._left_out)
        self._left_out.update(nodes)

    def _hand_out(self) -> None:
        work = self._work
        while work is not None and self._batches and self._under_way < max(2 * work.slots, _LEAST_AHEAD):
            bundle = min(work.bundle, len(self._batches))
            self._hand_out_batches(work, tuple(self._batches.popleft() for _ in range(bundle)))
        under_way = sum(isinstance(tried.what, Errand) for tried in self._tries.values()) if self._errands else 0
        room = max(1, work.slots // 2) - under_way if work is not None and self._batches else len(self._errands)
        for _ in range(min(room, len(self._errands))):
            self._hand_out_errand(self._errands.popleft())

    def _hand_out_batches(self, work: Work, numbers: tuple[int, ...], *, again: bool = False) -> None:
        left_out = tuple(sorted(self._left_out))
        if len(numbers) == 1:
            reference = batch_task(work.cpus, work.gpus, left_out).remote(work.orders[numbers[0]])
        else:
            orders = tuple(work.orders[number] for number in numbers)
            reference = relay_task(left_out).remote(orders, work.cpus, work.gpus, left_out)
        self._under_way += len(numbers)
        self._tries[reference] = _Try(what=numbers, begun=time.monotonic(), again=again)

    def _hand_out_errand(self, errand: Errand) -> None:
        left_out = self._left_out | self._gone | (self._mute if errand.kind == "send" else set())
        able = tuple(node for node in errand.able if node not in left_out)
        if errand.kind == "send" and not able:
            self.tell(ErrandFailed(number=errand.order.number, node="", name="", message="no node can send"))
            return
        task = sending_task(able) if errand.kind == "send" else hashing_task(tuple(sorted(left_out)))
        self._tries[task.remote(errand.order)] = _Try(what=errand, begun=time.monotonic())

    def _take_in(self) -> GaveUp | None:
        """Act on the answers that are there; what cannot be mended is returned."""
        if not self._tries:
            return None
        ready, _ = ray.wait(list(self._tries), num_returns=1, timeout=_HEAR_SECONDS, fetch_local=False)
        if ready and len(self._tries) > 1:
            ready, _ = ray.wait(
                list(self._tries), num_returns=len(self._tries), timeout=_GATHER_SECONDS, fetch_local=False
            )
        for reference, answer in zip(ready, answers(ready), strict=True):
            tried = self._tries.pop(reference)
            if isinstance(tried.what, Errand):
                self._take_errand(tried.what, answer)
                continue
            each = answer if isinstance(answer, list) else [answer] * len(tried.what)
            for number, of_batch in zip(tried.what, each, strict=True):
                if (given_up := self._take_batch(tried, number, of_batch)) is not None:
                    return given_up
        if self._heard:
            self.tell(BatchesDone(done=tuple(self._heard)))
            self._heard.clear()
        if self._work is not None:
            self._end_if_done(self._work)
        return None

    def _take_batch(self, tried: _Try, number: int, answer: object) -> GaveUp | None:
        self._under_way -= 1
        work = self._work
        if work is None or number in self._done:
            return None  # The second answer to a batch that was begun twice.
        match answer:
            case BatchDone():
                self._done.add(number)
                self._seconds.append(answer.seconds)
                self._heard.append(answer)
            case BatchFailed(fault="source"):
                return GaveUp(fault="source", message=answer.message, hint=answer.hint)
            case BatchFailed():
                self._leave_out(answer.node, answer.name, answer.message)
                if not self._look():
                    message = f"{answer.name}: {answer.message}, and no other node is left"
                    return GaveUp(fault="cluster", message=message, hint=answer.hint)
                self._hand_out_batches(work, (number,), again=tried.again)
            case Lost(raised=True):
                message = f"a node failed at a batch: {answer.message}"
                return GaveUp(fault="cluster", message=message, hint="run the same command again to go on")
            case Lost():
                message = f"a batch was lost {RETRIES + 1} times with its worker or node: {answer.message}"
                return GaveUp(fault="cluster", message=message, hint="run the same command again to go on")
            case other:
                message = f"the answer to a batch was {type(other).__name__}"
                raise TypeError(message)
        return None

    def _take_errand(self, errand: Errand, answer: object) -> None:
        match answer:
            case HashDone() | SendDone():
                self.tell(answer)
            case ErrandFailed() if errand.kind == "send":
                if answer.node not in self._mute:
                    self._mute.add(answer.node)
                    self.tell(CannotSend(node=answer.node, name=answer.name, reason=answer.message))
                self._errands.append(errand)
            case ErrandFailed():
                self._leave_out(answer.node, answer.name, answer.message)
                if self._look():
                    self._errands.append(errand)
                else:
                    self.tell(answer)
            case Lost():
                self.tell(ErrandFailed(number=errand.order.number, node="", name="", message=answer.message))
            case other:
                message = f"the answer to an errand was {type(other).__name__}"
                raise TypeError(message)

    def _end_if_done(self, work: Work) -> None:
        if len(self._done) == len(work.orders):
            self._name_unreached()
            self._drop_batches()
            self.tell(Ended())

    def _leave_out(self, node: str, name: str, reason: str) -> None:
        if node not in self._left_out:
            self._left_out.add(node)
            self.tell(NodeLeftOut(node=node, name=name, reason=reason))
        # What waits in Ray's queue may still go there: it comes back as this one did.

    def _look_around(self) -> GaveUp | None:
        if not self._look():
            message = "no node of the cluster can work any more"
            hint = "run the same command again to go on: with a cluster that can, or without --cluster"
            return GaveUp(fault="cluster", message=message, hint=hint)
        if self._work is not None and not self._batches:
            self._begin_again(self._work)
        self._ask_elsewhere()
        return None

    def _ask_elsewhere(self) -> None:
        """Take errands back that may be with nodes that are out of reach: Ray would wait for these for minutes."""
        late = {
            reference: tried
            for reference, tried in self._tries.items()
            if isinstance(tried.what, Errand) and tried.is_late(_SLOW_SECONDS)
        }
        if not late or time.monotonic() - self._reached_at < _SLOW_SECONDS:
            return
        nodes = working_nodes()
        known = set(nodes).union(*(tried.what.able for tried in late.values() if isinstance(tried.what, Errand)))
        there = reached(nodes)
        self._reached_at = time.monotonic()
        if known - there.keys() - self._gone:
            self._gone_at = self._reached_at
        self._gone = known - there.keys()
        for reference, tried in late.items():
            errand = tried.what
            if isinstance(errand, Errand) and tried.begun < self._gone_at:
                del self._tries[reference]
                ray.cancel(reference, force=True)
                self._errands.append(errand)

    def _look(self) -> bool:
        """See which nodes there are. False: none that may work, and none for a while, or all of them were unfit."""
        now = working_nodes()
        self._name_lost(alive=now)
        for node in now.keys() - self._left_out:
            self._nodes[node] = name_of(node, now[node])
        if self._nodes:
            self._seen_at = time.monotonic()
            return True
        patience = 0.0 if self._left_out - self._unfit else _EMPTY_SECONDS
        return time.monotonic() - self._seen_at <= patience

    def _name_lost(self, alive: Mapping[str, Any]) -> None:
        for node in [node for node in self._nodes if node not in alive or node in self._left_out]:
            name = self._nodes.pop(node)
            if node not in self._left_out | self._named:
                self._named.add(node)
                self.tell(NodeLost(node=node, name=name))

    def _name_unreached(self) -> None:
        """Name nodes that do not answer, though Ray has them still among the live."""
        asked = {node: facts for node, facts in working_nodes().items() if node not in self._named}
        self._name_lost(alive=reached(asked, patience_seconds=_PATIENCE_SECONDS))

    def _begin_again(self, work: Work) -> None:
        """Give batches that take far longer than others to another task too, where one would be idle."""
        if self._running_since is None and self._under_way <= work.slots:
            self._running_since = time.monotonic()
        if not self._seconds or self._running_since is None or self._under_way >= work.slots:
            return
        limit = max(_SLOW_SECONDS, _SLOW * statistics.median(self._seconds))
        for tried in [each for each in self._tries.values() if not isinstance(each.what, Errand) and not each.again]:
            if tried.is_late(limit, running_since=self._running_since):
                tried.again = True
                for number in [] if isinstance(tried.what, Errand) else tried.what:
                    self._hand_out_batches(work, (number,), again=True)

    def _drop_batches(self) -> None:
        """Cancel the batches that nobody waits for any more."""
        for reference in [each for each, tried in self._tries.items() if not isinstance(tried.what, Errand)]:
            del self._tries[reference]
            ray.cancel(reference, force=True)
        self._work, self._under_way = None, 0
        self._batches.clear()

    def _end(self, given_up: GaveUp) -> None:
        """Cancel everything, and say why."""
        self._drop_batches()
        for reference in self._tries:
            ray.cancel(reference, force=True)
        self._tries.clear()
        self._errands.clear()
        self.tell(given_up)
