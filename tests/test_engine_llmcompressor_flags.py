"""Every field of FMS Model Optimizer's FP8Arguments, and every flag that its fp8 path reads, has its equal here.

Its command swallows what it does not know; this one refuses it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.calibrated import MODEL
from tests.starting import fp8

MLP = ["re:.*mlp.*"]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
UP_PROJ = "model.layers.0.mlp.up_proj.weight"


def actions(report: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["action"] for row in report["tensors"]}


# flag there, its default, the words here, and what the report then says
EQUALS: list[tuple[str, tuple[str, ...], Any]] = [
    ("targets", ("--targets", "re:.*mlp.*"), lambda it: actions(it)[Q_PROJ] == "copy" != actions(it)[UP_PROJ]),
    ("targets", (), lambda it: actions(it)[Q_PROJ] == actions(it)[UP_PROJ] == "quantize"),
    ("scheme", ("--scheme", "FP8_BLOCK"), lambda it: it["scheme"]["name"] == "FP8_BLOCK"),
    ("scheme", (), lambda it: it["scheme"]["name"] == "FP8_DYNAMIC"),
    ("ignore", ("--ignore", "re:.*mlp.*"), lambda it: actions(it)[UP_PROJ] == "copy" != actions(it)[Q_PROJ]),
    ("ignore", (), lambda it: it["ignored_modules"] == ["lm_head"]),
    ("ignore", ("--no-default-ignore",), lambda it: it["ignored_modules"] == []),
    ("torch_dtype", ("--torch-dtype", "float16"), lambda it: it["dtype"] == "torch.float16"),
    ("torch_dtype", (), lambda it: it["dtype"] == "torch.bfloat16"),
    (
        "max_seq_length",
        ("--scheme", "FP8", "--max-seq-length", "100"),
        lambda it: it["calibration"]["max_seq_length"] == 100,
    ),
    (
        "num_calibration_samples",
        ("--scheme", "FP8", "--num-calibration-samples", "17"),
        lambda it: it["calibration"]["samples"] == 17,
    ),
    ("num_calibration_samples", ("--gptq",), lambda it: it["compression"]["data"]["samples"] == 512),
    ("max_seq_length", ("--gptq",), lambda it: it["compression"]["data"]["max_seq_length"] == 512),
    ("output_dir", ("--output-dir", "here"), lambda it: it["out"] == "here"),
]


@pytest.mark.parametrize(
    ("flag", "words", "holds"), EQUALS, ids=lambda value: value if isinstance(value, str) else None
)
def test_each_flag_has_its_equal(tmp_path: Path, flag: str, words: tuple[str, ...], holds: Any) -> None:
    run = fp8(tmp_path, "quantize", MODEL, "--dry-run", "--json", *words)
    assert run.code == 0, run.err
    assert holds(run.report), flag


@pytest.mark.parametrize(
    "words",
    [
        ("--targets", "re:("),
        ("--targets", "Conv2d"),
        ("--scheme", "FP9"),
        ("--ignore", "no_such_module"),
        ("--ignore", "re:("),
        ("--torch-dtype", "bfloat61"),
        ("--scheme", "FP8", "--max-seq-length", "0"),
        ("--scheme", "FP8", "--max-seq-length", "many"),
        ("--scheme", "FP8", "--num-calibration-samples", "-3"),
        ("--max-seq-length", "2048"),
        ("--num-calibration-samples", "512"),
        ("--quant_method", "fp8"),
        ("--scheem", "FP8"),
        ("--engine", "magic"),
        ("--smoothing-strength", "0.5"),
        ("--recipe", "no-such-file.yaml"),
        ("surplus",),
    ],
)
def test_a_value_that_means_nothing_is_refused_and_not_swallowed(tmp_path: Path, words: tuple[str, ...]) -> None:
    run = fp8(tmp_path, "quantize", MODEL, "-o", tmp_path / "out", *words)
    assert run.code in {2, 3}, run.out
    assert run.err.strip()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_same_flags_reach_llmcompressor_s_engine(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--engine", "llmcompressor", "--scheme", "FP8_BLOCK", "--torch-dtype", "float16")
    run = fp8(tmp_path, "quantize", MODEL, "-o", out, *words, "--targets", "re:.*mlp.*", "--ignore", "*.1.mlp.up_proj")
    assert run.code == 0, run.err
    with safe_open(out / "model.safetensors", framework="pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - no mapping
    assert str(kinds[UP_PROJ]) == "torch.float8_e4m3fn"
    assert str(kinds[UP_PROJ.replace("0", "1")]) == str(kinds[Q_PROJ]) == "torch.float16"
    assert "targets: ['re:.*mlp.*']" in (out / "recipe.yaml").read_text()
    config = json.loads((out / "config.json").read_text())
    assert "model.layers.1.mlp.up_proj" in config["quantization_config"]["ignore"]
