"""`fp8 inspect` as its users meet it: the whole command in this process, or a report printed for a terminal."""

import json
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from fp8cli.cli.app import app
from fp8cli.commands.inspect import InspectReport
from fp8cli.render.console import Channel, Output
from fp8cli.render.inspection import View, show

GPU = ("--gpu", "H100")
"""So that nothing depends on the GPUs of the machine."""


@dataclass(frozen=True, kw_only=True)
class Run:
    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """What `--json` says."""
        result: dict[str, Any] = json.loads(self.out)["result"]
        return result

    def failed(self) -> set[str]:
        return {finding["check"] for finding in self.report["findings"] if finding["status"] == "failed"}

    def status_of(self, check: str) -> set[str]:
        """Return the statuses of all findings of one check."""
        return {finding["status"] for finding in self.report["findings"] if finding["check"] == check}


def fp8_inspect(*words: str | Path, gpu: tuple[str, ...] = GPU) -> Run:
    """Run the command on a pipe. A fault of the program itself raises here, as it would there."""
    result = CliRunner().invoke(app, ["inspect", *map(str, words), *gpu], catch_exceptions=False)
    return Run(code=result.exit_code, out=result.stdout, err=result.stderr)


def printed(
    report: InspectReport, *, width: int | None = None, details: bool = False, view: View = "text", color: bool = False
) -> str:
    """Print a report on a terminal `width` cells wide, or into a pipe."""
    paper = StringIO()
    channel = Channel(stream=paper, terminal=width is not None, width=width or 80, color=color, unicode=True)
    show(report, Output(out=channel, err=channel), view=view, details=details)
    # A line broken between words keeps the space at its end.
    return "".join(f"{line.rstrip()}\n" for line in paper.getvalue().split("\n")[:-1])
