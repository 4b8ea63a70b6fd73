"""`checkpoint_summary`: the figures of FMS Model Optimizer's function, from headers alone."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fp8cli import checkpoint_summary
from fp8cli.errors import BadInput


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Save two FP8 layers, their scales and a table, by the safetensors library."""
    tensors = {"model.embed_tokens.weight": torch.zeros(10, 16, dtype=torch.bfloat16)}
    for layer in range(2):
        tensors[f"model.layers.{layer}.weight"] = torch.zeros(16, 16).to(torch.float8_e4m3fn)
        tensors[f"model.layers.{layer}.weight_scale"] = torch.ones(16, 1)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}", "utf-8")
    return tmp_path


def by_loading_every_tensor(checkpoint: Path) -> pd.DataFrame:
    """List the tensors as FMS Model Optimizer does: load each, ask torch for its size."""
    rows = []
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            size = tensor.numel() * tensor.element_size() / 1e6
            rows.append({"layer": name, "shape": tuple(tensor.shape), "mem (MB)": size, "dtype": str(tensor.dtype)})
    return pd.DataFrame(rows)


def test_dtypes_count_and_weigh_what_loading_every_tensor_says(checkpoint: Path) -> None:
    expected = pd.pivot_table(
        by_loading_every_tensor(checkpoint),
        index="dtype",
        values=["layer", "mem (MB)"],
        aggfunc={"layer": "count", "mem (MB)": "sum"},
    )
    pd.testing.assert_frame_equal(checkpoint_summary(checkpoint)[["layer", "mem (MB)"]], expected)


def test_the_table_looks_like_this(checkpoint: Path) -> None:
    table = checkpoint_summary(str(checkpoint))
    text = "\n".join(line.rstrip() for line in table.to_string().splitlines())
    assert text == (
        """\
                     layer  mem (MB)  parameters     share
dtype
torch.bfloat16           1  0.000320         160  0.333333
torch.float32            2  0.000128           0  0.133333
torch.float8_e4m3fn      2  0.000512         512  0.533333"""
    )


def test_details_list_every_tensor(checkpoint: Path) -> None:
    expected = by_loading_every_tensor(checkpoint).sort_values("layer", ignore_index=True)
    pd.testing.assert_frame_equal(checkpoint_summary(checkpoint, show_details=True), expected)


def test_a_broken_checkpoint_raises(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BadInput, match="Git LFS pointer"):
        checkpoint_summary(checkpoint)


@pytest.mark.parametrize(
    ("program", "loaded"),
    [
        ("import fp8cli", set()),
        ("import fp8cli, sys; fp8cli.checkpoint_summary(sys.argv[1])", {"pandas"}),
    ],
)
def test_pandas_comes_with_the_first_call_and_torch_never(checkpoint: Path, program: str, loaded: set[str]) -> None:
    report = "; import sys; print(*{'pandas', 'torch', 'rich', 'typer'} & set(sys.modules))"
    command = [sys.executable, "-c", program + report, str(checkpoint)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    assert set(finished.stdout.split()) == loaded
