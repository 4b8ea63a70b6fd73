"""Words that need no arithmetic load no library for it: help, a mistyped option, completion, and `inspect`.

Each command runs in a process of its own, through the same `main` as the `fp8` on the command line, and reports
which of the heavy libraries it had loaded when it was done.
"""

from pathlib import Path

import pytest

import fp8cli
from tests.starting import fp8

MODEL = Path(fp8cli.__file__).parent / "bundled" / "stories-llama"


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("quantize", "--help"),
        ("inspect", "--help"),
        ("verify", "--help"),
        ("doctor", "--help"),
        ("eval", "--help"),
        ("compare", "--help"),
        ("convert", "--help"),
        ("dequantize", "--help"),
        ("push", "--help"),
    ],
)
def test_help_and_version_load_no_heavy_library(tmp_path: Path, words: tuple[str, ...]) -> None:
    run = fp8(tmp_path, *words)
    assert (run.code, run.err, run.loaded) == (0, "", [])
    assert run.out


@pytest.mark.parametrize("words", [("quantiz",), ("quantize", "--nope"), ("inspect",), ("--nope",)])
def test_a_usage_error_loads_no_heavy_library(tmp_path: Path, words: tuple[str, ...]) -> None:
    run = fp8(tmp_path, *words)
    assert (run.code, run.out, run.loaded) == (2, "", [])
    assert run.err


def test_a_missing_checkpoint_is_refused_without_a_heavy_library(tmp_path: Path) -> None:
    run = fp8(tmp_path, "inspect", str(tmp_path / "nothing-here"))
    assert (run.code, run.out, run.loaded) == (3, "", [])
    assert "nothing-here" in run.err


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
    assert "quantize" in run.out


@pytest.mark.parametrize("options", [(), ("--json",), ("--csv",), ("--markdown", "--details")])
def test_inspect_loads_no_heavy_library_but_numpy_for_scales(tmp_path: Path, options: tuple[str, ...]) -> None:
    run = fp8(tmp_path, "inspect", str(MODEL), *options)
    assert (run.code, run.err, run.loaded) == (0, "", [])
    assert run.out
    quantized = tmp_path / "quantized"
    fp8(tmp_path, "quantize", str(MODEL), "-o", str(quantized))
    run = fp8(tmp_path, "inspect", str(quantized), *options)
    assert (run.code, run.err, run.loaded) == (0, "", ["numpy"])


def test_verifying_loads_no_torch(tmp_path: Path) -> None:
    quantized = tmp_path / "quantized"
    fp8(tmp_path, "quantize", str(MODEL), "-o", str(quantized))
    run = fp8(tmp_path, "inspect", str(quantized), "--verify", "--against", str(MODEL))
    assert (run.code, run.err, run.loaded) == (0, "", ["numpy"])


def test_quantizing_loads_no_torch_where_the_kernel_is_built(tmp_path: Path) -> None:
    run = fp8(tmp_path, "quantize", str(MODEL), "-o", str(tmp_path / "out"))
    # numpy judges the scales before they are published.
    assert (run.code, run.loaded) == (0, ["numpy"])
    run = fp8(tmp_path, "quantize", str(MODEL), "-o", str(tmp_path / "other"), FP8_KERNEL="off")
    assert (run.code, "torch" in run.loaded) == (0, True)
