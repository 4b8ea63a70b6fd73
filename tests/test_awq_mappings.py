"""AWQ's mappings for families that llm-compressor has none for that fit: smoothing alone leaves a model as it is.

What smoothing made is llm-compressor's own work on tiny random models in float32; rounding is off
when logits are compared, so what differs could only be a mapping that is wrong.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import disable_quantization
from transformers import (
    AutoTokenizer,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from fp8cli.calibrator.awq_mappings import awq_mappings
from fp8cli.calibrator.compressing import compress_model
from fp8cli.calibrator.compressing_recipe import modifiers_for
from fp8cli.core.sampling.data import BUNDLED_MODEL
from fp8cli.samples.encoding import Encoded
from fp8cli.simulator.scheme import SIMULATED, with_modifiers

SMALL: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def olmo2() -> Any:
    return Olmo2ForCausalLM(Olmo2Config(**SMALL, intermediate_size=96, num_key_value_heads=4))


def opt(*, before: bool) -> Any:
    config = OPTConfig(
        **SMALL, ffn_dim=96, word_embed_proj_dim=64, do_layer_norm_before=before, dropout=0.0, init_std=0.2
    )
    return OPTForCausalLM(config)


def deepseek(q_lora_rank: int | None) -> Any:
    ranks = {"q_lora_rank": q_lora_rank, "kv_lora_rank": 32}
    heads = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4}
    experts = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1}
    sizes = {"intermediate_size": 96, "moe_intermediate_size": 48, "first_k_dense_replace": 1}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**SMALL, **ranks, **heads, **experts, **sizes))


FAMILIES = {
    "OLMo 2": (olmo2, ("model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj")),
    "OPT": (
        lambda: opt(before=True),
        ("model.decoder.layers.0.self_attn.q_proj", "model.decoder.layers.1.fc1", "model.decoder.layers.1.fc2"),
    ),
    "OPT with norms after": (
        lambda: opt(before=False),
        ("model.decoder.layers.1.self_attn.out_proj", "model.decoder.layers.1.fc2"),
    ),
    "DeepSeek-V3": (
        lambda: deepseek(32),
        (
            "model.layers.0.self_attn.q_a_proj",
            "model.layers.0.mlp.gate_proj",
            "model.layers.1.mlp.gate",
            "model.layers.1.mlp.shared_experts.up_proj",
            "model.layers.1.self_attn.kv_b_proj",
        ),
    ),
    "DeepSeek-V3 with whole queries": (lambda: deepseek(None), ("model.layers.1.self_attn.q_proj",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_smoothing_alone_leaves_the_logits_as_they_are(family: str, tmp_path: Path) -> None:
    make, smoothed = FAMILIES[family]
    torch.manual_seed(3)
    model = make().float().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # Of ones and zeros, a norm that is not divided looks like one that is.
            parameter.data.uniform_(0.5, 2.0)
    ids = torch.randint(3, 256, (4, 24))
    # llm-compressor asks where a model came from.
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        before = model(ids).logits
    weights = {name: module.weight.clone() for name, module in model.named_modules() if name in smoothed}
    scheme = with_modifiers(SIMULATED["FP8_DYNAMIC"], smoothing=None, awq=True, gptq=False)
    modifiers = modifiers_for(scheme, scheme.base, targets=["Linear"], ignore=["lm_head"])
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    encoded = Encoded(ids=tuple(map(tuple, ids.tolist())), max_seq_length=24, conversations=False)
    compress_model(modifiers, model, tokenizer, encoded, lambda *_, **__: None)
    after_smoothing = dict(model.named_modules())
    assert {name for name in smoothed if not torch.equal(weights[name], after_smoothing[name].weight)} == set(smoothed)
    model.apply(disable_quantization)
    with torch.no_grad():
        after = model(ids).logits
    assert (after - before).norm() <= 1e-5 * before.norm()


def test_a_model_that_llm_compressor_knows_keeps_its_mappings() -> None:
    config = LlamaConfig(**SMALL, intermediate_size=96)
    assert awq_mappings(LlamaForCausalLM(config)) is None
