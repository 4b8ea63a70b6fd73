"""What happens to each tensor of a checkpoint, and why; compared with what llm-compressor's oneshot really does.

The oneshot runs share one process of their own: llm-compressor reads `CT_ENFORCE_EAGER` when it is imported.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fp8cli.core.model.architectures import find_rules
from fp8cli.core.model.selection import Decision, Selection, rules_for, select
from fp8cli.errors import BadInput, CannotRun, UsageError
from fp8cli.formats.safetensors import read_header

Tensors = dict[str, tuple[str, tuple[int, ...]]]

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
QWEN3_MOE = LLAMA | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 16,
    "num_experts": 3,
    "moe_intermediate_size": 32,
    "mlp_only_layers": [0],
}


def llama_tensors(config: Mapping[str, Any] = LLAMA) -> Tensors:
    """Names and shapes of a tiny llama, written down by hand."""
    tensors: Tensors = {
        "model.embed_tokens.weight": ("BF16", (96, 64)),
        "lm_head.weight": ("BF16", (96, 64)),
        "model.norm.weight": ("BF16", (64,)),
    }
    for layer in range(config["num_hidden_layers"]):
        shapes = {
            "self_attn.q_proj": (64, 64),
            "self_attn.k_proj": (32, 64),
            "self_attn.v_proj": (32, 64),
            "self_attn.o_proj": (64, 64),
            "mlp.gate_proj": (128, 64),
            "mlp.up_proj": (128, 64),
            "mlp.down_proj": (64, 128),
            "input_layernorm": (64,),
            "post_attention_layernorm": (64,),
        }
        for module, shape in shapes.items():
            tensors[f"model.layers.{layer}.{module}.weight"] = ("BF16", shape)
    return tensors


def moe_tensors() -> Tensors:
    """A tiny Qwen3-MoE: layer 0 is dense, layer 1 has three experts and a router."""
    tensors = llama_tensors()
    for layer in range(2):
        for norm in ("q_norm", "k_norm"):
            tensors[f"model.layers.{layer}.self_attn.{norm}.weight"] = ("BF16", (16,))
    for name in [name for name in tensors if name.startswith("model.layers.1.mlp.")]:
        del tensors[name]
    for expert in range(3):
        for projection, shape in (("gate_proj", (32, 64)), ("up_proj", (32, 64)), ("down_proj", (64, 32))):
            tensors[f"model.layers.1.mlp.experts.{expert}.{projection}.weight"] = ("BF16", shape)
    tensors["model.layers.1.mlp.gate.weight"] = ("BF16", (3, 64))
    return tensors


def without(tensors: Tensors, *names: str) -> Tensors:
    missing = set(names) - tensors.keys()
    assert not missing, missing
    return {name: value for name, value in tensors.items() if name not in names}


def choose(config: Mapping[str, Any], tensors: Tensors, **options: Any) -> Selection:
    return select(config, tensors, rules=rules_for(config, tensors), **options)


def decision(selection: Selection, name: str) -> Decision:
    found = [each for each in selection.decisions if each.name == name]
    assert len(found) == 1
    return found[0]


def quantized(selection: Selection) -> set[str]:
    return {each.name for each in selection.decisions if each.action == "quantize"}


def test_every_tensor_has_exactly_one_decision_with_a_reason() -> None:
    tensors = llama_tensors()
    selection = choose(LLAMA, tensors)
    assert [each.name for each in selection.decisions] == list(tensors)
    assert all(each.reason and not each.reason.endswith(".") for each in selection.decisions)


def test_the_linears_of_the_layers_are_quantized_and_nothing_else() -> None:
    selection = choose(LLAMA, llama_tensors())
    assert quantized(selection) == {name for name in llama_tensors() if "_proj." in name}
    assert selection.ignored_modules == ("lm_head",)
    roles = {each.role for each in selection.decisions if each.action == "keep"}
    assert roles == {"output head", "embedding", "norm"}


def test_biases_keep_their_dtype_and_say_so() -> None:
    tensors = llama_tensors() | {"model.layers.0.self_attn.q_proj.bias": ("BF16", (64,))}
    kept = decision(choose(LLAMA, tensors), "model.layers.0.self_attn.q_proj.bias")
    assert (kept.action, kept.role) == ("keep", "bias")


def test_without_the_default_ignore_an_untied_head_is_quantized() -> None:
    selection = choose(LLAMA, llama_tensors(), default_ignore=False)
    assert decision(selection, "lm_head.weight").action == "quantize"
    assert selection.ignored_modules == ()
    assert decision(selection, "model.embed_tokens.weight").action == "keep"


def test_without_the_default_ignore_a_tied_head_is_untied_and_quantized_from_the_embedding() -> None:
    config = LLAMA | {"tie_word_embeddings": True}
    selection = choose(config, without(llama_tensors(), "lm_head.weight"), default_ignore=False)
    head = decision(selection, "lm_head.weight")
    assert (head.action, head.source) == ("quantize", "model.embed_tokens.weight")
    assert not selection.tie_word_embeddings
    assert decision(selection, "model.embed_tokens.weight").action == "keep"


def test_a_tied_head_that_is_stored_twice_is_dropped_and_named_for_comparison() -> None:
    selection = choose(LLAMA | {"tie_word_embeddings": True}, llama_tensors())
    assert decision(selection, "lm_head.weight").action == "drop"
    assert selection.duplicates == (("lm_head.weight", "model.embed_tokens.weight"),)
    assert selection.tie_word_embeddings
    assert selection.ignored_modules == ("lm_head",)


def test_a_head_that_is_not_tied_after_all_is_kept() -> None:
    selection = choose(LLAMA | {"tie_word_embeddings": True}, llama_tensors(), untied=True)
    assert decision(selection, "lm_head.weight").action == "keep"
    assert selection.duplicates == ()
    assert not selection.tie_word_embeddings


def test_tying_follows_the_architecture_when_the_config_does_not_say() -> None:
    silent = {key: value for key, value in LLAMA.items() if key != "tie_word_embeddings"}
    gemma = silent | {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "head_dim": 16}
    without_head = without(llama_tensors(), "lm_head.weight")
    assert choose(gemma, without_head).tie_word_embeddings
    with pytest.raises(BadInput, match=r"`lm_head.weight` is missing"):
        choose(silent, without_head)


def test_ignore_takes_a_module_a_tensor_a_glob_and_a_regular_expression() -> None:
    for pattern, kept in (
        ("model.layers.1.mlp.up_proj", {"model.layers.1.mlp.up_proj"}),
        ("model.layers.1.mlp.up_proj.weight", {"model.layers.1.mlp.up_proj"}),
        ("*.up_proj", {"model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"}),
        (r"re:.*1\.mlp\.up_p", {"model.layers.1.mlp.up_proj"}),
    ):
        selection = choose(LLAMA, llama_tensors(), ignore=[pattern])
        assert set(selection.ignored_modules) == {*kept, "lm_head"}
        assert {f"{module}.weight" for module in kept}.isdisjoint(quantized(selection))
        assert decision(selection, "model.layers.1.mlp.up_proj.weight").reason == f"ignored by `{pattern}`"


def test_a_regular_expression_must_match_from_the_start() -> None:
    with pytest.raises(UsageError, match="matches no module"):
        choose(LLAMA, llama_tensors(), ignore=["re:layers"])


def test_ignored_modules_stand_in_the_order_of_the_model() -> None:
    names = ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.gate_proj", "model.layers.0.mlp.down_proj"]
    selection = choose(LLAMA, llama_tensors(), ignore=names)
    assert selection.ignored_modules == (names[2], names[0], names[1], "lm_head")


def test_ignoring_an_embedding_changes_nothing() -> None:
    selection = choose(LLAMA, llama_tensors(), ignore=["model.embed_tokens"])
    assert selection.ignored_modules == ("lm_head",)


def test_targets_restrict_to_the_modules_named() -> None:
    selection = choose(LLAMA, llama_tensors(), targets=["re:.*mlp"])
    assert quantized(selection) == {name for name in llama_tensors() if ".mlp." in name}
    assert "model.layers.0.self_attn.q_proj" in selection.ignored_modules
    assert "targets" in decision(selection, "model.layers.0.self_attn.q_proj.weight").reason


def test_a_pattern_without_a_match_names_the_nearest_modules() -> None:
    with pytest.raises(UsageError, match=r"`model.layers.0.mlp.dwn_proj` in `ignore` matches no module") as caught:
        choose(LLAMA, llama_tensors(), ignore=["model.layers.0.mlp.dwn_proj"])
    assert "`model.layers.0.mlp.down_proj`" in (caught.value.hint or "")
    with pytest.raises(UsageError) as caught:
        choose(LLAMA, llama_tensors(), ignore=["*.dwn_proj"])
    assert "`*.down_proj`" in (caught.value.hint or "")


def test_a_part_of_the_model_that_holds_others_must_be_written_as_a_glob() -> None:
    with pytest.raises(UsageError) as caught:
        choose(LLAMA, llama_tensors(), ignore=["model.layers.0.mlp"])
    assert "`model.layers.0.mlp.*`" in (caught.value.hint or "")


def test_a_broken_regular_expression_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="is not a regular expression"):
        choose(LLAMA, llama_tensors(), ignore=["re:("])


def test_empty_targets_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="`targets` is empty"):
        choose(LLAMA, llama_tensors(), targets=[])


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"],
)
def test_a_missing_tensor_is_named(name: str) -> None:
    with pytest.raises(BadInput, match=f"`{name}` is missing"):
        choose(LLAMA, without(llama_tensors(), name))


def test_a_missing_layer_is_found_by_the_number_of_layers() -> None:
    with pytest.raises(BadInput, match=r"`model.layers.2.self_attn.q_proj.weight` is missing"):
        choose(LLAMA | {"num_hidden_layers": 3}, llama_tensors())


def test_a_missing_head_is_named_unless_it_is_tied() -> None:
    tensors = without(llama_tensors(), "lm_head.weight")
    with pytest.raises(BadInput, match=r"`lm_head.weight` is missing, and `tie_word_embeddings` is false"):
        choose(LLAMA, tensors)
    assert choose(LLAMA | {"tie_word_embeddings": True}, tensors).ignored_modules == ("lm_head",)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.experts.2.up_proj.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.0.mlp.up_proj.weight",
    ],
)
def test_a_missing_expert_router_or_dense_sibling_is_named(name: str) -> None:
    choose(QWEN3_MOE, moe_tensors())
    with pytest.raises(BadInput, match=f"`{name}` is missing"):
        choose(QWEN3_MOE, without(moe_tensors(), name))


def test_a_shape_that_disagrees_with_the_config_is_named_with_both_shapes() -> None:
    tensors = llama_tensors() | {"model.layers.1.self_attn.k_proj.weight": ("BF16", (64, 64))}
    with pytest.raises(BadInput, match=r"k_proj.weight` has shape \[64, 64\], but config.json promises \[32, 64\]"):
        choose(LLAMA, tensors)


def test_shapes_use_the_defaults_of_the_architecture_for_absent_keys() -> None:
    config = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    with pytest.raises(BadInput, match=r"has shape \[32, 64\], but config.json promises \[64, 64\]"):
        choose(config, llama_tensors())


def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    renamed = {name.replace("model.", "decoder."): value for name, value in llama_tensors().items()}
    with pytest.raises(BadInput, match=r"no Linear weight of `LlamaForCausalLM` is here"):
        choose(LLAMA, renamed)


def test_routers_stay_and_stand_in_ignore_as_llm_compressor_writes_them() -> None:
    selection = choose(QWEN3_MOE, moe_tensors())
    assert decision(selection, "model.layers.1.mlp.gate.weight").role == "router"
    assert selection.ignored_modules == ("model.layers.1.mlp.gate", "lm_head")
    assert "model.layers.1.mlp.experts.2.down_proj.weight" in quantized(selection)
    everything = choose(QWEN3_MOE, moe_tensors(), default_ignore=False)
    assert everything.ignored_modules == ("model.layers.1.mlp.gate",)


def test_a_router_that_is_a_plain_linear_stays_by_default_only() -> None:
    config = QWEN3_MOE | {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "shared_expert_intermediate_size": 32,
    }
    tensors = {name: value for name, value in moe_tensors().items() if "_norm" not in name}
    tensors["model.layers.1.mlp.shared_expert_gate.weight"] = ("BF16", (1, 64))
    for projection, shape in (("gate_proj", (32, 64)), ("up_proj", (32, 64)), ("down_proj", (64, 32))):
        tensors[f"model.layers.1.mlp.shared_expert.{projection}.weight"] = ("BF16", shape)
    selection = choose(config, tensors)
    assert decision(selection, "model.layers.1.mlp.shared_expert_gate.weight").action == "keep"
    assert selection.ignored_modules[-2:] == ("model.layers.1.mlp.shared_expert_gate", "lm_head")
    everything = choose(config, tensors, default_ignore=False)
    assert decision(everything, "model.layers.1.mlp.shared_expert_gate.weight").action == "quantize"


def test_tensors_outside_the_model_are_copied_and_their_parts_ignored() -> None:
    tensors = llama_tensors() | {
        "mtp.fc.weight": ("BF16", (64, 128)),
        "eh_proj.weight": ("BF16", (64, 128)),
        "model.layers.2.self_attn.q_proj.weight": ("BF16", (64, 64)),
    }
    selection = choose(LLAMA, tensors)
    for name in ("mtp.fc.weight", "model.layers.2.self_attn.q_proj.weight"):
        kept = decision(selection, name)
        assert kept.action == "keep"
        assert "not part of `LlamaForCausalLM`" in kept.reason
        assert "copied unchanged" in kept.reason
    assert selection.ignored_modules == ("lm_head", "eh_proj", r"re:^mtp\.", r"re:^model\.layers\.2\.")


def test_rotary_buffers_that_everyone_skips_are_dropped() -> None:
    tensors = llama_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (8,))}
    assert decision(choose(LLAMA, tensors), "model.layers.0.self_attn.rotary_emb.inv_freq").action == "drop"


def test_mask_buffers_are_dropped_where_transformers_lists_them() -> None:
    config = {
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    shapes: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in": (96, 64), "embed_out": (96, 64)}
    layer = "gpt_neox.layers.0"
    shapes |= {f"{layer}.attention.query_key_value": (192, 64), f"{layer}.attention.dense": (64, 64)}
    shapes |= {f"{layer}.mlp.dense_h_to_4h": (128, 64), f"{layer}.mlp.dense_4h_to_h": (64, 128)}
    norms = ("gpt_neox.final_layer_norm", f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm")
    tensors: Tensors = {
        f"{name}.weight": ("F16", shape) for name, shape in (shapes | dict.fromkeys(norms, (64,))).items()
    }
    tensors |= {f"{name}.bias": ("F16", (shape[0],)) for name, shape in shapes.items() if layer in name}
    tensors |= {f"{name}.bias": ("F16", (64,)) for name in norms}
    tensors |= {f"{layer}.attention.masked_bias": ("F16", ())}
    selection = choose(config, tensors)
    assert decision(selection, f"{layer}.attention.masked_bias").action == "drop"
    assert decision(selection, "embed_out.weight").role == "output head"
    assert selection.ignored_modules == ("embed_out", "lm_head")
    assert len(quantized(selection)) == 4


def test_names_without_the_prefix_of_the_bare_model_are_understood() -> None:
    bare = {name.removeprefix("model."): value for name, value in llama_tensors().items()}
    selection = choose(LLAMA, bare, ignore=["model.layers.0.mlp.up_proj"])
    assert "layers.1.mlp.up_proj.weight" in quantized(selection)
    assert "layers.0.mlp.up_proj.weight" not in quantized(selection)
    assert selection.ignored_modules == ("model.layers.0.mlp.up_proj", "lm_head")


def test_the_score_correction_of_deepseek_is_held_in_float32() -> None:
    rules = find_rules({"architectures": ["DeepseekV3ForCausalLM"]})
    assert rules is not None
    assert rules.keep_fp32 == ("e_score_correction_bias",)


def test_fused_experts_are_refused_by_name() -> None:
    config = LLAMA | {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "head_dim": 16}
    tensors = llama_tensors() | {"model.layers.0.mlp.experts.gate_up_proj": ("BF16", (4, 64, 256))}
    with pytest.raises(CannotRun, match=r"all experts in one tensor \[4, 64, 256\], and vLLM 0.32 has no FP8"):
        choose(config, tensors)


def test_experts_that_are_fused_only_in_this_checkpoint_are_refused_too() -> None:
    tensors = moe_tensors() | {"model.layers.1.mlp.experts.gate_up_proj": ("BF16", (3, 64, 64))}
    with pytest.raises(CannotRun, match="holds all experts in one tensor"):
        choose(QWEN3_MOE, tensors)


def test_multimodal_models_whose_parts_are_not_known_are_refused() -> None:
    with pytest.raises(CannotRun, match="`Gemma3nForConditionalGeneration` is a multimodal model whose parts are not"):
        rules_for({"architectures": ["Gemma3nForConditionalGeneration"]}, {})


def test_a_model_without_linears_is_refused() -> None:
    with pytest.raises(CannotRun, match=r"the layers of `GPT2LMHeadModel` are transposed Conv1D"):
        choose({"architectures": ["GPT2LMHeadModel"]}, {"wte.weight": ("F32", (96, 64))})


@pytest.mark.filterwarnings("ignore")
def test_an_architecture_outside_the_table_is_described_by_transformers() -> None:
    config = {
        "architectures": ["PersimmonForCausalLM"],
        "model_type": "persimmon",
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "pad_token_id": None,
    }
    assert find_rules(config) is None
    rules = rules_for(config, {})
    assert rules.origin == "transformers"
    tensors: Tensors = {r.pattern: ("BF16", tuple(int(size or 0) for size in r.shape or ())) for r in rules.tensors}
    selection = select(config, tensors, rules=rules)
    assert quantized(selection) == {
        f"model.layers.0.{name}.weight"
        for name in ("self_attn.query_key_value", "self_attn.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    }
    with pytest.raises(BadInput, match=r"`model.layers.0.mlp.dense_h_to_4h.weight` is missing"):
        select(config, without(tensors, "model.layers.0.mlp.dense_h_to_4h.weight"), rules=rules)


def test_an_architecture_outside_the_table_needs_transformers() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from fp8cli.core.model.selection import rules_for\n"
        "from fp8cli.errors import CannotRun\n"
        "try: rules_for({'architectures': ['NewForCausalLM'], 'model_type': 'new'}, {})\n"
        "except CannotRun as error: print(error.message, '|', error.hint)\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == (
        "`NewForCausalLM` is not in the built-in table, and transformers is not installed to describe it"
        " | pip install 'fp8cli[transformers]'\n"
    )


def test_a_model_nobody_knows_is_judged_by_names_and_shapes() -> None:
    config = LLAMA | {"architectures": ["HomemadeForCausalLM"], "model_type": "homemade"}
    tensors = llama_tensors() | {
        "model.layers.0.mlp.gate.weight": ("BF16", (3, 64)),
        "model.layers.0.conv1d.weight": ("BF16", (64, 4)),
        "model.layers.0.self_attn.q_proj.bias": ("BF16", (64,)),
    }
    selection = choose(config, tensors)
    assert quantized(selection) == {name for name in llama_tensors() if "_proj." in name}
    assert selection.ignored_modules == ("lm_head",)
    assert "by name and shape" in decision(selection, "model.layers.0.mlp.up_proj.weight").reason


def test_selection_loads_neither_torch_nor_transformers_nor_numpy() -> None:
    code = (
        "import sys, json\n"
        "from fp8cli.core.model.selection import rules_for, select\n"
        "config, tensors = json.loads(sys.stdin.read())\n"
        "tensors = {name: (dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}\n"
        "select(config, tensors, rules=rules_for(config, tensors))\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))\n"
    )
    text = json.dumps([LLAMA, llama_tensors()])
    finished = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


ONESHOT = """
import sys, json, torch, transformers
from pathlib import Path
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
transformers.logging.set_verbosity_error()
for work in map(Path, sys.argv[1:]):
    plan = json.loads((work / "plan.json").read_text())
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[plan["model_type"]](**plan["config"])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(work / "source")
    recipe = QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=plan["ignore"])
    oneshot(model=str(work / "source"), recipe=recipe, output_dir=str(work / "output"))
"""
SIZES = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
EXPERTS = {"moe_intermediate_size": 128, "num_experts_per_tok": 2}
DEEPSEEK = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 64}
DEEPSEEK |= {"kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}
RUNS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "config": SIZES, "ignore": ["lm_head"]},
    "llama with more ignored": {
        "model_type": "llama",
        "config": SIZES,
        "ignore": ["lm_head", r"re:.*layers\.1\.mlp", "model.layers.0.self_attn.q_proj", "model.embed_tokens"],
    },
    "tied llama": {"model_type": "llama", "config": SIZES | {"tie_word_embeddings": True}, "ignore": ["lm_head"]},
    "tied llama with its head": {
        "model_type": "llama",
        "config": SIZES | {"tie_word_embeddings": True},
        "ignore": [],
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "config": SIZES | EXPERTS | {"num_experts": 4, "mlp_only_layers": [1]},
        "ignore": ["lm_head"],
    },
    "deepseek_v3": {"model_type": "deepseek_v3", "config": SIZES | EXPERTS | DEEPSEEK, "ignore": ["lm_head"]},
}


@pytest.fixture(scope="module")
def oneshot(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run llm-compressor on every tiny model of `RUNS`; each folder holds `source` and `output`."""
    folders = {name: tmp_path_factory.mktemp("oneshot") for name in RUNS}
    for name, folder in folders.items():
        (folder / "plan.json").write_text(json.dumps(RUNS[name]))
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ONESHOT, *map(str, folders.values())],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CT_ENFORCE_EAGER": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=next(iter(folders.values())),
        check=True,
        capture_output=True,
    )
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_ignore_and_dtypes_agree_with_oneshot(oneshot: dict[str, Path], name: str) -> None:
    source, output = oneshot[name] / "source", oneshot[name] / "output"
    config, written = (json.loads((folder / "config.json").read_text()) for folder in (source, output))
    tensors = {t.name: (t.dtype, t.shape) for t in read_header(source / "model.safetensors").tensors}
    results = {t.name: t.dtype for t in read_header(output / "model.safetensors").tensors}
    ignore = RUNS[name]["ignore"]
    options = {"ignore": [pattern for pattern in ignore if pattern != "lm_head"], "default_ignore": "lm_head" in ignore}
    selection = choose(config, tensors, **options)
    assert list(selection.ignored_modules) == written["quantization_config"]["ignore"]
    assert selection.tie_word_embeddings == written["tie_word_embeddings"]
    assert quantized(selection) == {each for each, dtype in results.items() if dtype == "F8_E4M3"}
    kept = {each.name for each in selection.decisions if each.action == "keep"}
    assert kept == {each for each, dtype in results.items() if dtype != "F8_E4M3" and not each.endswith("_scale")}
    for each in selection.decisions:
        if each.action == "keep":
            assert results[each.name] == ("F32" if "BF16" in each.float32_under else tensors[each.name][0])
