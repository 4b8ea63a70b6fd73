"""Real FP8 checkpoints to damage, tiny ones in the dialects of other quantizers, and what is said about them."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fp8cli.commands.quantize import QuantizeRequest
from fp8cli.commands.quantize import run as quantize
from fp8cli.core.findings import Finding
from fp8cli.core.inspection.consistency import check_consistency
from fp8cli.core.inspection.dialect import Dialect, recognise_dialect
from fp8cli.core.inspection.scale_values import check_scales
from fp8cli.core.inspection.survey import Survey, survey
from fp8cli.formats.checkpoint import LocalFolder

BUNDLED = Path(__file__).parent.parent / "fp8cli" / "bundled" / "stories-llama"
SINGLE = "model.safetensors"
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]


def quantize_bundled(folder: Path, scheme: str) -> Path:
    """Make the FP8 form of the bundled model, as the command does."""
    quantize(QuantizeRequest(model=str(BUNDLED), out=folder, scheme=scheme))
    return folder


def write(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, object] | None) -> Path:
    """Write a checkpoint of one file with the safetensors library."""
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SINGLE, {"format": "pt"})
    (folder / SINGLE).chmod(0o644)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Write the weights again, changed in place by `change`."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    write(folder, tensors, None)


def change_config(folder: Path, change: Callable[[Config], object]) -> None:
    """Write config.json again, changed in place by `change`."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def per_channel(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [N, K] and scale [N, 1]."""
    scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-6) / 448
    return (weight.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale.to(torch.bfloat16)


def look(folder: Path) -> tuple[Survey, Dialect]:
    """Survey a folder and say what it is."""
    seen = survey(LocalFolder(folder))
    return seen, recognise_dialect(seen)


def consistency(folder: Path) -> tuple[Finding, ...]:
    """What is said about the tensors and the config of a folder."""
    return check_consistency(*look(folder))


def values(folder: Path) -> tuple[Finding, ...]:
    """What is said about the values of its scales."""
    return check_scales(*look(folder))[1]


def troubles(findings: Iterable[Finding]) -> dict[str, str]:
    """Check → status, of all that did not pass."""
    return {finding.check: finding.status for finding in findings if finding.status != "passed"}
