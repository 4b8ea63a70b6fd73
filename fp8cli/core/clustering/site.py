"""What the foreman has under way: batches and errands that are handed to Ray, and results that are taken in.

Which node does something is Ray's to decide, and so is doing it again when a worker or a node dies; this side keeps
Ray's queue filled, leaves out nodes that are unfit by a label selector (which: `attendance`), and begins a batch a
second time when all others are done and it takes far longer than they did. While batches wait, errands get no more
than half of the places.

What is handed out is packed before it comes here, on a large cluster in bundles (`tasks`), and results are asked for
many at a time: a driver keeps no more nodes busy than it hands out batches in the time that one takes.
"""

import queue
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import ray

from fp8cli.core.clustering.attendance import Attendance
from fp8cli.core.clustering.errand_messages import Errand, ErrandFailed, HashDone, SendDone
from fp8cli.core.clustering.messages import BatchDone, BatchesDone, BatchFailed, Ended, GaveUp, Lost, Work
from fp8cli.core.clustering.tasks import RETRIES, answers, batch_task, hashing_task, relay_task, sending_task

_LOOK_SECONDS: Final = 1.0
"""Between looking at which nodes there are, and which batch takes long."""
_HEAR_SECONDS: Final = 0.05
"""For which a result is waited for, before it is seen whether this process wants something."""
_GATHER_SECONDS: Final = 0.01
"""For which others are waited for that come with it: what Ray has ahead lasts longer."""
_LEAST_AHEAD: Final = 64
"""Batches that Ray has at least; more than the tasks at once, so that none waits for this process."""
_SLOW: Final = 3.0
"""A batch that takes so many times the median is begun a second time."""
_SLOW_SECONDS: Final = 5.0
"""But not before so long."""

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
    _attendance: Attendance = field(init=False)
    _batches: deque[int] = field(default_factory=deque)
    _errands: deque[Errand] = field(default_factory=deque)
    _tries: dict[Any, _Try] = field(default_factory=dict)
    """By their references."""
    _under_way: int = 0
    """Batches among them."""
    _done: set[int] = field(default_factory=set)
    _seconds: list[float] = field(default_factory=list)
    _heard: list[BatchDone] = field(default_factory=list)
    """What this process was not told yet."""
    _running_since: float | None = None
    """When all batches that are left had a place of their own; None: some wait for one."""

    def __post_init__(self) -> None:
        """Begin to know nodes."""
        self._attendance = Attendance(self.tell)

    def carry_out(self, said: Work | Errand) -> None:
        """Begin with this, and go on until nothing is left of all that is said meanwhile. Raises EOFError."""
        self._attendance.begin()
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
        self._attendance.name_unreached()

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
                self._attendance.refuse(said.left_out)
                self._done, self._seconds, self._running_since = set(), [], None
                self._end_if_done(said)
            case Errand():
                self._attendance.refuse(said.left_out)
                self._errands.append(said)
            case other:
                message = f"at work it was told {type(other).__name__}"
                raise TypeError(message)

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
        left_out = self._attendance.without
        if len(numbers) == 1:
            reference = batch_task(work.cpus, work.gpus, left_out).remote(work.orders[numbers[0]])
        else:
            orders = tuple(work.orders[number] for number in numbers)
            reference = relay_task(left_out).remote(orders, work.cpus, work.gpus, left_out)
        self._under_way += len(numbers)
        self._tries[reference] = _Try(what=numbers, begun=time.monotonic(), again=again)

    def _hand_out_errand(self, errand: Errand) -> None:
        able = self._attendance.senders(errand.able)
        if errand.kind == "send" and not able:
            self.tell(ErrandFailed(number=errand.order.number, node="", name="", message="no node can send"))
            return
        task = sending_task(able) if errand.kind == "send" else hashing_task(self._attendance.out_of_reach)
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
                self._attendance.leave_out(answer.node, answer.name, answer.message)
                if not self._attendance.look():
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
                self._attendance.silence(answer.node, answer.name, answer.message)
                self._errands.append(errand)
            case ErrandFailed():
                self._attendance.leave_out(answer.node, answer.name, answer.message)
                if self._attendance.look():
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
            self._attendance.name_unreached()
            self._drop_batches()
            self.tell(Ended())

    def _look_around(self) -> GaveUp | None:
        if not self._attendance.look():
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
        able = {node for tried in late.values() if isinstance(tried.what, Errand) for node in tried.what.able}
        gone_at = self._attendance.gone_since(able) if late else None
        if gone_at is None:
            return
        for reference, tried in late.items():
            errand = tried.what
            if isinstance(errand, Errand) and tried.begun < gone_at:
                del self._tries[reference]
                ray.cancel(reference, force=True)
                self._errands.append(errand)

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
