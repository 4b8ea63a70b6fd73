"""What nodes have done so far, and what became of them: counted while they work, told at the end."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from fp8cli.core.clustering.errand_messages import CannotSend, HashDone, SendDone
from fp8cli.core.clustering.fitness import KNOWN_SLOW
from fp8cli.core.clustering.messages import BatchDone, NodeFacts, NodeLeftOut, NodeLost
from fp8cli.core.clustering.report import NodeWork


@dataclass
class Tally:
    """The nodes of one run."""

    nodes: Mapping[str, NodeFacts] = field(default_factory=dict)
    """As they answered before they got work."""
    left_out: dict[str, str] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)
    """When the first batch was handed out."""
    _names: dict[str, str] = field(default_factory=dict)
    _lost: set[str] = field(default_factory=set)
    _mute: dict[str, str] = field(default_factory=dict)
    _batches: dict[str, list[BatchDone]] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)
    _hashed: dict[str, list[HashDone]] = field(default_factory=dict)
    _sent: dict[str, list[SendDone]] = field(default_factory=dict)

    def count(self, done: BatchDone) -> None:
        """Add a batch to its node."""
        self._names[done.node] = done.name
        self._batches.setdefault(done.node, []).append(done)
        self._last[done.node] = time.monotonic()

    def take(self, said: NodeLeftOut | NodeLost | CannotSend | HashDone | SendDone) -> None:
        """Note what became of a node, or what it did beside its batches."""
        self._names[said.node] = said.name
        match said:
            case NodeLeftOut():
                self.left_out[said.node] = said.reason
            case NodeLost():
                self._lost.add(said.node)
            case CannotSend():
                self._mute[said.node] = said.reason
            case HashDone():
                self._hashed.setdefault(said.node, []).append(said)
            case SendDone():
                self._sent.setdefault(said.node, []).append(said)

    def rows(self) -> tuple[NodeWork, ...]:
        """Return a row for each node that was there, at the beginning or later."""
        names = {node: facts.name for node, facts in self.nodes.items()} | self._names
        return tuple(self._row(node, names[node]) for node in sorted(names, key=lambda node: names[node]))

    def _row(self, node: str, name: str) -> NodeWork:
        done = self._batches.get(node, [])
        read = sum(each.bytes_read for each in done)
        seconds = self._last[node] - self.begun if done else 0.0
        facts = self.nodes.get(node)
        slow = facts is not None and facts.problem is None and facts.kernel is None and node not in self.left_out
        hashed, sent = self._hashed.get(node, []), self._sent.get(node, [])
        return NodeWork(
            name=name,
            batches=len(done),
            bytes_read=read,
            busy_seconds=sum(each.seconds for each in done),
            bytes_per_second=read / seconds if seconds > 0 else 0.0,
            files_hashed=len(hashed),
            bytes_hashed=sum(each.bytes for each in hashed),
            files_sent=len(sent),
            bytes_sent=sum(each.bytes for each in sent),
            lost=node in self._lost,
            left_out=self.left_out.get(node),
            cannot_send=self._mute.get(node),
            slow_because=KNOWN_SLOW if slow else None,
        )
