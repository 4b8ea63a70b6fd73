"""Which nodes a cluster has: those that Ray lists, what it knows of them, and which of them can still be reached."""

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import ray

from fp8cli.core.clustering import labour

_PORT_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.1


def working_nodes() -> dict[str, Mapping[str, Any]]:
    """Return what Ray says of every live node that has processors, by its id."""
    alive = {str(node["NodeID"]): node for node in ray.nodes() if node["Alive"]}
    return {node: facts for node, facts in alive.items() if facts["Resources"].get("CPU", 0) >= 1}


def name_of(node: str, facts: Mapping[str, Any]) -> str:
    """Return the name that the node gives itself (see `labour.node_name`)."""
    return labour.name_on(str(facts["NodeManagerHostname"]), node)


def reached(nodes: Mapping[str, Mapping[str, Any]], *, patience_seconds: float = 0.0) -> dict[str, Mapping[str, Any]]:
    """Return the nodes at whose port Ray still listens: one that was killed is among the live for half a minute.

    patience_seconds: for which one that does not answer is asked again; its cable may be out for seconds.
    """
    found = {}
    until = time.monotonic() + patience_seconds
    silent = dict(nodes)
    while silent:
        for node, facts in list(silent.items()):
            with suppress(OSError):
                socket.create_connection((facts["NodeManagerAddress"], facts["NodeManagerPort"]), _PORT_SECONDS).close()
                found[node] = silent.pop(node)
        if time.monotonic() >= until:
            break
        time.sleep(_PAUSE_SECONDS)
    return found
