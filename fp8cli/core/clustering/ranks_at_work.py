"""The foreman's side of several ranks of one program: placed on their nodes, introduced to each other, looked at.

A rank is an actor of Ray's (`rank_host.RankHost`) with a process of its own. None of them is begun again: the others
would wait for a rank that knows nothing of what they did. So the loss of one is told, and whoever hears it dismisses
the rest.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fp8cli.core.clustering.messages import Ended, GaveUp
from fp8cli.core.clustering.rank_host import RankHost
from fp8cli.core.clustering.rank_messages import Muster, RankPlace, RanksSeen, RankState

START_SECONDS: Final = 90.0
"""For a node to give a rank its place: longer, and others have its processors or GPUs."""
SILENT_SECONDS: Final = 150.0
"""A rank whose node does not answer is lost. Ray itself gives a node up sooner, and for less there may be a reason."""
_LOOK_SECONDS: Final = 0.5
_STOP_SECONDS: Final = 20.0


@dataclass
class RanksAtWork:
    """One `Muster`, from the first process to the last."""

    muster: Muster
    tell: Callable[[Any], None]
    is_dismissed: Callable[[], bool]
    _hosts: list[Any] = field(default_factory=list)

    def carry_out(self) -> None:
        """Place and start every rank, and tell what they do until they are dismissed."""
        try:
            given_up = self._place()
            if given_up is None:
                self._watch()
        finally:
            self._stop()
        self.tell(given_up or Ended())

    def _place(self) -> GaveUp | None:
        places, orders = self.muster.places, self.muster.orders
        self._hosts = [_host(place) for place in places]
        ports = [host.open_port.remote() for host in self._hosts]
        _, late = ray.wait(ports, num_returns=len(ports), timeout=START_SECONDS)
        if late:
            place = places[ports.index(late[0])]
            busy = "GPUs" if place.gpus else "processors"
            message = (
                f"`{place.name}` had no place for a process within {START_SECONDS:.0f} seconds: its {busy} are busy"
            )
            return GaveUp(fault="cluster", message=message, hint="ray status shows what is claimed")
        try:
            meeting = ray.get(ports[0])
        except Exception as problem:  # noqa: BLE001 - whatever a stranger's interpreter raises
            return GaveUp(fault="cluster", message=f"`{places[0].name}` cannot run fp8: {problem}", hint=None)
        before: Counter[str] = Counter()
        started = []
        for order, place, host in zip(orders, places, self._hosts, strict=True):
            local = (before[place.node], place.cpus)
            before[place.node] += 1
            started.append(host.start.remote(order, meeting, len(orders), local))
        states = (_answer(rank, reference) for rank, reference in enumerate(started))
        self.tell(RanksSeen(states=tuple(state for state in states if state is not None)))
        return None

    def _watch(self) -> None:
        heard = [0] * len(self._hosts)
        answered = [time.monotonic()] * len(self._hosts)
        asked = {host.look.remote(0): rank for rank, host in enumerate(self._hosts)}
        while not self.is_dismissed():
            ready = ray.wait(list(asked), num_returns=len(asked), timeout=_LOOK_SECONDS)[0] if asked else []
            states = []
            for reference in ready:
                rank = asked.pop(reference)
                state = _answer(rank, reference)
                if state is not None:
                    answered[rank] = time.monotonic()
                    heard[rank] += sum(map(len, state.lines))
                    states.append(state)
                if state is None or not (state.is_lost or state.code is not None):
                    asked[self._hosts[rank].look.remote(heard[rank])] = rank
            for reference, rank in list(asked.items()):
                if time.monotonic() - answered[rank] > SILENT_SECONDS:
                    del asked[reference]
                    states.append(RankState(rank=rank, is_lost=True))
            self.tell(RanksSeen(states=tuple(states)))
            time.sleep(_LOOK_SECONDS)

    def _stop(self) -> None:
        """End every process where its node can still be reached; those of other nodes end with their actors."""
        stopped = [host.stop.remote() for host in self._hosts]
        with suppress(Exception):
            ray.wait(stopped, num_returns=len(stopped), timeout=_STOP_SECONDS) if stopped else None
        for host in self._hosts:
            with suppress(Exception):
                ray.kill(host)


def _host(place: RankPlace) -> Any:
    where = NodeAffinitySchedulingStrategy(node_id=place.node, soft=False)
    actor = ray.remote(RankHost)
    return actor.options(num_cpus=place.cpus, num_gpus=place.gpus, max_restarts=0, scheduling_strategy=where).remote()


def _answer(rank: int, reference: Any) -> RankState | None:
    """Return what a rank answered to a question, or that it is lost; None where nobody knows yet."""
    try:
        state: RankState = ray.get(reference, timeout=START_SECONDS)
    except ray.exceptions.RayTaskError as problem:
        return RankState(rank=rank, problem=f"failed at it: {problem.cause}")
    except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
        return None
    except Exception:  # noqa: BLE001 - Ray has half a dozen kinds for an actor that is gone
        return RankState(rank=rank, is_lost=True)
    return state
