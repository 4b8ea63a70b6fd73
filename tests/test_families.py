"""Every family of `family_matrix.py`: what is quantized, whether transformers computes the same, what vLLM makes of it.

One random checkpoint of each, in the published names, is quantized once for all tests. Three independent readers
look at it: transformers, whose own FP8 layers run it; llm-compressor's `oneshot`, tensor by tensor; and vLLM's model
classes with their own `load_weights` (see `vllm_families.py`).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_matrix import FAMILIES, FUSED_ONLY, RECORDED, Family, family
from safetensors.torch import load_file, save_file

from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.errors import CannotRun
from tests.families import add_prediction_layer, judge_family, logits, save_family

pytestmark = pytest.mark.filterwarnings("ignore")

DONE = tuple(each for each in FAMILIES if each.refused is None)
FUSED = tuple(each for each in DONE if each.transformers == FUSED_ONLY or each.name == "Llama 4")
LOGITS = 0.2
"""Most that the logits of two random layers may differ, relative to their norm: 0.05 to 0.1 is usual in FP8, and two
weights of one layer that are exchanged give 0.5 and more."""
SHARP = 0.4
"""The same for Gemma 4, whose attention does not divide its products: random ones look at one token alone."""


IN_BLOCKS: dict[str, dict[str, int]] = {
    "Qwen3-MoE": {"num_key_value_heads": 4},
    "DeepSeek-V3": {
        "q_lora_rank": 128,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 64,
    },
    "Llama 2 and 3": {"num_key_value_heads": 4},
    "Phi-3 and 4": {"num_key_value_heads": 4},
}
"""Families whose FP8_BLOCK vLLM loads too, with sizes at which what it merges ends where a block does."""


def by_name(families: tuple[Family, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("each", families, ids=lambda each: each.name)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save and quantize every family: `source/NAME` and `output/NAME`."""
    folder = tmp_path_factory.mktemp("families")
    for each in FAMILIES:
        source = save_family(each, folder / "source" / each.name)
        if each.refused is None:
            run(QuantizeRequest(model=str(source), out=folder / "output" / each.name))
    return folder


@by_name(FAMILIES)
def test_what_is_quantized_and_why_is_what_is_on_record(place: Path, each: Family) -> None:
    recorded = json.loads(RECORDED.read_text("utf-8"))
    assert judge_family(each, place / "source" / each.name) == recorded[each.name]


def test_the_record_holds_no_family_that_is_gone() -> None:
    assert list(json.loads(RECORDED.read_text("utf-8"))) == [each.name for each in FAMILIES]


@by_name(tuple(each for each in FAMILIES if each.refused is not None))
def test_a_family_that_cannot_be_done_is_refused_with_the_reason_and_nothing_is_written(
    place: Path, each: Family, tmp_path: Path
) -> None:
    with pytest.raises(CannotRun) as caught:
        run(QuantizeRequest(model=str(place / "source" / each.name), out=tmp_path / "out"))
    assert str(each.refused) in caught.value.message
    assert list(tmp_path.iterdir()) == []


@by_name(tuple(each for each in DONE if each.transformers is None))
def test_transformers_loads_every_name_and_its_logits_stay_close(place: Path, each: Family) -> None:
    expected, _ = logits(place / "source" / each.name, each)
    found, report = logits(place / "output" / each.name, each)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert 0 < float((found - expected).norm() / expected.norm()) < allowed(each)


def allowed(each: Family) -> float:
    return SHARP if each.name.startswith("Gemma 4") else LOGITS


def together(output: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undo the quantization in plain torch: multiply by the scales, and put experts back into the source's tensors."""
    values = {
        name: tensor.float() * output[f"{name}_scale"].float() if f"{name}_scale" in output else tensor
        for name, tensor in output.items()
        if not name.endswith(".weight_scale")
    }
    fused = {}
    for name, whole in source.items():
        if name in values:
            fused[name] = values[name]
            continue
        gate_up = "gate_up_proj" in name or "input_linear" in name
        parent = name.replace(".input_linear.weight", ".experts.x").replace(".output_linear.weight", ".experts.x")
        leaves = ("gate_proj", "up_proj") if gate_up else ("down_proj",)
        experts = [
            torch.cat([values[f"{parent.rpartition('.')[0]}.{expert}.{leaf}.weight"] for leaf in leaves])
            for expert in range(len(whole))
        ]
        stacked = torch.stack(experts)
        assert stacked.shape[1] != stacked.shape[2], "a square matrix would fit either way"
        fused[name] = stacked if stacked.shape == whole.shape else stacked.transpose(1, 2)
    assert sum(value.numel() for value in fused.values()) == sum(value.numel() for value in values.values())
    return fused


@by_name(FUSED)
def test_experts_taken_out_of_a_fused_tensor_compute_what_they_did_in_it(
    place: Path, each: Family, tmp_path: Path
) -> None:
    source = load_file(place / "source" / each.name / "model.safetensors")
    values = together(load_file(place / "output" / each.name / "model.safetensors"), source)
    for name, whole in source.items():
        rounding = 0.08 * whole.float().abs() + 0.003 * whole.float().abs().max()
        assert bool(((values[name].float() - whole.float()).abs() <= rounding).all()), name
    shutil.copy(place / "source" / each.name / "config.json", tmp_path)
    plain = {name: value.to(torch.bfloat16).contiguous() for name, value in values.items()}
    save_file(plain, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected, _ = logits(place / "source" / each.name, each)
    found, report = logits(tmp_path, each)
    assert not report["missing_keys"]
    assert 0 < float((found - expected).norm() / expected.norm()) < allowed(each)


def test_both_layouts_of_qwen3_vl_s_experts_give_the_same_bytes(place: Path, tmp_path: Path) -> None:
    each = family("Qwen3-VL-MoE")
    source = save_family(replace(each, transposed=None), tmp_path / "source")
    gate_up = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    saved, published = (load_file(f / "model.safetensors")[gate_up] for f in (source, place / "source" / each.name))
    assert torch.equal(saved, published.transpose(1, 2))
    run(QuantizeRequest(model=str(source), out=tmp_path / "output"))
    ours, others = (load_file(f / "model.safetensors") for f in (tmp_path / "output", place / "output" / each.name))
    assert sorted(ours) == sorted(others)
    assert all(torch.equal(ours[name].view(torch.uint8), others[name].view(torch.uint8)) for name in ours)


def spoil(place: Path, name: str, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> list[str]:
    """Copy the output of a family with its tensors changed; return the pair for vLLM, called after the folder."""
    shutil.copytree(place / "output" / name, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return [folder.name, str(place / "source" / name), str(folder)]


def save_in_blocks(each: Family, folder: Path) -> list[str]:
    """Save and quantize a family in blocks, each of twice the size of the one before it; return the pair for vLLM."""
    sized = replace(each, config={**each.config, **IN_BLOCKS[each.name]})
    source, out = save_family(sized, folder / "source"), folder / "output"
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            block = sum(torch.meshgrid(*(torch.arange(size) // 128 for size in tensor.shape[-2:]), indexing="ij"))
            tensors[name] = (tensor * 2.0**block).to(tensor.dtype)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    run(QuantizeRequest(model=str(source), out=out, scheme="FP8_BLOCK"))
    return [f"{each.name} in blocks", str(source), str(out)]


def turn_scales(pair: list[str], folder: Path) -> list[str]:
    """Copy the output of Phi-3 in blocks, the scales of its merged projection upside down; return the pair."""
    _, source, out = pair
    shutil.copytree(out, folder)
    tensors = load_file(folder / "model.safetensors")
    scale = "model.layers.0.self_attn.qkv_proj.weight_scale"
    tensors[scale] = tensors[scale].flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return [folder.name, source, str(folder)]


def exchange(one: str, other: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for leaf in ("weight", "weight_scale"):
            tensors[f"{one}.{leaf}"], tensors[f"{other}.{leaf}"] = tensors[f"{other}.{leaf}"], tensors[f"{one}.{leaf}"]

    return change


@pytest.fixture(scope="module")
def vllm(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what vLLM's model classes make of each family they have, and of outputs that were spoiled on purpose."""
    pairs = [
        [each.name, str(place / "source" / each.name), str(place / "output" / each.name)]
        for each in DONE
        if each.vllm is None
    ]
    folder = tmp_path_factory.mktemp("vllm")
    scale, expert = "model.layers.0.mlp.down_proj.weight_scale", "model.layers.0.block_sparse_moe.experts.2"
    pairs += [
        spoil(place, "Llama 2 and 3", folder / "scale gone", lambda tensors: tensors.pop(scale)),
        spoil(place, "Mixtral", folder / "halves exchanged", exchange(f"{expert}.w1", f"{expert}.w3")),
    ]
    for part, name in (("router", "Qwen3-Next"), ("indexer", "DeepSeek-V3.2")):
        run(QuantizeRequest(model=str(place / "source" / name), out=folder / part, default_ignore=False))
        pairs.append([part, str(place / "source" / name), str(folder / part)])
    tower = spoil(place, "Qwen3-VL", folder / "tower not ignored", lambda _: None)
    config = json.loads((folder / "tower not ignored" / "config.json").read_text())
    config["quantization_config"]["ignore"] = ["lm_head"]
    (folder / "tower not ignored" / "config.json").write_text(json.dumps(config))
    kept = folder / "experts kept"
    run(QuantizeRequest(model=str(place / "source" / "Llama 4"), out=kept, ignore=("*.feed_forward.experts.*",)))
    pairs.append(["experts kept", str(place / "source" / "Llama 4"), str(kept)])
    deeper = folder / "deeper"
    shutil.copytree(place / "source" / "DeepSeek-V3", deeper)
    add_prediction_layer(deeper)
    run(QuantizeRequest(model=str(deeper), out=folder / "prediction"))
    pairs += [tower, ["prediction", str(deeper), str(folder / "prediction")]]
    pairs += [save_in_blocks(family(name), folder / "blocks" / name) for name in IN_BLOCKS]
    pairs.append(turn_scales(pairs[-1], folder / "scales turned"))
    dbrx = str(place / "source" / "DBRX")
    pairs.append(["DBRX", dbrx, dbrx])
    (folder / "pairs.json").write_text(json.dumps(pairs))
    command = [sys.executable, "-m", "tests.vllm_families", str(folder / "found.json"), str(folder / "pairs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.slow
@by_name(tuple(each for each in DONE if each.vllm is None))
def test_vllm_loads_every_name_to_the_place_where_the_source_s_goes(vllm: dict[str, Any], each: Family) -> None:
    found = vllm[each.name]
    assert found["error"] is None
    assert found["differ"] == []
    assert found["fp8"]


@pytest.mark.slow
def test_vllm_s_loading_tells_a_wrong_output_from_a_right_one(vllm: dict[str, Any]) -> None:
    assert vllm["scale gone"]["differ"] == ["model.layers.0.mlp.down_proj.weight"]
    assert vllm["halves exchanged"]["differ"] == ["model.layers.0.block_sparse_moe.experts.routed_experts.w13_weight"]
    assert vllm["router"]["error"] is not None
    assert vllm["indexer"]["error"] is not None or vllm["indexer"]["differ"]
    assert vllm["tower not ignored"]["error"] is not None or vllm["tower not ignored"]["differ"]


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_BLOCKS)
def test_vllm_loads_scales_of_blocks_to_the_blocks_they_are_of(vllm: dict[str, Any], name: str) -> None:
    found = vllm[f"{name} in blocks"]
    assert (found["error"], found["differ"]) == (None, [])
    assert found["fp8"]


@pytest.mark.slow
def test_vllm_s_loading_tells_scales_of_other_blocks(vllm: dict[str, Any]) -> None:
    assert vllm["scales turned"]["error"] is None
    assert vllm["scales turned"]["differ"] == ["model.layers.0.self_attn.qkv_proj.weight"]


@pytest.mark.slow
def test_vllm_does_not_load_dbrx_not_even_as_it_is(vllm: dict[str, Any]) -> None:
    assert "ffn.experts.w13_weight" in vllm["DBRX"]["error"]


@pytest.mark.slow
def test_vllm_is_not_disturbed_by_layers_for_multi_token_prediction(vllm: dict[str, Any]) -> None:
    assert vllm["prediction"]["error"] is None
    assert vllm["prediction"]["differ"] == []
    assert vllm["prediction"]["fp8"] == vllm["DeepSeek-V3"]["fp8"]


@pytest.mark.slow
def test_vllm_takes_fused_experts_that_are_all_kept(vllm: dict[str, Any]) -> None:
    assert vllm["experts kept"]["error"] is None
    assert vllm["experts kept"]["differ"] == []
    assert not any("experts" in name.replace("shared_expert", "") for name in vllm["experts kept"]["fp8"])


ONESHOT = """
import json, sys, torch, transformers
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
transformers.logging.set_verbosity_error()
for architecture, source, out in json.loads(sys.argv[1]):
    model = getattr(transformers, architecture).from_pretrained(source, dtype="auto")
    ignore = ["re:.*lm_head", "proj_out", "score", "re:.*vis(ion|ual)", "re:.*projector", "re:.*router$"]
    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=ignore))
    model.save_pretrained(out, save_compressed=True)
"""
"""Run by itself: CT_ENFORCE_EAGER is read when compressed-tensors is imported."""

SAMPLED = ("Phi-3 and 4", "DeepSeek-V2", "Granite-MoE", "Qwen3-VL-MoE")
"""Compared with `oneshot` in every run of the tests; the others were when their line in the matrix was written."""


def run_oneshot(place: Path, families: tuple[Family, ...], folder: Path) -> dict[str, Path]:
    outs = {each.name: folder / each.name for each in families}
    jobs = [[each.architecture, str(place / "source" / each.name), str(outs[each.name])] for each in families]
    environment = os.environ | {"CT_ENFORCE_EAGER": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", ONESHOT, json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return outs


@pytest.mark.slow
def test_every_tensor_is_the_one_that_llm_compressor_writes(place: Path, tmp_path: Path) -> None:
    sampled = tuple(each for each in DONE if each.name in SAMPLED)
    assert all(each.oneshot is None for each in sampled)
    for name, out in run_oneshot(place, sampled, tmp_path).items():
        theirs, ours = (load_file(folder / "model.safetensors") for folder in (out, place / "output" / name))
        assert sorted(ours) == sorted(theirs), name
        for tensor, value in theirs.items():
            assert ours[tensor].dtype == value.dtype, tensor
            assert torch.equal(ours[tensor].view(torch.uint8), value.view(torch.uint8)), tensor
