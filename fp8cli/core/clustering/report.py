"""What a cluster did, node by node."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NodeWork:
    """One node's part."""

    name: str
    batches: int
    bytes_read: int
    busy_seconds: float
    """Summed over its tasks, of which several may run at once."""
    bytes_per_second: float
    """Read, over the time from the first batch handed out to its last one done."""
    files_hashed: int
    bytes_hashed: int
    files_sent: int
    bytes_sent: int
    """Of those that it sent, as a whole: what an attempt before it had sent counts too."""
    lost: bool
    left_out: str | None
    """Why it got no work, or no more of it."""
    cannot_send: str | None
    """Why it sends nothing, or no more; others do."""
    slow_because: str | None


@dataclass(frozen=True, kw_only=True)
class ClusterReport:
    """All of them."""

    address: str | None
    """None: of this machine alone."""
    start_seconds: float
    """Until the cluster was there and its nodes had been looked at."""
    work_seconds: float
    batches: int
    slots: int
    """Tasks that could run at once."""
    cpus_per_task: int
    shards_not_hashed: int
    """Of a source that is streamed: no task read them from their beginning to their end, and no server says more."""
    nodes: tuple[NodeWork, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of nodes."""
        said = [
            *((node.name, node.left_out) for node in self.nodes if node.left_out is not None),
            *((node.name, node.slow_because) for node in self.nodes if node.slow_because is not None),
            *((node.name, f"does not send: {node.cannot_send}") for node in self.nodes if node.cannot_send is not None),
            *((node.name, "was lost; others did its work") for node in self.nodes if node.lost),
        ]
        left_out = {node.name for node in self.nodes if node.left_out is not None}
        of_nodes = (f"node `{name}` {why}" + ("; it was left out" * (name in left_out)) for name, why in said)
        return (*of_nodes, *self._of_hashes)

    @property
    def _of_hashes(self) -> tuple[str, ...]:
        count = self.shards_not_hashed
        if not count:
            return ()
        shards = "1 shard" if count == 1 else f"{count:,} shards"
        return (
            f"fp8.json has no SHA-256 of {shards} of the source: the tasks were too many for each to read whole ones",
        )
