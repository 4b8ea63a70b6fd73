"""The nodes of a cluster side by side, and what is amiss with which."""

from collections.abc import Callable

from fp8cli.commands.doctor_cluster import ClusterDoctorReport, NodeRow
from fp8cli.core.clustering.messages import NodeFacts
from fp8cli.render.console import Output
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, gb, gib
from fp8cli.render.verdicts import entry


def show(report: ClusterDoctorReport, output: Output) -> None:
    """Print a report; with `output.json` as one document."""
    if output.json:
        output.document("doctor", report, exit_code=report.exit_code)
        return
    output.line(f"nodes of {report.cluster}", style="bold")
    output.table(_table(report))
    output.line()
    width = max((len(node.name) for node in report.nodes), default=0)
    for node in report.nodes:
        entry(output, node.status, node.name, "; ".join(node.says) or "can work", width)
    output.line()
    output.line(_of_folder(report))
    output.line(_verdict(report.nodes), style="bold")


def _table(report: ClusterDoctorReport) -> Table:
    columns = (
        Column(title="node", shortens=True),
        Column(title="fp8"),
        Column(title="python", rank=3),
        Column(title="ray", rank=4),
        Column(title="torch", rank=2),
        Column(title="kernel"),
        Column(title="CPUs", right=True),
        Column(title="memory", right=True),
        Column(title="free disk", right=True, rank=1),
        Column(title="GPUs", rank=5),
    )
    return Table(columns=columns, rows=tuple(_cells(node.facts) for node in report.nodes))


def _cells(facts: NodeFacts) -> tuple[str, ...]:
    if facts.problem is not None:
        return (facts.name, *("unknown",) * 5, count(facts.cpus), *("unknown",) * 3)
    return (
        facts.name,
        facts.fp8 or "unknown",
        facts.python or "unknown",
        facts.ray or "unknown",
        facts.torch or "none",
        facts.kernel or "none",
        count(facts.cpus),
        _size(facts.memory_bytes, gib),
        _size(facts.disk_free_bytes, gb),
        ", ".join(facts.gpus) or "none",
    )


def _size(size: int | None, words: Callable[[int], str]) -> str:
    return "unknown" if size is None else words(size)


def _of_folder(report: ClusterDoctorReport) -> str:
    if report.folder is None:
        return "whether the nodes see the same folders is not checked: name one, fp8 doctor --cluster ray FOLDER"
    match report.folder_status:
        case "passed":
            return f"`{report.folder}` is one and the same folder on every node that answered, and can be written"
        case "not checked":
            return f"`{report.folder}` has the same files everywhere; whether it can be written is not checked"
        case _:
            return f"`{report.folder}` is not one and the same folder on every node"


def _verdict(nodes: tuple[NodeRow, ...]) -> str:
    if not nodes:
        return "the cluster has no node that could work"
    failed = sum(node.status == "failed" for node in nodes)
    odd = sum(node.status == "warning" for node in nodes)
    words = (f"{count(failed)} of {count(len(nodes))} nodes cannot work", f"{count(odd)} with warnings")
    amiss = [word for word, number in zip(words, (failed, odd), strict=True) if number]
    can_all = "the only node can work" if len(nodes) == 1 else f"all {count(len(nodes))} nodes can work"
    return ", ".join(amiss) or can_all
