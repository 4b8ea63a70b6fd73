"""Which rank goes to which node: each has a GPU of its own, or a share of the processors, and memory enough.

GPUs are for all ranks or for none: one that computes on another device would find other numbers, and could not speak
with the rest. Ranks are spread, for what they read and keep is then shared among more machines.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from fp8cli.core.clustering.messages import NodeFacts
from fp8cli.core.clustering.rank_messages import RankPlace
from fp8cli.errors import CannotRun


def place_ranks(
    nodes: Sequence[NodeFacts], ranks: int, *, device: Literal["auto", "cpu", "cuda"], memory_bytes: int
) -> tuple[RankPlace, ...]:
    """Return a place for each rank, by number. Raises CannotRun where there are fewer places than ranks.

    nodes: those that may work. memory_bytes: of a rank; a node whose memory is not known is taken to have enough.
    """
    with_gpus = any(facts.gpu_slots for facts in nodes) if device == "auto" else device == "cuda"
    room = {facts.node: _room(facts, memory_bytes, with_gpus=with_gpus) for facts in nodes}
    if sum(room.values()) < ranks:
        what = f"a {'GPU' if with_gpus else 'processor'} and {memory_bytes / 2**30:,.2f} GiB of memory each"
        there = ", ".join(f"`{facts.name}` {room[facts.node]:,}" for facts in nodes)
        message = f"{ranks:,} processes need {what}, and the nodes have places for {sum(room.values()):,}: {there}"
        raise CannotRun(message, hint="take fewer --calibration-processes; fp8 doctor --cluster ray shows all nodes")
    taken: Counter[str] = Counter()
    order = sorted(nodes, key=lambda facts: facts.name)
    chosen = []
    for _ in range(ranks):
        free = [facts for facts in order if taken[facts.node] < room[facts.node]]
        emptiest = min(free, key=lambda facts: (taken[facts.node] + 1) / room[facts.node])
        taken[emptiest.node] += 1
        chosen.append(emptiest)
    return tuple(
        RankPlace(
            node=facts.node,
            name=facts.name,
            cpus=1 if with_gpus else facts.cpus // taken[facts.node],
            gpus=1 if with_gpus else 0,
        )
        for facts in chosen
    )


def _room(facts: NodeFacts, memory_bytes: int, *, with_gpus: bool) -> int:
    slots = facts.gpu_slots if with_gpus else facts.cpus
    if facts.memory_bytes is None:
        return slots
    return min(slots, facts.memory_bytes // max(1, memory_bytes))
