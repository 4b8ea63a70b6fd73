"""`fp8 doctor --cluster`: what every node of a cluster has, which of them may work on what lies here, and which is odd.

Nothing is installed; with a folder, a hidden folder is made in it for as long as the nodes are asked, and taken away.
"""

from dataclasses import dataclass
from pathlib import Path

from fp8cli.core.clustering.choice import read_cluster
from fp8cli.core.clustering.examination import examine
from fp8cli.core.clustering.messages import NodeFacts
from fp8cli.core.findings import Status
from fp8cli.errors import ExitCode, UsageError


@dataclass(frozen=True, kw_only=True)
class ClusterDoctorRequest:
    """What to look at."""

    cluster: str
    """As --cluster has it."""
    folder: str | None = None
    """That all nodes must see."""
    checks: tuple[str, ...] = ()
    """Named checks are of one machine; there must be none."""


@dataclass(frozen=True, kw_only=True)
class NodeRow:
    """One node."""

    name: str
    status: Status
    """`failed`: it gets no work. `warning`: it is slow, or not as the others."""
    says: tuple[str, ...]
    """Why."""
    facts: NodeFacts


@dataclass(frozen=True, kw_only=True)
class ClusterDoctorReport:
    """All of them."""

    cluster: str
    folder: Path | None
    folder_status: Status
    """Whether it is known to be one and the same on all nodes that answered."""
    nodes: tuple[NodeRow, ...]

    @property
    def exit_code(self) -> ExitCode:
        """Negative when a node, or the whole cluster, cannot work; a warning is none."""
        fine = self.nodes and all(node.status != "failed" for node in self.nodes)
        return ExitCode.DONE if fine else ExitCode.NEGATIVE


def run(request: ClusterDoctorRequest) -> ClusterDoctorReport:
    """Ask the nodes. Raises Fp8Error where there is no cluster to ask, or no such folder."""
    choice = read_cluster(request.cluster)
    assert choice is not None  # noqa: S101 - there is a text to read
    if request.checks:
        message = "--check names a check of this machine, and --cluster asks every node the same"
        raise UsageError(message, hint="leave one of them out")
    folder = None if request.folder is None else Path(request.folder).expanduser()
    examined = examine(choice, folder)
    return ClusterDoctorReport(
        cluster=choice.label,
        folder=folder,
        folder_status=examined.folder_status,
        nodes=tuple(
            NodeRow(name=each.facts.name, status=each.status, says=each.says, facts=each.facts)
            for each in examined.nodes
        ),
    )
