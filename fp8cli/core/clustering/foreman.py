"""The process that speaks Ray: joins a cluster, asks its nodes, and has them work (`site`, `ranks_at_work`).

A process of its own, because Ray prints pages on the streams of whoever uses it, and so that one signal ends it with
everything that it started.

When the pipe closes, or standard input does, nobody listens any more: it ends, and a cluster of its own with it.
"""

import os
import queue
import socket
import threading
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fp8cli.core.clustering import labour
from fp8cli.core.clustering.errand_messages import Errand
from fp8cli.core.clustering.messages import GaveUp, Joined, NodeFacts, Question, Summons, Survey, Work
from fp8cli.core.clustering.rank_messages import Dismissal, Muster
from fp8cli.core.clustering.ranks_at_work import RanksAtWork
from fp8cli.core.clustering.roll import name_of, working_nodes
from fp8cli.core.clustering.site import Site
from fp8cli.core.clustering.tasks import last_line
from fp8cli.worker.parent_watch import watch_parent

SURVEY_SECONDS: Final = 60.0
"""For a node's answer: a worker process starts there first, and a file system may be slow."""

STORE_BYTES: Final = 80 * 2**20
"""Of shared memory for a cluster of this machine: Ray's least is 75 MiB, and no weights go through it."""

_REACH_SECONDS: Final = 10.0


def main(descriptor: int) -> None:
    """Serve the process at the other end of a pipe until it closes it."""
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - its only form
    watch_parent()
    pipe = Connection(descriptor)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox), name="fp8-listen", daemon=True).start()
    site = Site(pipe.send, inbox)
    try:
        while (said := inbox.get()) is not None:
            match said:
                case Summons():
                    pipe.send(_join(said))
                case Question():
                    pipe.send(Survey(nodes=survey(said)))
                case Work() | Errand():
                    site.carry_out(said)
                case Muster():
                    RanksAtWork(said, pipe.send, partial(_is_dismissed, inbox)).carry_out()
    except (EOFError, BrokenPipeError):
        pass
    finally:
        ray.shutdown()


def _listen(pipe: Connection, inbox: "queue.SimpleQueue[Any]") -> None:
    """Take in what is said, and at last None: nobody listens any more."""
    try:
        while True:
            inbox.put(pipe.recv())
    except (EOFError, OSError):
        inbox.put(None)


def _is_dismissed(inbox: "queue.SimpleQueue[Any]") -> bool:
    """Whether nobody waits for the ranks any more. Raises EOFError where there is nobody at all."""
    if inbox.empty():
        return False
    said = inbox.get()
    if said is None:
        raise EOFError
    return isinstance(said, Dismissal)


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


def _answer(answer: Any, node: str, facts: Mapping[str, Any]) -> NodeFacts:
    name, cpus = name_of(node, facts), int(facts["Resources"]["CPU"])
    try:
        found: NodeFacts = ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return NodeFacts(
            node=node, name=name, cpus=cpus, problem=f"does not answer within {SURVEY_SECONDS:.0f} seconds"
        )
    except Exception as problem:  # noqa: BLE001 - whatever a stranger's interpreter raises
        return NodeFacts(node=node, name=name, cpus=cpus, problem=f"cannot run fp8: {last_line(problem)}")
    gpus = int(facts["Resources"].get("GPU", 0))
    return NodeFacts(**{**vars(found), "cpus": cpus, "gpu_slots": gpus})
