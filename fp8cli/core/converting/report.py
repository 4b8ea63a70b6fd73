"""What a conversion or dequantization made, or with a dry run would make."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fp8cli.core.delivering.sending import Delivered
from fp8cli.core.doctor.environment import Check
from fp8cli.core.fetching.streaming import StreamReport
from fp8cli.core.findings import Finding
from fp8cli.core.quantizing.engine import HarmedRows
from fp8cli.core.quantizing.tensor_rows import TensorRow
from fp8cli.core.serving.preflight import Preflight
from fp8cli.core.serving.requirement import Fallback


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What was done, or with `dry_run` what would be done."""

    model: str
    revision: str | None
    out: Path | str
    """A folder, or the address that it was sent to."""
    dialect_before: str
    words_before: str
    """The scheme of the source."""
    dialect_after: str
    """A dialect, or a dtype where nothing is quantized any more."""
    words_after: str
    bit_exact: bool
    """Whether every weight keeps its codes, and every scale its value."""
    dtype: str
    """What the unquantized weights are named to be in config.json."""
    dry_run: bool
    counts: Mapping[str, int]
    bytes_before: Mapping[str, int]
    bytes_after: Mapping[str, int]
    bytes_read: int
    bytes_written: int
    shards: int
    workers: int
    memory_bytes: int
    kept_modules: tuple[str, ...]
    left_behind: tuple[str, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    """What changes besides the weights."""
    warnings: tuple[str, ...]
    harmed: tuple[HarmedRows, ...]
    findings: tuple[Finding, ...]
    """Of the gate before publishing; nothing with `dry_run`."""
    seconds: float
    """Measured, or with `dry_run` estimated."""
    bytes_resumed: int
    serving: Preflight
    """What serving the result takes, from its headers alone."""
    fallback: Fallback | None
    """Why another scheme was taken than the one that was asked for."""
    streamed: StreamReport | None
    """None where the source was read from files here."""
    delivery: Delivered | None
    """How it was sent elsewhere; None where it was not, and with `dry_run`."""
    serve_command: str
    serve_note: str
    tensors: tuple[TensorRow, ...]
