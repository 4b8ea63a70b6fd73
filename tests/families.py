"""Tiny checkpoints of every family in `family_matrix.py`, as transformers saves them and as they are published.

PYTHONPATH=scripts python -m tests.families    # record what happens to each, for the README and the tests
"""

import json
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from family_matrix import FAMILIES, RECORDED, Family, family
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.core.model.architectures import pattern_of
from fp8cli.errors import CannotRun
from tests.calibrated import MODEL

FILE: Final = "model.safetensors"


def save_family(each: Family, folder: Path) -> Path:
    """Save a random model of a family in BF16, under the names and with the config.json of the published one."""
    torch.manual_seed(11)
    if each.tensors is not None:
        return _save_unknown(each, folder)
    config: Any = CONFIG_MAPPING[each.model_type](**each.config)
    model = getattr(transformers, each.architecture)(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms that are all ones and biases that are all zeros would hide a wrong name.
            if parameter.dim() == 1 and name.endswith(("bias", "norm.weight", "sinks")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    config_json = folder / "config.json"
    written = json.loads(config_json.read_text()) | each.config_json
    written |= {key: written[key] | keys for key, keys in each.nested_json.items()}
    config_json.write_text(json.dumps(written, indent=2))
    if each.renamed or each.transposed:
        tensors = load_file(folder / FILE)
        published = {rename(name, each): turn(name, tensor, each) for name, tensor in tensors.items()}
        assert len(published) == len(tensors)
        save_file(published, folder / FILE, metadata={"format": "pt"})
    return folder


def save_reader(name: str, folder: Path) -> Path:
    """Save a random model of a family with the bundled tokenizer, whose tokens it has embeddings for."""
    each = family(name)
    sizes = {"vocab_size": 1280, "max_position_embeddings": 512}
    text = each.config.get("text_config")
    config = {**each.config, **sizes} if text is None else {**each.config, "text_config": {**text, **sizes}}
    save_family(replace(each, config=config), folder)
    for file in MODEL.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def _save_unknown(each: Family, folder: Path) -> Path:
    """Save a random model that transformers does not know, with its code."""
    folder.mkdir(parents=True)
    tensors = {name: torch.randn(shape).mul(0.1).bfloat16() for name, shape in (each.tensors or {}).items()}
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    named = {"architectures": [each.architecture], "model_type": each.model_type, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(named | each.config | each.config_json, indent=2))
    for name, text in each.code.items():
        (folder / name).write_text(text)
    return folder


def turn(name: str, tensor: torch.Tensor, each: Family) -> torch.Tensor:
    """Give a tensor the layout it is published in."""
    turned = each.transposed is not None and re.search(each.transposed, name)
    return tensor.transpose(1, 2).contiguous() if turned else tensor


def rename(name: str, each: Family) -> str:
    """Say what the published model calls a tensor."""
    for pattern, published in each.renamed:
        name = re.sub(pattern, published, name)
    return name


def change(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> None:
    """Put other tensors into a checkpoint, and other keys into its config.json."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, {"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | config))


def add_prediction_layer(folder: Path) -> dict[str, torch.Tensor]:
    """Add a layer for multi-token prediction as DeepSeek-V3 is published with one; return it."""
    tensors = load_file(folder / FILE)
    last = "model.layers.1."
    extra = {
        name.replace(last, "model.layers.2."): tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(last)
    }
    extra["model.layers.2.eh_proj.weight"] = torch.randn(128, 256).bfloat16()
    extra |= {f"model.layers.2.{norm}.weight": torch.ones(128).bfloat16() for norm in ("enorm", "hnorm")}
    change(folder, tensors | extra, num_nextn_predict_layers=1)
    return extra


def tokens() -> torch.Tensor:
    """Return the ids of a few sequences that every family knows [16, 12]."""
    return torch.randint(3, 320, (16, 12), generator=torch.Generator().manual_seed(1))


def logits(folder: Path, each: Family) -> tuple[torch.Tensor, dict[str, Any]]:
    """Run a checkpoint on a few tokens; return its logits and what did not fit while loading."""
    model, report = getattr(transformers, each.architecture).from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    given = {"input_ids": tokens()}
    if each.model_type == "paligemma":
        # Without it, transformers takes all for a prefix, in which attention sees what comes after.
        given["token_type_ids"] = torch.ones_like(given["input_ids"])
    if each.model_type == "whisper":
        sound = torch.randn(16, 16, 64, generator=torch.Generator().manual_seed(1), dtype=torch.bfloat16)
        given = {"decoder_input_ids": given["input_ids"], "input_features": sound}
    with torch.no_grad():
        found = model.eval()(**given)
    return (found.logits if "logits" in found else found.last_hidden_state).float(), report


def judge_family(each: Family, folder: Path) -> dict[str, Any]:
    """Say what `fp8 quantize` does with a family: which modules are quantized, and what stays, each with its reason.

    Embeddings and vectors, which stay everywhere for the same reasons, are left out.
    """
    try:
        report = run(QuantizeRequest(model=str(folder), out=folder.with_name("nowhere"), dry_run=True))
    except CannotRun as refusal:
        return {"architecture": each.architecture, "refused": refusal.message}
    quantized: dict[str, str] = {}
    kept: dict[str, str] = {}
    for row in report.tensors:
        pattern = pattern_of(row.name).removesuffix(".weight")
        if row.action == "quantize":
            quantized[pattern] = row.reason
        elif row.role != "embedding" and len(row.shape) > 1:
            kept[pattern] = row.reason
    return {
        "architecture": each.architecture,
        "quantized": {", ".join(gather(patterns)): reason for reason, patterns in _by_reason(quantized).items()},
        "kept": {", ".join(gather(patterns)): reason for reason, patterns in _by_reason(kept).items()},
    }


def gather(patterns: list[str]) -> list[str]:
    """Write modules of one parent together: `mlp.{down_proj,gate_proj,up_proj}`."""
    parents: dict[str, list[str]] = {}
    for pattern in sorted(patterns):
        parent, dot, leaf = pattern.rpartition(".")
        parents.setdefault(parent + dot, []).append(leaf)
    return [
        f"{parent}{{{','.join(leaves)}}}" if leaves[1:] else parent + leaves[0] for parent, leaves in parents.items()
    ]


def _by_reason(modules: dict[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for module, reason in modules.items():
        reasons.setdefault(reason, []).append(module)
    return reasons


def main() -> None:
    """Record what happens to every family: python -m tests.families."""
    with tempfile.TemporaryDirectory() as place:
        found = {
            each.name: judge_family(each, save_family(each, Path(place) / str(number)))
            for number, each in enumerate(FAMILIES)
        }
    RECORDED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
