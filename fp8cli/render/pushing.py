"""What `fp8 push` sent, or would send, in words and a table; and how far it is."""

from fp8cli.commands.push import PushReport
from fp8cli.core.delivering.delivery_events import BytesSent, DeliveryEvent, SendingBegins
from fp8cli.render import delivery
from fp8cli.render.byte_bar import ByteBar
from fp8cli.render.console import Output
from fp8cli.render.table import Column, Table
from fp8cli.render.tensor_plan import gate_in_words, warn_of_findings
from fp8cli.render.units import count, size

__all__ = ["PushBar", "show"]


class PushBar(ByteBar):
    """What the progress of `fp8 push` looks like: a bar over bytes. Hand it `notify` as the command's hook."""

    def notify(self, event: DeliveryEvent) -> None:
        """Take an event of `core.delivering`."""
        match event:
            case SendingBegins():
                self._start(event.bytes_left, things="left to send")
            case BytesSent():
                self._advance(event.count)


def show(report: PushReport, output: Output) -> None:
    """Print the report; with `output.json` as one document."""
    if output.json:
        output.document("push", report)
        return
    output.line(f"{report.model} → {report.address}", style="bold")
    output.line()
    rows = tuple((row.name, size(row.bytes)) for row in report.files)
    total = (f"{count(len(rows))} files", size(report.bytes))
    output.table(Table(columns=(Column(title="file"), Column(title="size", right=True)), rows=rows, total=total))
    output.line()
    output.line(gate_in_words(report.findings))
    output.line(f"model card: {report.card}")
    warn_of_findings(report.findings, output)
    for warning in report.warnings:
        output.warning(warning)
    if report.delivery is None:
        output.line("dry run, nothing sent")
        return
    output.line(delivery.what(report.delivery))
    output.line(report.address)
