"""The process that speaks Ray: hands batches out, takes results in, and tells of them through a pipe.

A process of its own, because Ray prints pages on the streams of whoever uses it, and so that one signal ends it with
everything that it started. Which node does a batch is Ray's to decide, and so is doing it again when a worker or a
node dies; this side keeps Ray's queue filled, leaves out nodes that are unfit (by a label selector), and begins a
batch a second time when all others are done and it takes far longer than they did.

When the pipe closes, or standard input does, nobody listens any more: it ends, and a cluster of its own with it.
"""

import os
import queue
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing.connection import Connection
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fp8cli.core.clustering import labour
from fp8cli.core.clustering.messages import (
    BatchDone,
    BatchFailed,
    BatchOrder,
    Ended,
    GaveUp,
    Joined,
    NodeFacts,
    NodeLeftOut,
    NodeLost,
    Question,
    Summons,
    Survey,
    Work,
)
from fp8cli.core.clustering.rank_messages import Dismissal, Muster
from fp8cli.core.clustering.ranks_at_work import RanksAtWork
from fp8cli.worker.parent_watch import watch_parent

SURVEY_SECONDS: Final = 60.0
"""For a node's answer: a worker process starts there first, and a file system may be slow."""

STORE_BYTES: Final = 80 * 2**20
"""Of shared memory for a cluster of this machine: Ray's least is 75 MiB, and no weights go through it."""

_REACH_SECONDS: Final = 10.0
_PORT_SECONDS: Final = 1.0
_RETRIES: Final = 5
"""Times that Ray does a batch again whose worker or node died."""
_LOOK_SECONDS: Final = 1.0
"""Between looking at which nodes there are, and which batch takes long."""
_EMPTY_SECONDS: Final = 60.0
"""A cluster without a node that may work is given up after so long."""
_SLOW: Final = 3.0
"""A batch that takes so many times the median is begun a second time."""
_SLOW_SECONDS: Final = 5.0
"""But not before so long."""


def main(descriptor: int) -> None:
    """Serve the process at the other end of a pipe until it closes it."""
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - its only form
    watch_parent()
    pipe = Connection(descriptor)
    try:
        while True:
            match pipe.recv():
                case Summons() as summons:
                    pipe.send(_join(summons))
                case Question() as question:
                    pipe.send(Survey(nodes=survey(question)))
                case Work() as work:
                    _Site(work, pipe.send).carry_out()
                case Muster() as muster:
                    RanksAtWork(muster, pipe.send, partial(_is_dismissed, pipe)).carry_out()
    except (EOFError, BrokenPipeError):
        pass
    finally:
        ray.shutdown()


def _is_dismissed(pipe: Connection) -> bool:
    """Whether nobody waits for the ranks any more. Raises EOFError where there is nobody at all."""
    return pipe.poll() and isinstance(pipe.recv(), Dismissal)


def _join(summons: Summons) -> Joined | GaveUp:
    """Become part of the cluster, or begin one."""
    silent: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if summons.address is None:
        silent |= {
            "num_cpus": summons.cpus,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_temp_dir": str(summons.temporary),
        }
    try:
        _reach(summons.address)
        context = ray.init(address=summons.address or "local", **silent)
    except Exception as problem:  # noqa: BLE001 - Ray raises half a dozen kinds for "it does not answer"
        where = "Ray cannot be started" if summons.address is None else f"no cluster joined at `{summons.address}`"
        hint = "ray status --address ADDRESS says whether it runs; its Ray and Python must be the versions of this one"
        return GaveUp(fault="cluster", message=f"{where}: {' '.join(str(problem).split())}", hint=hint)
    return Joined(address=str(context.address_info["gcs_address"]))


def _reach(address: str | None) -> None:
    """Raise OSError where nothing listens: Ray itself would wait for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), _REACH_SECONDS).close()


def survey(question: Question) -> tuple[NodeFacts, ...]:
    """Ask every node that has processors, all at once; one that does not answer in time says nothing."""
    # A look costs nothing, and is not to wait for a busy node's processors.
    look = ray.remote(num_cpus=0, max_retries=0)(labour.look_around)
    nodes = working_nodes()
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)).remote(
            question
        ): node
        for node in nodes
    }
    ray.wait(list(asked), num_returns=len(asked), timeout=SURVEY_SECONDS) if asked else None
    return tuple(_answer(answer, node, nodes[node]) for answer, node in asked.items())


def working_nodes() -> dict[str, Mapping[str, Any]]:
    """Return what Ray says of every live node that has processors, by its id."""
    alive = {str(node["NodeID"]): node for node in ray.nodes() if node["Alive"]}
    return {node: facts for node, facts in alive.items() if facts["Resources"].get("CPU", 0) >= 1}


def _name_of(node: str, facts: Mapping[str, Any]) -> str:
    """Return the name that the node gives itself (see `labour.node_name`)."""
    return labour.name_on(str(facts["NodeManagerHostname"]), node)


def _reached(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the nodes at whose port Ray still listens: one that was killed is among the live for half a minute."""
    found = {}
    for node, facts in nodes.items():
        with suppress(OSError):
            socket.create_connection((facts["NodeManagerAddress"], facts["NodeManagerPort"]), _PORT_SECONDS).close()
            found[node] = facts
    return found


def _answer(answer: Any, node: str, facts: Mapping[str, Any]) -> NodeFacts:
    name, cpus = _name_of(node, facts), int(facts["Resources"]["CPU"])
    try:
        found: NodeFacts = ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return NodeFacts(
            node=node, name=name, cpus=cpus, problem=f"does not answer within {SURVEY_SECONDS:.0f} seconds"
        )
    except Exception as problem:  # noqa: BLE001 - whatever a stranger's interpreter raises
        return NodeFacts(node=node, name=name, cpus=cpus, problem=f"cannot run fp8: {_last_line(problem)}")
    gpus = int(facts["Resources"].get("GPU", 0))
    return NodeFacts(**{**vars(found), "cpus": cpus, "gpu_slots": gpus})


def _last_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1] if lines else type(problem).__name__


@dataclass
class _Try:
    """A batch that was handed out."""

    order: BatchOrder
    begun: float
    again: bool = False
    """Whether it is a second time, or has had one."""


@dataclass
class _Site:
    """One `Work` from the first batch to the last."""

    work: Work
    tell: Callable[[Any], None]
    _answers: "queue.SimpleQueue[tuple[Any, Any]]" = field(default_factory=queue.SimpleQueue)
    """References and the futures of their results."""
    _tries: dict[Any, _Try] = field(default_factory=dict)
    _left_out: set[str] = field(default_factory=set)
    _done: set[int] = field(default_factory=set)
    _seconds: list[float] = field(default_factory=list)
    _nodes: dict[str, str] = field(default_factory=dict)
    _seen_at: float = 0.0

    def carry_out(self) -> None:
        """Hand all batches out, tell of each that is done, and of what goes wrong."""
        waiting = deque(self.work.orders)
        self._left_out.update(self.work.left_out)
        window = 2 * self.work.slots
        self._seen_at = time.monotonic()
        looked = 0.0
        while len(self._done) < len(self.work.orders):
            while waiting and len(self._tries) < window:
                self._hand_out(waiting.popleft())
            try:
                answer = self._answers.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                answer = None
            if answer is not None and (given_up := self._take(*answer)) is not None:
                self._end(given_up)
                return
            if time.monotonic() - looked >= _LOOK_SECONDS:
                looked = time.monotonic()
                if not self._look():
                    message = "no node of the cluster can work any more"
                    hint = "run the same command again to go on: with a cluster that can, or without --cluster"
                    self._end(GaveUp(fault="cluster", message=message, hint=hint))
                    return
                if not waiting:
                    self._begin_again()
        self._name_lost(reached=_reached(working_nodes()))
        self._end(None)

    def _hand_out(self, order: BatchOrder, *, again: bool = False) -> None:
        options: dict[str, Any] = {"num_cpus": self.work.cpus, "num_gpus": self.work.gpus, "max_retries": _RETRIES}
        if self._left_out:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self._left_out))})"}
        reference = _batch_task().options(**options).remote(order)
        self._tries[reference] = _Try(order=order, begun=time.monotonic(), again=again)
        reference.future().add_done_callback(lambda future: self._answers.put((reference, future)))

    def _take(self, reference: Any, future: Any) -> GaveUp | None:
        """Act on an answer; what cannot be mended is returned."""
        tried = self._tries.pop(reference, None)
        if tried is None or tried.order.number in self._done:
            return None  # The second answer to a batch that was begun twice.
        try:
            answer: BatchDone | BatchFailed = future.result()
        except ray.exceptions.RayTaskError as problem:
            message = f"a node failed at a batch: {_last_line(problem)}"
            return GaveUp(fault="cluster", message=message, hint="run the same command again to go on")
        except Exception as problem:  # noqa: BLE001 - of a dead worker or node, after all retries
            message = f"a batch was lost {_RETRIES + 1} times with its worker or node: {_last_line(problem)}"
            return GaveUp(fault="cluster", message=message, hint="run the same command again to go on")
        match answer:
            case BatchDone():
                self._done.add(answer.number)
                self._seconds.append(answer.seconds)
                self.tell(answer)
            case BatchFailed(fault="source"):
                return GaveUp(fault="source", message=answer.message, hint=answer.hint)
            case BatchFailed():
                self._leave_out(answer)
                if not self._look():
                    message = f"{answer.name}: {answer.message}, and no other node is left"
                    return GaveUp(fault="cluster", message=message, hint=answer.hint)
                self._hand_out(tried.order, again=tried.again)
        return None

    def _leave_out(self, failed: BatchFailed) -> None:
        if failed.node not in self._left_out:
            self._left_out.add(failed.node)
            self.tell(NodeLeftOut(node=failed.node, name=failed.name, reason=failed.message))
        # What waits in Ray's queue may still go there: it comes back as this one did.

    def _look(self) -> bool:
        """See which nodes there are. False: none that may work, and none for a while, or all of them were unfit."""
        now = working_nodes()
        self._name_lost(reached=now)
        for node in now.keys() - self._left_out:
            self._nodes[node] = _name_of(node, now[node])
        if self._nodes:
            self._seen_at = time.monotonic()
            return True
        patience = 0.0 if self._left_out - set(self.work.left_out) else _EMPTY_SECONDS
        return time.monotonic() - self._seen_at <= patience

    def _name_lost(self, reached: Mapping[str, Any]) -> None:
        for node in [node for node in self._nodes if node not in reached or node in self._left_out]:
            name = self._nodes.pop(node)
            if node not in self._left_out:
                self.tell(NodeLost(node=node, name=name))

    def _begin_again(self) -> None:
        """Give batches that take far longer than others to another task too, where one would be idle."""
        if not self._seconds or len(self._tries) >= self.work.slots:
            return
        limit = max(_SLOW_SECONDS, _SLOW * statistics.median(self._seconds))
        for tried in [each for each in self._tries.values() if not each.again]:
            if time.monotonic() - tried.begun > limit:
                tried.again = True
                self._hand_out(tried.order, again=True)

    def _end(self, given_up: GaveUp | None) -> None:
        """Cancel what nobody waits for any more, and say what came of it all."""
        for reference in self._tries:
            ray.cancel(reference, force=True)
        self.tell(given_up or Ended())


@cache
def _batch_task() -> Any:
    """Return the task, made once: Ray sends a new one to the cluster before it is used."""
    return ray.remote(labour.carry_out)
