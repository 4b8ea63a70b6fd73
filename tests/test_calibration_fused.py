"""Static scales of experts that lie in one tensor, against the forward of transformers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import GraniteMoeConfig, GraniteMoeForCausalLM

from tests.starting import fp8

BUNDLED = Path("fp8cli/bundled/stories-llama")


@pytest.mark.slow
def test_experts_in_one_tensor_get_the_scale_of_the_largest_input_they_could_see(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 1280, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = GraniteMoeForCausalLM(GraniteMoeConfig(**sizes, **heads)).to(torch.bfloat16).eval()
    source = tmp_path / "source"
    model.save_pretrained(source)
    for file in BUNDLED.glob("tok*"):
        shutil.copy(file, source)
    rows = [json.loads(line)["text"] for line in (BUNDLED / "heldout.jsonl").read_text().splitlines()[:4]]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    words = ("--scheme", "FP8", "--calibration-data", str(texts), "--num-calibration-samples", "4")
    run = fp8(tmp_path, "quantize", str(source), "-o", str(tmp_path / "out"), *words)
    assert run.code == 0, run.err
    found = load_file(tmp_path / "out" / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    for layer in range(2):
        largest: list[float] = []
        block = model.model.layers[layer].block_sparse_moe
        hook = block.register_forward_pre_hook(lambda _, args, seen=largest: seen.append(args[0].abs().max().item()))
        with torch.no_grad():
            for row in rows:
                model(torch.tensor([tokenizer.encode(row).ids]))
        hook.remove()
        for expert in range(4):
            for leaf in ("gate_proj", "up_proj"):
                name = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{leaf}.input_scale"
                assert found[name].item() == pytest.approx(max(largest) / 448, rel=0.01)
