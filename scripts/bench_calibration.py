"""How much memory does a calibration take with its weights in memory, and with them on disk? As Markdown.

    python scripts/bench_calibration.py                # two models of 0.8 and 1.5 GB; 5 GB of room, some minutes
    python scripts/bench_calibration.py --layers 4 8 --samples 2

Each row is one `fp8 quantize --scheme FP8` of random BF16 weights in several shards, and the peak is that of the
process in which llm-compressor works, as its report has it: resident, mapped files included. What counts are two models
beside each other: with the weights on disk the larger one takes no more. In float16 every weight is cast as it is read.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import bench_machine
from bench_checkpoint import Llama, write_checkpoint

import fp8cli

BUNDLED: Final = Path(fp8cli.__file__).parent / "bundled/stories-llama"
WIDTH: Final = Llama(layers=1, hidden=1536, intermediate=4096, heads=12, kv_heads=4, vocab=16000)
SHARD_BYTES: Final = 250_000_000
DISTRIBUTIONS: Final = ("fp8cli", "llmcompressor", "compressed-tensors", "transformers", "torch")
MB: Final = 10**6


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One calibration."""

    layers: int
    model_bytes: int
    dtype: str
    offload: str
    peak_bytes: int
    seconds: float


def main() -> int:
    """Measure, print Markdown on stdout; progress goes to stderr."""
    options = _parse(sys.argv[1:])
    versions = {name: bench_machine.version_of(name) for name in DISTRIBUTIONS}
    facts = {
        "command": shlex.join(["python", "scripts/bench_calibration.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "load": f"{os.getloadavg()[0]:.1f}",
        **bench_machine.hardware(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "data": f"{options.samples} samples of {options.length} tokens at most",
    }
    rows: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="fp8-bench-calibration-", dir=options.on) as name:
        for layers in options.layers:
            model = Path(name) / f"layers-{layers}"
            write_checkpoint(model, replace(WIDTH, layers=layers), shard_bytes=SHARD_BYTES)
            for path in BUNDLED.glob("token*.json"):
                shutil.copy(path, model)
            for dtype in options.dtypes:
                for offload in ("none", "disk"):
                    rows.append(_measure(model, layers, dtype, offload, options.samples, options.length))
                    print(f"bench: {rows[-1]}", file=sys.stderr)
            shutil.rmtree(model)
    print("\n".join(f"- {fact}: {value}" for fact, value in facts.items()), end="\n\n")
    print(_table(rows))
    return 0


def _measure(model: Path, layers: int, dtype: str, offload: str, samples: int, length: int) -> Measured:
    out = model.with_name("out")
    words = [
        "quantize",
        str(model),
        "-o",
        str(out),
        "--scheme",
        "FP8",
        "--dtype",
        dtype,
        "--offload",
        offload,
        "--json",
    ]
    data = ["--calibration-data", str(BUNDLED / "heldout.jsonl"), "--num-calibration-samples", str(samples)]
    command = [sys.executable, "-m", "fp8cli", *words, *data, "--max-seq-length", str(length), "--device", "cpu"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise SystemExit(f"bench: {shlex.join(command)} failed: {finished.stderr}")
    facts = json.loads(finished.stdout)["result"]["calibration"]["facts"]
    shutil.rmtree(out)
    return Measured(
        layers=layers,
        model_bytes=sum(path.stat().st_size for path in model.glob("*.safetensors")),
        dtype=dtype,
        offload=offload,
        peak_bytes=facts["peak_memory_bytes"],
        seconds=facts["seconds"],
    )


def _table(rows: Sequence[Measured]) -> str:
    head = "| layers | model | dtype at work | weights | peak | peak / model | calibration |"
    lines = [head, "| ---: | ---: | --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        place = "on disk" if row.offload == "disk" else "in memory"
        sizes = (f"{row.model_bytes / MB:,.0f} MB", row.dtype, place, f"{row.peak_bytes / MB:,.0f} MB")
        cells = (f"{row.layers}", *sizes, f"{row.peak_bytes / row.model_bytes:.2f}", f"{row.seconds:.1f} s")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[14, 28], help="of the models  [14 28]")
    parser.add_argument(
        "--dtypes", nargs="+", default=["bfloat16", "float16"], help="to calibrate in  [bfloat16 float16]"
    )
    parser.add_argument("--samples", type=int, default=8, help="to calibrate with  [8]")
    parser.add_argument("--length", type=int, default=64, help="tokens of a sample, at most  [64]")
    parser.add_argument("--on", type=Path, default=None, help="folder to work in  [the system's for temporary files]")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
