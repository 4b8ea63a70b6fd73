"""Words that need no arithmetic load no library for it: help, a mistyped option, completion, and `inspect`.

Each command runs in a process of its own, through the same `main` as the `fp8` on the command line, and reports
which of the heavy libraries it had loaded when it was done.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import fp8cli

MODEL = Path(fp8cli.__file__).parent / "bundled" / "stories-llama"
HEAVY = (
    "compressed_tensors",
    "datasets",
    "llmcompressor",
    "lm_eval",
    "numpy",
    "pandas",
    "pydantic",
    "torch",
    "transformers",
    "vllm",
)

PROGRAM = """
import atexit, json, pathlib, sys
report, heavy, sys.argv = pathlib.Path(sys.argv[1]), sys.argv[2].split(","), ["fp8", *sys.argv[3:]]
atexit.register(lambda: report.write_text(json.dumps([name for name in heavy if name in sys.modules])))
from fp8cli.cli.app import main
sys.exit(main())
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    code: int
    output: str
    errors: str
    loaded: list[str]


def fp8(tmp_path: Path, *words: str, **environment: str) -> Run:
    report = tmp_path / "loaded.json"
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(report), ",".join(HEAVY), *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )
    return Run(
        code=finished.returncode,
        output=finished.stdout,
        errors=finished.stderr,
        loaded=json.loads(report.read_text("utf-8")),
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("quantize", "--help"),
        ("inspect", "--help"),
    ],
)
def test_help_and_version_load_no_heavy_library(tmp_path: Path, words: tuple[str, ...]) -> None:
    run = fp8(tmp_path, *words)
    assert (run.code, run.errors, run.loaded) == (0, "", [])
    assert run.output


@pytest.mark.parametrize("words", [("quantiz",), ("quantize", "--nope"), ("inspect",), ("--nope",)])
def test_a_usage_error_loads_no_heavy_library(tmp_path: Path, words: tuple[str, ...]) -> None:
    run = fp8(tmp_path, *words)
    assert (run.code, run.output, run.loaded) == (2, "", [])
    assert run.errors


def test_a_missing_checkpoint_is_refused_without_a_heavy_library(tmp_path: Path) -> None:
    run = fp8(tmp_path, "inspect", str(tmp_path / "nothing-here"))
    assert (run.code, run.output, run.loaded) == (3, "", [])
    assert "nothing-here" in run.errors


@pytest.mark.parametrize(
    ("shell", "environment"),
    [
        ("bash", {"COMP_WORDS": "fp8 quan", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "fp8 quan"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "fp8 quan", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_shell_completion_finds_a_command_without_a_heavy_library(
    tmp_path: Path, shell: str, environment: dict[str, str]
) -> None:
    run = fp8(tmp_path, _FP8_COMPLETE=f"complete_{shell}", **environment)
    assert (run.code, run.loaded) == (0, [])
    assert "quantize" in run.output


@pytest.mark.parametrize("options", [(), ("--json",), ("--csv",), ("--markdown", "--details")])
def test_inspect_loads_no_heavy_library_but_numpy_for_scales(tmp_path: Path, options: tuple[str, ...]) -> None:
    run = fp8(tmp_path, "inspect", str(MODEL), *options)
    assert (run.code, run.errors, run.loaded) == (0, "", [])
    assert run.output
    quantized = tmp_path / "quantized"
    fp8(tmp_path, "quantize", str(MODEL), "-o", str(quantized))
    run = fp8(tmp_path, "inspect", str(quantized), *options)
    assert (run.code, run.errors, run.loaded) == (0, "", ["numpy"])


def test_verifying_loads_no_torch(tmp_path: Path) -> None:
    quantized = tmp_path / "quantized"
    fp8(tmp_path, "quantize", str(MODEL), "-o", str(quantized))
    run = fp8(tmp_path, "inspect", str(quantized), "--verify", "--against", str(MODEL))
    assert (run.code, run.errors, run.loaded) == (0, "", ["numpy"])


def test_quantizing_loads_no_torch_where_the_kernel_is_built(tmp_path: Path) -> None:
    run = fp8(tmp_path, "quantize", str(MODEL), "-o", str(tmp_path / "out"))
    # numpy judges the scales before they are published.
    assert (run.code, run.loaded) == (0, ["numpy"])
    run = fp8(tmp_path, "quantize", str(MODEL), "-o", str(tmp_path / "other"), FP8_KERNEL="off")
    assert (run.code, "torch" in run.loaded) == (0, True)
