"""`fp8 inspect` on calibrated checkpoints: sound as they are written, and not with scales that do not fit."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fp8cli.schemes import KvCache
from tests.calibrated import MODEL, made_up, plan_of, write
from tests.inspecting import fp8_inspect

SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
K_SCALE = "model.layers.1.self_attn.k_scale"


def made(folder: Path, scheme: str | None, kv_cache: KvCache | None) -> Path:
    out = folder / "out"
    plan = plan_of(MODEL, scheme, kv_cache)
    write(MODEL, out, plan, made_up(plan))
    for name in SIDE_FILES:
        shutil.copy(MODEL / name, out / name)
    return out


def replace_tensor(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = {**load_file(folder / "model.safetensors")}
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


@pytest.mark.parametrize(
    ("scheme", "kv_cache", "name", "cache"),
    [
        ("FP8", None, "FP8", None),
        ("FP8", "tensor", "FP8", "E4M3 per tensor, calibrated"),
        ("FP8_DYNAMIC", "head", "FP8_DYNAMIC", "E4M3 per attention head, calibrated"),
        ("FP8_BLOCK", "tensor", "FP8_BLOCK", "E4M3 per tensor, calibrated"),
        (None, "head", None, "E4M3 per attention head, calibrated"),
    ],
)
def test_what_is_written_is_found_sound_and_named(
    tmp_path: Path, scheme: str | None, kv_cache: KvCache | None, name: str | None, cache: str | None
) -> None:
    found = fp8_inspect(made(tmp_path, scheme, kv_cache), "--against", MODEL, "--json")
    assert found.code == 0
    assert {finding["status"] for finding in found.report["findings"]} == {"passed"}, found.report["findings"]
    assert found.report["quantization"]["scheme"] == name
    assert found.report["quantization"]["kv_cache"] == cache
    if kv_cache is not None:
        assert found.status_of("cache.scale") == {"passed"}
    if scheme == "FP8":
        assert found.status_of("activation.scale") == {"passed"}


@pytest.mark.parametrize(
    ("kv_cache", "tensor", "check"),
    [
        ("head", torch.ones(3, 1, 1, dtype=torch.bfloat16), "cache.shape"),
        ("head", torch.ones(1, dtype=torch.bfloat16), "cache.shape"),
        ("tensor", torch.ones(4, 1, 1, dtype=torch.bfloat16), "cache.shape"),
        ("tensor", None, "cache.missing"),
        ("tensor", torch.tensor([float("nan")], dtype=torch.bfloat16), "scale.nan"),
        ("head", torch.tensor([1, 1, 0, 1], dtype=torch.bfloat16).view(4, 1, 1), "scale.zero"),
    ],
)
def test_a_cache_scale_that_does_not_fit_is_found(
    tmp_path: Path, kv_cache: KvCache, tensor: torch.Tensor | None, check: str
) -> None:
    out = made(tmp_path, None, kv_cache)
    replace_tensor(out, K_SCALE, tensor)
    found = fp8_inspect(out, "--json")
    bad = [finding for finding in found.report["findings"] if finding["status"] != "passed"]
    assert [finding["check"] for finding in bad] == [check], bad
    assert K_SCALE in str(bad)
