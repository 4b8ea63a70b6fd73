"""What `fp8 doctor` found: the tasks, then a line per check with its word and its symbol, then what was counted.

A check that is not passed is followed by what was wanted and by what mends it; commands stay whole, whatever the
width. A pipe gets the same lines, none of them broken.
"""

from collections.abc import Sequence

from fp8cli.commands.doctor import CheckRow, ChecksReport, DoctorReport, InterpreterRow
from fp8cli.core.doctor.gpu_checks import KIND_NAMES, MODE_NAMES, ProcessorModes
from fp8cli.render.console import Output
from fp8cli.render.table import Column, Table
from fp8cli.render.verdicts import entry, more


def show(report: DoctorReport, output: Output) -> None:
    """Print a report; with `output.json` as one document."""
    if output.json:
        output.document("doctor", report, exit_code=report.exit_code)
        return
    if report.tasks:
        output.line("tasks", style="bold")
        width = max(len(each.task) for each in report.tasks)
        for each in report.tasks:
            entry(output, each.status, each.task, ", ".join(each.because) or "ready", width)
    width = max((len(check.name) for check in report.checks), default=0)
    for category in dict.fromkeys(check.category for check in report.checks):
        if report.tasks or category != report.checks[0].category:
            output.line()
        output.line(category, style="bold")
        for check in report.checks:
            if check.category == category:
                _check(output, check, width)
    _counted(report, output)
    output.line()
    output.line(_verdict(report.checks), style="bold")


def show_checks(report: ChecksReport, output: Output) -> None:
    """Print the checks there are; with `output.json` as one document."""
    if output.json:
        output.document("doctor", report)
        return
    output.table(
        Table(
            columns=(Column(title="check"), Column(title="category", rank=1), Column(title="asks", shortens=True)),
            rows=tuple((each.name, each.category, each.asks) for each in report.checks),
        )
    )


def _check(output: Output, check: CheckRow, width: int) -> None:
    entry(output, check.status, check.name, check.found, width)
    if check.status in {"warning", "failed"}:
        more(output, "wanted", check.wanted, whole=False)
        if check.fix is not None:
            more(output, "fix", check.fix, whole=True)


def _counted(report: DoctorReport, output: Output) -> None:
    """Show the tables: FP8 by processor, versions by interpreter, and how to make environments that hold together."""
    if report.modes:
        output.line()
        output.table(_modes_table(report.modes))
    if report.interpreters:
        output.line()
        output.table(_versions_table(report.interpreters))
    if any(check.category in {"packages", "vLLM"} and check.status in {"warning", "failed"} for check in report.checks):
        output.line()
        output.line("environments that hold together, one for fp8 and one for vLLM:")
        for command in report.environments:
            output.out.line(f"  {command}")


def _modes_table(rows: Sequence[ProcessorModes]) -> Table:
    kinds = tuple(kind for kind in KIND_NAMES if kind != "weights")
    return Table(
        columns=(
            Column(title="FP8 under vLLM on", shortens=True),
            *(Column(title=KIND_NAMES[kind], rank=3 if kind == "mx" else 0) for kind in kinds),
            Column(title="experts", rank=1),
            Column(title="KV cache", rank=2),
        ),
        rows=tuple(
            (row.processor, *(MODE_NAMES[row.linear[kind]] for kind in kinds), MODE_NAMES[row.experts], row.kv_cache)
            for row in rows
        ),
    )


def _versions_table(rows: Sequence[InterpreterRow]) -> Table:
    names = tuple(dict.fromkeys(name for row in rows for name in row.packages))
    return Table(
        columns=(Column(title="version"), *(Column(title=row.named_by, shortens=row is rows[-1]) for row in rows)),
        rows=(
            ("interpreter", *(str(row.python) for row in rows)),
            ("python", *(row.version or "unknown" for row in rows)),
            *((name, *(_version(row, name) for row in rows)) for name in names),
        ),
    )


def _version(row: InterpreterRow, name: str) -> str:
    return "unknown" if row.problem is not None else row.packages[name] or "-"


def _verdict(checks: Sequence[CheckRow]) -> str:
    amiss = tuple(dict.fromkeys(check.category for check in checks if check.status in {"warning", "failed"}))
    open_ = sum(check.status == "not checked" for check in checks)
    unknown = f"; {open_} not checked" if open_ else ""
    if not amiss:
        return f"found no issues in {len(checks)} checks{unknown}"
    return f"found issues in {len(amiss)} categor{'y' if len(amiss) == 1 else 'ies'}: {', '.join(amiss)}{unknown}"
