"""What nodes are sent for beside their batches: promised to whoever asked, taken in as it is done.

A thread listens to the foreman for all: what concerns an errand it settles, what concerns a node it notes, and the
rest waits for whoever carries the batches out.
"""

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from fp8cli.core.clustering.errand_messages import CannotSend, Errand, ErrandFailed, HashDone, Order, SendDone
from fp8cli.core.clustering.foreman_process import Foreman
from fp8cli.core.clustering.messages import Heard, NodeLeftOut, NodeLost
from fp8cli.errors import Fp8Error, Interrupted

_LOOK_SECONDS: Final = 0.1

Answer = HashDone | SendDone | ErrandFailed


@dataclass
class Errands:
    """The errands of one run. Any thread may ask for one."""

    foreman: Foreman
    told: Callable[[NodeLeftOut | NodeLost | CannotSend | HashDone | SendDone], None]
    """Of what becomes of nodes, and of what they did, by one thread."""
    _numbers: "count[int]" = field(default_factory=count)
    _promised: dict[int, Future[Answer]] = field(default_factory=dict)
    _waiting: list[Order] = field(default_factory=list)
    """Asked for before it was known which nodes there are."""
    _nodes: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    _heard: "queue.SimpleQueue[Heard | Fp8Error]" = field(default_factory=queue.SimpleQueue)
    _over: Fp8Error | None = None
    _closed: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    def open(self, *, left_out: Iterable[str], able: Iterable[str]) -> None:
        """Begin: nodes that get nothing, and those that may send, by their ids. From now on this hears the foreman."""
        with self._lock:
            self._nodes = tuple(left_out), tuple(able)
            waiting, self._waiting = self._waiting, []
        self._thread = threading.Thread(target=self._listen, name="fp8-hear", daemon=True)
        self._thread.start()
        for order in waiting:
            self._send_for(order)

    def ask(self, order: Callable[[int], Order]) -> "Future[Answer]":
        """Send a node for something; `order` makes the order with this number.

        The promise is kept with an `ErrandFailed` where nobody could, or with the error that ended the work.
        """
        promise: Future[Answer] = Future()
        promise.set_running_or_notify_cancel()
        with self._lock:
            made = order(next(self._numbers))
            self._promised[made.number] = promise
            is_waiting = self._nodes is None
            if is_waiting:
                self._waiting.append(made)
        if not is_waiting:
            self._send_for(made)
        return promise

    def mute(self, node: str, name: str, reason: str) -> None:
        """Let a node send nothing any more."""
        with self._lock:
            assert self._nodes is not None  # noqa: S101 - it has sent something
            left_out, able = self._nodes
            self._nodes = left_out, tuple(each for each in able if each != node)
        self.told(CannotSend(node=node, name=name, reason=reason))

    def hear(self) -> Heard:
        """Wait for what the foreman says next about batches. Raises as `Foreman.hear` does."""
        said = self._heard.get()
        if isinstance(said, Fp8Error):
            raise said
        return said

    def close(self) -> None:
        """Listen no more; what was promised and not kept is not wanted any more."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        self._fail(Interrupted("the cluster was left before this was done"))

    def _send_for(self, order: Order) -> None:
        assert self._nodes is not None  # noqa: S101 - see `open`
        left_out, able = self._nodes
        try:
            if self._over is not None:
                raise self._over
            self.foreman.begin(Errand(order=order, left_out=left_out, able=able))
        except Fp8Error as problem:
            self._settle(order.number, problem)

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                if not self.foreman.has_spoken(_LOOK_SECONDS):
                    continue
                said = self.foreman.hear()
            except Fp8Error as problem:
                self._over = problem
                self._heard.put(problem)
                self._fail(problem)
                return
            match said:
                case HashDone() | SendDone():
                    self.told(said)
                    self._settle(said.number, said)
                case ErrandFailed():
                    self._settle(said.number, said)
                case NodeLeftOut() | NodeLost() | CannotSend():
                    self.told(said)
                case _:
                    self._heard.put(said)

    def _settle(self, number: int, answer: Answer | Fp8Error) -> None:
        with self._lock:
            promise = self._promised.pop(number, None)
        if promise is None:
            return
        if isinstance(answer, Fp8Error):
            promise.set_exception(answer)
        else:
            promise.set_result(answer)

    def _fail(self, problem: Fp8Error) -> None:
        with self._lock:
            numbers = list(self._promised)
        for number in numbers:
            self._settle(number, problem)
