"""What `fp8 eval` found: lm-eval's table, what it cost, how it was done, and what to type next."""

from collections.abc import Mapping
from typing import Final

from fp8cli.commands.evaluate import EvaluateReport, ResultRow
from fp8cli.render.console import Output
from fp8cli.render.table import Column, Table
from fp8cli.render.units import count, gb, gib
from fp8cli.render.verdicts import hanging

BACKEND_NAMES: Final[Mapping[str, str]] = {"hf": "transformers", "vllm": "vLLM", "server": "a server"}

EXECUTION_WORDS: Final[Mapping[str, str]] = {
    "fp8-kernel": "FP8 kernel: weights and activations multiplied in FP8",
    "weight-only": "weight-only: FP8 weights, arithmetic in 16 bits",
    "fake-quant": "fake-quant: FP8 weights unpacked, activations rounded to FP8 and back, arithmetic in 16 bits",
    "dequantized": "dequantized: FP8 weights unpacked when loaded, arithmetic in 16 bits",
    "unquantized": "unquantized: there is no FP8 in it",
    "emulated": "emulated: FP8 weights and activations, multiplied without FP8 arithmetic",
    "simulated": "simulated: weights and activations rounded to 8 bits and back, arithmetic as in the checkpoint",
    "unknown": "unknown: how its layers were multiplied could not be found out",
}

_COLUMNS: Final = (
    Column(title="task", shortens=True),
    Column(title="version", rank=4),
    Column(title="filter", rank=3),
    Column(title="n-shot", right=True, rank=2),
    Column(title="items", right=True, rank=1),
    Column(title="metric"),
    Column(title="value", right=True),
    Column(title="stderr", right=True),
)
_ARROWS: Final[Mapping[bool | None, tuple[str, str]]] = {True: ("↑", "(up)"), False: ("↓", "(down)"), None: ("", "")}
"""Which way is better, for a stream that has every character and for one that has not."""


def show(report: EvaluateReport, output: Output) -> None:
    """Print the report; with `output.json` as one document."""
    if output.json:
        output.document("eval", report, exit_code=report.exit_code)
        return
    record = report.record
    output.line(f"{report.checkpoint} · {_form(report)}", style="bold")
    output.line()
    output.table(_table(report.results, unicode=output.out.unicode))
    output.line()
    output.line(_cost(report))
    output.line(f"executed on {_where(report)}, {EXECUTION_WORDS[record.executed_as]}{_by(record.executed_by)}")
    output.line()
    _settings(report, output)
    for note in report.notes:
        output.line()
        hanging(output, "", "note: ", note)
    output.line()
    if report.answered:
        output.line("answered from its record, nothing was run; --rerun runs it again")
    output.out.line(f"record: {report.record_file}")
    for path in report.earlier:
        output.out.line(f"and:    {path}")
    output.out.line(f"next:   {report.next_command}")


def _table(rows: tuple[ResultRow, ...], *, unicode: bool) -> Table:
    return Table(
        columns=_COLUMNS,
        rows=tuple(
            (
                row.task,
                row.version or "-",
                row.filter,
                "-" if row.num_fewshot is None else str(row.num_fewshot),
                "-" if row.items is None else count(row.items),
                f"{row.metric} {_ARROWS[row.higher_is_better][0 if unicode else 1]}".rstrip(),
                f"{row.value:.4f}",
                "-" if row.stderr is None else f"± {row.stderr:.4f}",
            )
            for row in rows
        ),
    )


def _form(report: EvaluateReport) -> str:
    record = report.record
    if record.simulated is not None:
        return f"{record.simulated.scheme}, simulated"
    return record.model.quantization or "unquantized"


def _cost(report: EvaluateReport) -> str:
    record, speed = report.record, report.record.speed
    words = [] if record.model.bytes_on_disk is None else [f"weights {gb(record.model.bytes_on_disk)}"]
    if record.simulated is not None:
        words.append(f"{gb(record.simulated.predicted_bytes)} predicted")
    words.append(f"{speed.seconds:.1f} s, {speed.loading_seconds:.1f} s of it loading")
    if speed.tokens_per_second is not None:
        words.append(f"{count(speed.tokens)} tokens, {speed.tokens_per_second:,.0f} a second")
    if speed.peak_memory_bytes is not None:
        words.append(f"memory {gib(speed.peak_memory_bytes)}")
    if speed.peak_gpu_memory_bytes is not None:
        words.append(f"GPU {gib(speed.peak_gpu_memory_bytes)}")
    return " · ".join(words)


def _where(report: EvaluateReport) -> str:
    settings = report.record.settings
    package = {"hf": "transformers", "vllm": "vllm", "server": "lm_eval"}[settings.backend]
    version = settings.versions.get(package)
    name = BACKEND_NAMES[settings.backend]
    shown = f"{name} through lm_eval" if settings.backend == "server" else name
    return f"{shown} {version}" if version else shown


def _by(executed_by: str | None) -> str:
    return "" if executed_by is None else f" ({executed_by})"


def _settings(report: EvaluateReport, output: Output) -> None:
    """List what was chosen for the user, with the reasons, and what was asked for instead."""
    safe = report.record.settings.safe
    output.line("chosen for you, recorded with the run:")
    width = max(map(len, safe), default=0)
    for name, reason in safe.items():
        hanging(output, "  ", f"{name:{width}}  ", reason)
