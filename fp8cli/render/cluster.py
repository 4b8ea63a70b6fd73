"""A cluster in words and tables: before there is one, what it would make of a plan, and what its nodes did."""

from fp8cli.core.clustering.events import ClusterBegins
from fp8cli.core.clustering.outlook import ClusterOutlook
from fp8cli.core.clustering.report import ClusterReport
from fp8cli.render.console import Output
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, gb, percent, size


def show_beginning(event: ClusterBegins, output: Output) -> None:
    """Say that the cluster is joined, or begun, and whether it is worth it."""
    if event.warning is not None:
        output.warning(event.warning)
    output.note("beginning a Ray cluster" if event.address is None else f"joining the Ray cluster at {event.address}")


def show_outlook(outlook: ClusterOutlook, output: Output) -> None:
    """Print what clusters of several sizes would make of a plan, and from which rates that was estimated."""
    output.line(f"on a cluster of nodes with {count(outlook.cpus_per_node)} processors", style="bold")
    output.table(
        Table(
            columns=(
                Column(title="nodes", right=True),
                Column(title="tasks at once", right=True, rank=2),
                Column(title="batches", right=True),
                Column(title="largest", right=True, rank=1),
                Column(title="work", right=True),
                Column(title="efficiency", right=True),
            ),
            rows=tuple(
                (
                    count(row.nodes),
                    count(row.slots),
                    count(row.batches),
                    size(row.largest_batch_bytes),
                    f"{row.seconds:,.1f} s",
                    percent(row.efficiency),
                )
                for row in outlook.rows
            ),
        )
    )
    output.line(
        f"an estimate at {size(outlook.cpu_bytes_per_second)}/s of reading plus writing per processor, "
        f"{outlook.batch_seconds * 1000:g} ms per batch, {outlook.driver_seconds * 1000:g} ms of the driver "
        f"({outlook.bundled_driver_seconds * 1000:g} ms where relays hand batches out for it), and storage that keeps "
        f"up; {outlook.start_seconds:.0f} s to begin, and the SHA-256 of the files, come on top"
    )


def show_work(report: ClusterReport, output: Output) -> None:
    """Print what each node did."""
    where = "of this machine alone" if report.address is None else f"at {report.address}"
    batches = "1 batch" if report.batches == 1 else f"{count(report.batches)} batches"
    output.line(
        f"{batches} on a Ray cluster {where}: {report.start_seconds:.1f} s to begin, "
        f"{report.work_seconds:.1f} s of work, {count(report.slots)} tasks at once"
    )
    beside = {
        "hashed": [node.bytes_hashed for node in report.nodes],
        "sent": [node.bytes_sent for node in report.nodes],
    }
    beside = {title: of_nodes for title, of_nodes in beside.items() if any(of_nodes)}
    output.table(
        Table(
            columns=(
                Column(title="node", shortens=True),
                Column(title="batches", right=True),
                Column(title="read", right=True),
                Column(title="GB/s", right=True),
                *(Column(title=title, right=True, rank=1) for title in beside),
                Column(title=""),
            ),
            rows=tuple(
                (
                    node.name,
                    count(node.batches),
                    gb(node.bytes_read),
                    f"{node.bytes_per_second / 10**9:.2f}",
                    *(size(of_nodes[number]) if of_nodes[number] else "" for of_nodes in beside.values()),
                    "lost" if node.lost else "left out" if node.left_out is not None else "",
                )
                for number, node in enumerate(report.nodes)
            ),
        )
    )
