"""Which nodes of a cluster get work: who is there, who was unfit, cannot send, is out of reach, or lost.

Ray keeps a node that was killed among the live for half a minute, and waits minutes for one that hangs: so its port is
asked, where something takes long.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fp8cli.core.clustering.errand_messages import CannotSend
from fp8cli.core.clustering.messages import NodeLeftOut, NodeLost
from fp8cli.core.clustering.roll import name_of, reached, working_nodes

_EMPTY_SECONDS: Final = 60.0
"""A cluster without a node that may work is given up after so long."""
_PATIENCE_SECONDS: Final = 6.0
"""A node that does not answer for so long is called lost."""
_ASK_SECONDS: Final = 5.0
"""Between asking all nodes whether they can be reached."""


@dataclass
class Attendance:
    """What is known of the nodes."""

    tell: Callable[[Any], None]
    _unfit: set[str] = field(default_factory=set)
    """Nodes that got nothing from the beginning."""
    _left_out: set[str] = field(default_factory=set)
    """Those, and others that were unfit when they had got something."""
    _mute: set[str] = field(default_factory=set)
    """Nodes that cannot send."""
    _gone: set[str] = field(default_factory=set)
    """Nodes that were out of reach when that was looked at last."""
    _nodes: dict[str, str] = field(default_factory=dict)
    """Those that are there and may work, with their names."""
    _named: set[str] = field(default_factory=set)
    """Nodes that were told of as lost."""
    _seen_at: float = 0.0
    _asked_at: float = 0.0
    _gone_at: float = 0.0
    """When a node was found to be out of reach."""

    def begin(self) -> None:
        """Count from now how long no node was there: before, nobody looked."""
        self._seen_at = time.monotonic()

    @property
    def without(self) -> tuple[str, ...]:
        """Nodes that get no batches."""
        return tuple(sorted(self._left_out))

    @property
    def out_of_reach(self) -> tuple[str, ...]:
        """Nodes that get no errands: those, and others that were out of reach."""
        return tuple(sorted(self._left_out | self._gone))

    def senders(self, able: Iterable[str]) -> tuple[str, ...]:
        """Return which of the nodes that are able to send may be asked to."""
        return tuple(node for node in able if node not in self._left_out | self._gone | self._mute)

    def refuse(self, nodes: Iterable[str]) -> None:
        """Give these nothing, as somebody said who looked at them before."""
        nodes = set(nodes)
        self._unfit |= nodes - self._left_out
        self._left_out |= nodes

    def leave_out(self, node: str, name: str, reason: str) -> None:
        """Give a node nothing more. What waits in Ray's queue may still go there: it comes back as this one did."""
        if node not in self._left_out:
            self._left_out.add(node)
            self.tell(NodeLeftOut(node=node, name=name, reason=reason))

    def silence(self, node: str, name: str, reason: str) -> None:
        """Let a node send nothing more."""
        if node not in self._mute:
            self._mute.add(node)
            self.tell(CannotSend(node=node, name=name, reason=reason))

    def look(self) -> bool:
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

    def gone_since(self, able: Iterable[str]) -> float | None:
        """Ask the nodes, and those that were able to send, whether they can be reached, unless that was just done.

        Returns when the last one was found to be out of reach, 0 if none ever was; None: nobody was asked.
        """
        if time.monotonic() - self._asked_at < _ASK_SECONDS:
            return None
        nodes = working_nodes()
        known = {*nodes, *able}
        there = reached(nodes)
        self._asked_at = time.monotonic()
        if known - there.keys() - self._gone:
            self._gone_at = self._asked_at
        self._gone = known - there.keys()
        return self._gone_at

    def name_unreached(self) -> None:
        """Name nodes that do not answer, though Ray has them still among the live."""
        asked = {node: facts for node, facts in working_nodes().items() if node not in self._named}
        self._name_lost(alive=reached(asked, patience_seconds=_PATIENCE_SECONDS))

    def _name_lost(self, alive: Mapping[str, Any]) -> None:
        for node in [node for node in self._nodes if node not in alive or node in self._left_out]:
            name = self._nodes.pop(node)
            if node not in self._left_out | self._named:
                self._named.add(node)
                self.tell(NodeLost(node=node, name=name))
