"""The rows of the benchmark: which processes are started, how one is seen from outside, and how rounds alternate."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench_checkpoint import Made
from bench_machine import lack_of_room, version_of
from bench_report import Measurement

from fp8cli.formats.safetensors import read_header

_REASON_LENGTH: Final = 120

_FLUSHED_COPY: Final = 'cp -r "$1" "$2" && sync "$2"/*'
_MODEL_FREE: Final = """
import sys
from llmcompressor import model_free_ptq
ignore = ["lm_head", "model.embed_tokens"]
model_free_ptq(sys.argv[1], sys.argv[2], scheme="FP8_DYNAMIC", ignore=ignore, device="cpu")
"""
_ONESHOT: Final = """
import sys
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"]))
model.save_pretrained(sys.argv[2], save_compressed=True)
"""

Command = Callable[[str, str], list[str]]
"""From the source folder and the output folder to the words of a command."""


class NotMeasuredError(Exception):
    """A row cannot be measured here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One process to measure."""

    title: str
    command: Command
    needs: str | None = None
    """Distribution that must be installed."""
    memory_share: float = 0.2
    """Memory it may need, as a share of the source's bytes."""
    output_share: float = 1.02
    """Disk it may need, likewise."""
    cuda: bool = False
    """Whether it sees the GPU. What is compared on the CPU does not."""
    exit_codes: tuple[int, ...] = (0,)
    """Those that are no failure: a verdict has one too."""
    is_fp8: bool = False
    """Whether its output is compared with that of another device."""


@dataclass(kw_only=True)
class Results:
    """What came of some rows: the runs of each, or why it has none."""

    names: Sequence[str]
    runs: dict[str, list[Measurement]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    """By row, then by shard: SHA-256 of the output, where devices are compared."""


def measure_rounds(
    rows: Mapping[str, Row], sources: Mapping[str, Made], folder: Path, *, rounds: int, heavy: bool = True
) -> Results:
    """Run all rows in turn, as many rounds as asked; a row that fails once is not tried again.

    sources: by row. folder: where outputs may be written, and removed. heavy: whether a run moves gigabytes, so
    that it depends on what the runs before it left behind, see `settle`.
    """
    results = Results(names=tuple(rows))
    compares_devices = any(row.cuda for row in rows.values())
    for number in range(1, rounds + 1):
        for name, row in rows.items():
            if name in results.reasons:
                continue
            # A folder of its own: a run that fails may leave something beside its output.
            scratch = folder / f"run-{name}"
            scratch.mkdir()
            out = scratch / "out"
            try:
                if heavy:
                    settle(sources[name].folder, out)
                run = measure(row, sources[name], out)
                results.runs.setdefault(name, []).append(run)
                if compares_devices and row.is_fp8 and number == 1:
                    results.digests[name] = digests(out)
            except NotMeasuredError as problem:
                results.reasons[name] = str(problem)
                results.runs.pop(name, None)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            said = results.reasons.get(name) or f"{results.runs[name][-1].wall_seconds:.2f} s"
            print(f"bench: round {number} of {rounds}: {name}: {said}", file=sys.stderr)
    return results


def measure(row: Row, source: Made, out: Path) -> Measurement:
    """Run one row once, as a process of its own. Raises NotMeasuredError if it cannot run here, or fails."""
    if row.needs is not None and version_of(row.needs) is None:
        message = f"{row.needs} is not installed"
        raise NotMeasuredError(message)
    disk, memory = int(source.bytes * row.output_share), int(source.bytes * row.memory_share)
    if (lack := lack_of_room(out.parent, disk_bytes=disk, memory_bytes=memory)) is not None:
        raise NotMeasuredError(lack)
    log = out.parent / "log"
    command = row.command(str(source.folder), str(out))
    with log.open("wb") as output:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(cuda=row.cuda),
            cwd=out.parent,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in row.exit_codes:
        message = f"exit code {process.returncode}: {_last_words(log)[:_REASON_LENGTH]}"
        raise NotMeasuredError(message)
    # Linux counts in KiB, macOS in bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measurement(wall_seconds=seconds, cpu_seconds=usage.ru_utime + usage.ru_stime, peak_bytes=peak)


def settle(source: Path, out: Path) -> None:
    """Give every run the same start: source in the page cache, memory for its output in use before, disks flushed.

    An unmeasured copy does the first two. On a virtual machine, memory that lay idle is taken back by the host, and
    the first to write a few gigabytes pays for it: the same `cp -r` was seen to take 7.8 s and then 3.7 s.
    """
    shutil.copytree(source, out)
    shutil.rmtree(out)
    os.sync()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every shard in a folder, by name."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as reader:
            found[file.name] = hashlib.file_digest(reader, "sha256").hexdigest()
    return found


def fp8_command() -> list[str]:
    """The installed `fp8`, as a user starts it, or the package where it runs from its source."""
    script = Path(sysconfig.get_path("scripts"), "fp8")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "fp8cli"]


_QUANTIZED: Final = "-fp8"


def quantize_once(source: Made) -> Made:
    """Quantize a source beside itself, unmeasured, for rows that look at the result. Raises NotMeasuredError."""
    out = source.folder.with_name(source.folder.name + _QUANTIZED)
    done = subprocess.run(
        [*fp8_command(), "quantize", str(source.folder), "-o", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(cuda=False),
        check=False,
    )
    if done.returncode:
        message = f"there is nothing to look at: {done.stderr.strip().splitlines()[0][:_REASON_LENGTH]}"
        raise NotMeasuredError(message)
    headers = [read_header(shard) for shard in sorted(out.glob("*.safetensors"))]
    return Made(
        folder=out,
        tensors=sum(len(header.tensors) for header in headers),
        bytes=sum(header.file_bytes for header in headers),
        shards=len(headers),
    )


def base_of(quantized: str) -> str:
    """The source that `quantize_once` was given."""
    return quantized.removesuffix(_QUANTIZED)


def _last_words(log: Path) -> str:
    """The line that says what went wrong: `error: …` if there is one, else the last."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "no output")


def _environment(*, cuda: bool) -> dict[str, str]:
    """What a user has: byte code kept, all cores for everyone; and nobody looks for a hub."""
    dropped = {"PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"HF_HUB_OFFLINE": "1"} | ({} if cuda else {"CUDA_VISIBLE_DEVICES": ""})


def _quantize(scheme: str, device: str = "cpu", *more: str) -> Command:
    options = ["--scheme", scheme, "--device", device, *more]
    return lambda source, out: [*fp8_command(), "quantize", source, "-o", out, *options]


def _python(program: str) -> Command:
    return lambda source, out: [sys.executable, "-c", program, source, out]


ROWS: Final[Mapping[str, Row]] = {
    "cp": Row(title="`cp -r`", command=lambda source, out: ["cp", "-r", source, out]),
    "cp-sync": Row(
        title="`cp -r`, then `sync` of the copy",
        command=lambda source, out: ["sh", "-c", _FLUSHED_COPY, "sh", source, out],
    ),
    "torch": Row(title='`python -c "import torch"`', command=_python("import torch"), output_share=0),
    "quantize": Row(title="`fp8 quantize`", command=_quantize("FP8_DYNAMIC"), is_fp8=True),
    "unhashed": Row(title="`fp8 quantize --no-hashes`", command=_quantize("FP8_DYNAMIC", "cpu", "--no-hashes")),
    "block": Row(title="`fp8 quantize --scheme FP8_BLOCK`", command=_quantize("FP8_BLOCK"), is_fp8=True),
    "model-free": Row(
        title="llm-compressor `model_free_ptq`",
        command=_python(_MODEL_FREE),
        needs="llmcompressor",
        memory_share=0.6,
    ),
    "oneshot": Row(
        title="llm-compressor `oneshot` and save",
        command=_python(_ONESHOT),
        needs="llmcompressor",
        memory_share=1.5,
    ),
}
REPORT_ROWS: Final[Mapping[str, Row]] = {
    "verify": Row(
        title="`fp8 inspect --verify`",
        command=lambda quantized, _: [*fp8_command(), "inspect", quantized, "--verify"],
        output_share=0,
        memory_share=0.1,
    ),
    "against": Row(
        title="`fp8 inspect --against BASE`",
        command=lambda quantized, _: [*fp8_command(), "inspect", quantized, "--against", base_of(quantized)],
        output_share=0,
        memory_share=0.1,
    ),
}
"""Rows whose source is what `quantize_once` made of the others'."""
CUDA_ROWS: Final[Mapping[str, Row]] = {
    "quantize-cuda": Row(
        title="`fp8 quantize --device cuda`", command=_quantize("FP8_DYNAMIC", "cuda"), is_fp8=True, cuda=True
    ),
    "block-cuda": Row(
        title="`fp8 quantize --scheme FP8_BLOCK --device cuda`",
        command=_quantize("FP8_BLOCK", "cuda"),
        is_fp8=True,
        cuda=True,
    ),
}
MEMORY_ROW: Final = Row(
    title="`fp8 quantize` of a sparse source", command=_quantize("FP8_DYNAMIC"), output_share=0.6, memory_share=0.1
)
START_ROWS: Final[Mapping[str, Row]] = {
    "pass": Row(title="`python -c pass`", command=_python("pass"), output_share=0, memory_share=0),
    "help": Row(title="`fp8 --help`", command=lambda _, __: [*fp8_command(), "--help"], output_share=0, memory_share=0),
    "inspect": Row(
        title="`fp8 inspect`",
        command=lambda source, _: [*fp8_command(), "inspect", source],
        output_share=0,
        memory_share=0,
    ),
    "inspect-fp8": Row(
        title="`fp8 inspect`",
        command=lambda source, _: [*fp8_command(), "inspect", source],
        output_share=0,
        memory_share=0,
    ),
    "inspect-huge": Row(
        title="`fp8 inspect`",
        command=lambda source, _: [*fp8_command(), "inspect", source],
        output_share=0,
        memory_share=0,
    ),
    "dry-run": Row(
        title="`fp8 quantize --dry-run`",
        command=lambda source, out: [*fp8_command(), "quantize", source, "-o", out, "--dry-run"],
        output_share=0,
        memory_share=0,
    ),
}
