"""AWQ's mappings for families that llm-compressor has none for that fit: smoothing alone leaves a model as it is.

What smoothing made is llm-compressor's own work on tiny random models in float32; rounding is off
when logits are compared, so what differs could only be a mapping that is wrong.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compressed_tensors.quantization import disable_quantization
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from fp8cli.calibrator.awq_mappings import awq_mappings
from fp8cli.calibrator.compressing import compress_model
from fp8cli.calibrator.compressing_recipe import list_mappings, modifiers_for
from fp8cli.core.sampling.data import BUNDLED_MODEL
from fp8cli.samples.encoding import Encoded
from fp8cli.simulator.scheme import SIMULATED, with_modifiers
from fp8cli.worker.failures import Failure

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


def deepseek(q_lora_rank: int | None, version: str = "V3") -> Any:
    ranks = {"q_lora_rank": q_lora_rank, "kv_lora_rank": 32}
    heads = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4}
    experts = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1}
    sizes = {"intermediate_size": 96, "moe_intermediate_size": 48, "first_k_dense_replace": 1}
    return mixture(f"Deepseek{version}", **{**ranks, **heads, **experts, **sizes})


def mixture(kind: str, **more: Any) -> Any:
    sizes = {"intermediate_size": 96, "num_key_value_heads": 4, "num_experts_per_tok": 2, **more}
    return getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**SMALL, **sizes))


def glm() -> Any:
    experts = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
    return mixture("Glm4Moe", head_dim=16, moe_intermediate_size=48, **experts)


def glm_lite() -> Any:
    heads = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "q_lora_rank": 32, "kv_lora_rank": 32}
    experts = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
    return mixture("Glm4MoeLite", moe_intermediate_size=48, **experts, **heads)


def mixtral() -> Any:
    return mixture("Mixtral", num_local_experts=4)


def qwen2() -> Any:
    return mixture("Qwen2Moe", num_experts=4, moe_intermediate_size=48, shared_expert_intermediate_size=48)


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
    "GLM 4.5": (glm, ("model.layers.0.mlp.gate_proj", "model.layers.1.mlp.gate", "model.layers.1.self_attn.q_proj")),
    "GLM 4.7 Flash": (glm_lite, ("model.layers.0.mlp.gate_proj", "model.layers.1.mlp.gate")),
    "DeepSeek-V2": (lambda: deepseek(32, "V2"), ("model.layers.0.mlp.gate_proj", "model.layers.1.mlp.gate")),
    "Mixtral": (mixtral, ("model.layers.1.mlp.gate",)),
    "Qwen2-MoE": (
        qwen2,
        (
            "model.layers.0.mlp.gate",
            "model.layers.0.mlp.shared_expert_gate",
            "model.layers.1.mlp.shared_expert.up_proj",
        ),
    ),
    "DeepSeek-V3 with whole queries": (lambda: deepseek(None), ("model.layers.1.self_attn.q_proj",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_smoothing_alone_leaves_the_logits_as_they_are(family: str, tmp_path: Path) -> None:
    make, smoothed = FAMILIES[family]
    torch.manual_seed(3)
    before, after = logits_around_awq(make(), tmp_path, smoothed)
    assert (after - before).norm() <= 1e-5 * before.norm()


def logits_around_awq(model: Any, folder: Path, smoothed: Collection[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a model's logits before and after AWQ without rounding. smoothed: modules whose weights must change."""
    for name, parameter in model.named_parameters():
        if "norm" in name:  # Of ones and zeros, a norm that is not divided looks like one that is.
            parameter.data.uniform_(0.5, 2.0)
    ids = torch.randint(3, 256, (4, 24))
    # llm-compressor asks where a model came from.
    model.save_pretrained(folder)
    model = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        before = model(ids).logits
    weights = {name: module.weight.clone() for name, module in model.named_modules() if name in smoothed}
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    encoded = Encoded(ids=tuple(map(tuple, ids.tolist())), max_seq_length=24, conversations=False)
    compress_model(modifiers(awq=True), model, tokenizer, encoded, lambda *_, **__: None)
    after_smoothing = dict(model.named_modules())
    assert {name for name in smoothed if not torch.equal(weights[name], after_smoothing[name].weight)} == set(smoothed)
    model.apply(disable_quantization)
    with torch.no_grad():
        after = model(ids).logits
    return before, after


def test_a_model_that_llm_compressor_knows_keeps_its_mappings() -> None:
    config = LlamaConfig(**SMALL, intermediate_size=96)
    assert awq_mappings(LlamaForCausalLM(config)) is None


def modifiers(**wanted: Any) -> Any:
    scheme = with_modifiers(SIMULATED["FP8_DYNAMIC"], **{"smoothing": None, "awq": False, "gptq": False, **wanted})
    return modifiers_for(scheme, scheme.base, targets=["Linear"], ignore=["lm_head"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "forgotten"),
    [
        (qwen2, "model.layers.0.mlp.shared_expert.gate_proj"),
        (glm, "model.layers.0.mlp.gate_proj"),
        (mixtral, "model.layers.0.mlp.gate"),
    ],
)
def test_mappings_that_forget_what_reads_a_norm_are_refused_by_name(
    make: Callable[[], Any], forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fp8cli.calibrator.compressing_recipe.awq_mappings", lambda _model: None)
    with pytest.raises(Failure) as caught:
        list_mappings(modifiers(awq=True), make())
    assert f"forgets `{forgotten}`, which reads it" in caught.value.message


@pytest.mark.slow
def test_what_is_refused_would_have_changed_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fp8cli.calibrator.compressing_recipe.awq_mappings", lambda _model: None)
    monkeypatch.setattr("fp8cli.calibrator.compressing_recipe.refuse_forgotten_readers", lambda *_: None)
    torch.manual_seed(3)
    before, after = logits_around_awq(qwen2(), tmp_path, ())
    assert (after - before).norm() > 0.01 * before.norm()


@pytest.mark.slow
def test_smoothing_that_forgets_a_router_is_refused_too() -> None:
    with pytest.raises(Failure, match=r"SmoothQuant would change this model: .* forgets `model\.layers\.1\.mlp\.gate`"):
        list_mappings(modifiers(smoothing=0.5), glm())


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [{"awq": True}, {"smoothing": 0.5}])
def test_a_model_whose_readers_are_all_named_is_smoothed(wanted: dict[str, Any]) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=96))
    list_mappings(modifiers(**wanted), model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
