"""Which nodes a cluster has: those that Ray lists, what it knows of them, and which of them can still be reached."""

import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import ray

from fp8cli.core.clustering import labour

_PORT_SECONDS: Final = 1.0


def working_nodes() -> dict[str, Mapping[str, Any]]:
    """Return what Ray says of every live node that has processors, by its id."""
    alive = {str(node["NodeID"]): node for node in ray.nodes() if node["Alive"]}
    return {node: facts for node, facts in alive.items() if facts["Resources"].get("CPU", 0) >= 1}


def name_of(node: str, facts: Mapping[str, Any]) -> str:
    """Return the name that the node gives itself (see `labour.node_name`)."""
    return labour.name_on(str(facts["NodeManagerHostname"]), node)


def reached(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the nodes at whose port Ray still listens: one that was killed is among the live for half a minute."""
    found = {}
    for node, facts in nodes.items():
        with suppress(OSError):
            socket.create_connection((facts["NodeManagerAddress"], facts["NodeManagerPort"]), _PORT_SECONDS).close()
            found[node] = facts
    return found
