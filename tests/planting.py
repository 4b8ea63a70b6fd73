"""Damage planted in real FP8 checkpoints: made by `fp8 quantize`, changed with the safetensors library."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import fp8cli
from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.core.inspection.dialect import Dialect, recognise_dialect
from fp8cli.core.inspection.survey import Survey, survey
from fp8cli.formats.checkpoint import LocalFolder

STORIES = Path(fp8cli.__file__).parent / "bundled" / "stories-llama"
LAYER = "model.layers.1.mlp.down_proj"

Tensors = dict[str, torch.Tensor]


def quantize_stories(out: Path, scheme: str = "FP8_DYNAMIC") -> Path:
    return run(QuantizeRequest(model=str(STORIES), out=out, scheme=scheme)).out


def change(folder: Path, copy: Path, plant: Callable[[Tensors], None]) -> Path:
    """Copy a checkpoint and let `plant` change the tensors of its only file; no fp8.json says what it was before."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("fp8.json"))
    tensors = load_file(copy / "model.safetensors")
    plant(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    # The library closes what it saves to other users, which is a warning.
    (copy / "model.safetensors").chmod(0o644)
    return copy


def change_config(folder: Path, plant: Callable[[dict[str, object]], None]) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    plant(config)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def look(folder: Path) -> tuple[Survey, Dialect]:
    surveyed = survey(LocalFolder(folder))
    return surveyed, recognise_dialect(surveyed)


def set_code(tensors: Tensors, name: str, row: int, column: int, code: int) -> None:
    """Overwrite one E4M3 code with a byte."""
    codes = tensors[name].view(torch.uint8).clone()
    codes[row, column] = code
    tensors[name] = codes.view(torch.float8_e4m3fn)


def set_scale(tensors: Tensors, name: str, row: int, value: float) -> None:
    """Overwrite one value of a scale, in the scale's own dtype."""
    scale = tensors[name].clone()
    scale.view(-1)[row] = value
    tensors[name] = scale
