"""The table of architectures against transformers: the same models built again, and real checkpoints saved by it."""

import json
from pathlib import Path
from typing import Any

import architecture_table
import pytest
import torch
import transformers
from safetensors import safe_open
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fp8cli.core.model.architectures import (
    ALWAYS,
    ArchitectureRules,
    evaluate,
    find_rules,
    known_architectures,
    numbers_of,
    pattern_of,
    transformers_version,
)
from fp8cli.core.model.modeling import read_rules, read_tensors, tied_names
from fp8cli.core.model.selection import select

pytestmark = pytest.mark.filterwarnings("ignore")

AGAIN = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma2",
    "gemma3_text",
    "falcon",
    "gpt_neox",
    "mixtral",
    "qwen3_moe",
    "deepseek_v3",
)
"""Architectures that are built again in every variant; `scripts/architecture_table.py --check` does all."""

PROMISED = """
    Llama Mistral Qwen2 Qwen3 Phi Phi3 Gemma Gemma2 Gemma3 Granite Olmo Olmo2 OPT Falcon GPTNeoX Cohere
    Cohere2 DeepseekV2 DeepseekV3 Mixtral Qwen2Moe Qwen3Moe Olmoe StableLm Starcoder2 Glm Glm4 SmolLM3
    Nemotron Ministral Helium Phimoe Ernie4_5_Moe Glm4Moe Jamba
""".split()

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
DEEPSEEK = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 24}
DEEPSEEK |= {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12}
SAVED: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {"head_dim": 32, "tie_word_embeddings": True},
    "phi3": {},
    "falcon": {},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "mlp_only_layers": [0]},
    "deepseek_v3": DEEPSEEK,
}


EXPERT_WEIGHTS = {"mixtral": 24, "qwen3_moe": 12, "deepseek_v3": 12}
"""Three for each of four experts in each sparse layer."""


def expanded(table: dict[str, Any], name: str) -> tuple[Any, Any]:
    """Rows and traits of one architecture, whatever numbers its blocks have."""
    entry = dict(table["architectures"][name])
    return [table["blocks"][number] for number in entry.pop("blocks")], entry


@pytest.mark.parametrize("model_type", AGAIN)
def test_the_table_says_what_transformers_says(model_type: str) -> None:
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    described = {name: architecture_table.describe(model_type, name)}
    fresh = {"transformers": "", "left_out": {}, "model_types": {}, "architectures": described}
    stored = json.loads(architecture_table.TABLE.read_text("utf-8"))
    assert expanded(json.loads(architecture_table.render(fresh)), name) == expanded(stored, name)


def test_the_table_names_the_version_it_was_generated_from() -> None:
    assert transformers_version() == transformers.__version__


def test_the_table_is_small_and_holds_what_is_promised() -> None:
    assert architecture_table.TABLE.stat().st_size <= 80_000
    assert {f"{name}ForCausalLM" for name in PROMISED} <= set(known_architectures())


@pytest.mark.parametrize("name", known_architectures())
def test_every_architecture_can_be_read_and_evaluated(name: str) -> None:
    rules = find_rules({"architectures": [name]})
    assert rules is not None
    assert len(rules.by_pattern) == len(rules.tensors)
    assert rules.value("num_hidden_layers", {"num_hidden_layers": 3}) == 3
    for rule in rules.tensors:
        for expression in (*(rule.shape or ()), rule.count):
            size = rules.dimension(expression, {})
            assert size is None or size >= 0
        if rule.presence == ALWAYS and rule.pattern.count("*") == 2:
            assert rule.count is not None


@pytest.mark.parametrize("model_type", SAVED)
def test_a_checkpoint_saved_by_transformers_is_understood_whole(model_type: str, tmp_path: Path) -> None:
    config = CONFIG_MAPPING[model_type](**SMALL | SAVED[model_type])
    model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        tensors = {name: ("BF16", tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
    written = json.loads((tmp_path / "config.json").read_text())
    rules = find_rules(written)
    assert rules is not None
    selection = select(written, tensors, rules=rules)
    quantized = {each.name for each in selection.decisions if each.action == "quantize"}
    assert {each.action for each in selection.decisions} == {"quantize", "keep"}
    assert not any("not part of" in each.reason for each in selection.decisions)
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name for name in quantized if ".experts." not in name} == linears - {"lm_head.weight"}
    assert len([name for name in quantized if ".experts." in name]) == EXPERT_WEIGHTS.get(model_type, 0)

    fallback = read_rules(written)
    assert fallback is not None
    again = select(written, tensors, rules=fallback)
    assert again.decisions == selection.decisions
    assert again.ignored_modules == selection.ignored_modules


HYBRID = ["conv", "full_attention"]
RARER: dict[str, tuple[str, dict[str, Any]]] = {
    "LFM2 with convolutions": ("lfm2", {"layer_types": HYBRID, "block_multiple_of": 32}),
    "Gemma 4 without inputs per layer": ("gemma4_text", {"hidden_size_per_layer_input": 0}),
    "Gemma 4 with layers that share a cache": ("gemma4_text", {"num_kv_shared_layers": 2, "num_hidden_layers": 4}),
    "Llama 4 Maverick": ("llama4_text", {"interleave_moe_layer_step": 2, "num_local_experts": 4}),
    "Command A with dense layers": (
        "cohere2_moe",
        {"mlp_layer_types": ["dense", "sparse"], "prefix_dense_intermediate_size": 160, "num_experts": 4},
    ),
    "Mellum with dense layers": ("mellum", {"mlp_layer_types": ["dense", "sparse"], "num_local_experts": 4}),
}
"""Models whose layers are not those of the usual config of their architecture."""


@pytest.mark.parametrize("which", RARER)
def test_models_with_other_layers_than_usual_are_whole_and_known_in_every_part(which: str) -> None:
    model_type, keys = RARER[which]
    config = CONFIG_MAPPING[model_type](**SMALL | keys)
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    tied = tied_names(model)
    tensors = {each.name: ("BF16", each.shape) for each in read_tensors(model) if each.name not in tied}
    written = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [name]}
    rules = find_rules(written)
    assert rules is not None
    selection = select(written, tensors, rules=rules)
    assert not any("not part of" in each.reason for each in selection.decisions)
    assert any(each.action == "quantize" for each in selection.decisions)


def test_a_pattern_has_a_star_for_each_number_between_dots() -> None:
    assert pattern_of("model.layers.11.mlp.experts.7.w1.weight") == "model.layers.*.mlp.experts.*.w1.weight"
    assert numbers_of("model.layers.11.mlp.experts.7.w1.weight") == (11, 7)
    assert pattern_of("h.0.conv1d.weight") == "h.*.conv1d.weight"


def test_expressions_are_sums_and_products_of_config_keys() -> None:
    sizes = {"heads": 4, "groups": 2, "width": 8}
    assert evaluate("(heads+2*groups)*width", sizes.get) == 64
    assert evaluate("groups*width//heads", sizes.get) == 4
    assert evaluate("heads*unknown", sizes.get) is None
    with pytest.raises(ValueError, match="no sum or product"):
        evaluate("heads-width", sizes.get)


def test_values_fall_back_to_aliases_then_to_defaults_then_to_their_definition() -> None:
    rules = ArchitectureRules(
        name="Tiny",
        origin="table",
        tensors=(),
        aliases={"hidden_size": "n_embd"},
        defaults={"num_attention_heads": 4, "head_dim": 32},
    )
    assert rules.value("hidden_size", {"n_embd": 64}) == 64
    assert rules.value("n_embd", {"hidden_size": 64}) == 64
    assert rules.value("num_attention_heads", {}) == 4
    assert rules.value("num_key_value_heads", {"num_attention_heads": 8}) == 8
    assert rules.value("head_dim", {"n_embd": 64}) == 32
    assert rules.value("head_dim", {"n_embd": 64, "head_dim": None}) == 16
    assert rules.value("intermediate_size", {}) is None
