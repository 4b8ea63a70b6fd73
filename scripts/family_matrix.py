"""The families of models that are checked end to end: a tiny config of each, in the names of the published one.

Data only. `tests/families.py` builds the checkpoints; `tests/test_families.py` holds them against transformers,
llm-compressor and vLLM, and `tests/test_families_running.py` runs them in vLLM. What became of each is recorded here
and in `recorded_families.json`, from which `readme.py` makes the table of the README.

Checkpoints are saved by transformers, which writes the names it once read: `save_pretrained` reverts the mapping in
`transformers/conversion_mapping.py`. Where it leaves something out, `renamed` puts it back, with the source.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

RECORDED: Final = Path(__file__).with_name("recorded_families.json")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: how to build a tiny one, and what is known about it."""

    name: str
    architecture: str
    model_type: str
    config: Mapping[str, Any]
    config_json: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the published config.json that transformers does not write."""
    nested_json: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The same, for the configs within it."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Regular expressions over the names transformers saves, each with what the published model says."""
    tensors: Mapping[str, tuple[int, ...]] | None = None
    """Names and shapes of a model that transformers does not know, and so cannot save; its code is `code`."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Python files that lie beside such a checkpoint, by name."""
    transposed: str | None = None
    """Regular expression over the tensors whose last two dimensions are published the other way round."""
    refused: str | None = None
    """Words of the refusal, where nothing is quantized; the rest is about the others."""
    vllm: str | None = None
    """Why vLLM 0.32 cannot be asked; None: it loads the output, and every parameter is right."""
    vllm_run: str | None = None
    """Why vLLM's CPU build does not run the output that it loads, in its own words between quotes where it was asked;
    None: it does, on text, and computes what it does with the source, within the error of FP8."""
    transformers: str | None = None
    """Why transformers cannot load the output; None: it does, and its logits are close."""
    oneshot: str | None = None
    """How the output differs on purpose from that of llm-compressor's `oneshot`, which is told to ignore heads, routers
    and towers; None: tensor for tensor the same."""


_TEXT: Final[dict[str, Any]] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_EXPERTS: Final[dict[str, Any]] = {"moe_intermediate_size": 128, "num_experts_per_tok": 2}
_LATENT: Final[dict[str, Any]] = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}
_VISION: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    # More than the language model has: layers of a tower must not be taken for layers after its last.
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION: Final[dict[str, Any]] = {
    "depth": 3,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 4,
    "out_hidden_size": 128,
}
_EXPERTS_ON_CPU: Final = (
    'its CPU build says "Unsupported FP8 MoE backend: NONE": for experts in FP8 it has kernels for blocks of 128 only, '
    "and those need AMX"
)
SOUND: Final = "not run: its prompts are sound"
"""Of families that vLLM's engine is not asked about."""
_STATES: Final[dict[str, Any]] = {"mamba_d_state": 16, "mamba_expand": 2}

_LINEAR_ATTENTION: Final[dict[str, Any]] = {
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    # vLLM's kernel takes no smaller ones.
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "layer_types": ["linear_attention", "full_attention"],
}
_WINDOWS: Final[dict[str, Any]] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
_ROUTED: Final[dict[str, Any]] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_SPARSE: Final[dict[str, Any]] = {"index_n_heads": 4, "index_head_dim": 32, "index_topk": 8, "n_shared_experts": 1}
_GEMMA_4: Final[dict[str, Any]] = {
    "head_dim": 32,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "num_kv_shared_layers": 0,
}
_PER_LAYER: Final[dict[str, Any]] = {"hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 320}
_GEMMA_4_EXPERTS: Final[dict[str, Any]] = {
    "hidden_size_per_layer_input": 0,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    # Unlike half of the hidden size, so that a tensor of all experts fits one way only.
    "moe_intermediate_size": 96,
}
_SPARSE_ON_CPU: Final = 'its CPU build says "Sparse Attention is not supported on CPU."'
_TOWER_OF_SIGLIP: Final = ((r"^(model\.)?vision_tower\.", r"\1vision_tower.vision_model."),)
"""As published; PrefixChange of `SiglipVisionModel` in the conversion mapping."""
_SHARED_GATE: Final = (
    "it quantizes mlp.shared_expert_gate, which vLLM holds unquantized, and changes the norms as in Gemma"
)
_INDEXER: Final = "it quantizes the indexer's wk and weights_proj, which vLLM holds unquantized"
_ROUTERS: Final = "it quantizes the router, which vLLM holds unquantized"
_RENAMED: Final = "it renames the experts' w1, w2, w3 to gate_proj, down_proj, up_proj"
_NORMS: Final = "it changes the norms: it adds 1 in BF16 to calibrate them and takes it away again"
_OWN_CODE: Final = "it knows no such model and would have to run the code beside the checkpoint; not tried"
FUSED_ONLY: Final = (
    "it knows the experts of this family fused only, and reads neither these nor those that `oneshot` writes; checked "
    "by taking them back together"
)

_INTERNLM2: Final[dict[str, tuple[int, ...]]] = {
    "model.tok_embeddings.weight": (320, 128),
    **{
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(2)
        for name, shape in {
            "attention.wqkv": (256, 128),
            "attention.wo": (128, 128),
            "feed_forward.w1": (256, 128),
            "feed_forward.w3": (256, 128),
            "feed_forward.w2": (128, 256),
            "attention_norm": (128,),
            "ffn_norm": (128,),
        }.items()
    },
    "model.norm.weight": (128,),
    "output.weight": (320, 128),
}
"""As in internlm/internlm2-7b; wqkv holds, for each KV head, its queries, its key and its value."""

FAMILIES: Final[tuple[Family, ...]] = (
    Family(name="Llama 2 and 3", architecture="LlamaForCausalLM", model_type="llama", config=_TEXT),
    Family(
        name="Mistral",
        architecture="MistralForCausalLM",
        model_type="mistral",
        config=_TEXT | {"head_dim": 48, "sliding_window": None},
    ),
    Family(
        name="Qwen2",
        architecture="Qwen2ForCausalLM",
        model_type="qwen2",
        config=_TEXT | {"tie_word_embeddings": True},
    ),
    Family(name="Qwen3", architecture="Qwen3ForCausalLM", model_type="qwen3", config=_TEXT | {"head_dim": 32}),
    Family(name="Phi-3 and 4", architecture="Phi3ForCausalLM", model_type="phi3", config=_TEXT),
    Family(
        name="Gemma 2",
        architecture="Gemma2ForCausalLM",
        model_type="gemma2",
        config=_TEXT | {"head_dim": 32, "tie_word_embeddings": True},
        oneshot=_NORMS,
    ),
    Family(
        name="Gemma 3 (text)",
        architecture="Gemma3ForCausalLM",
        model_type="gemma3_text",
        config=_TEXT | {"head_dim": 32, "tie_word_embeddings": True},
        oneshot=_NORMS,
    ),
    Family(name="Granite", architecture="GraniteForCausalLM", model_type="granite", config=_TEXT),
    Family(name="OLMo 2", architecture="Olmo2ForCausalLM", model_type="olmo2", config=_TEXT),
    Family(name="GLM 4", architecture="Glm4ForCausalLM", model_type="glm4", config=_TEXT | {"head_dim": 32}),
    Family(
        name="SmolLM 3",
        architecture="SmolLM3ForCausalLM",
        model_type="smollm3",
        config=_TEXT | {"no_rope_layers": [1, 0], "tie_word_embeddings": True},
    ),
    Family(name="EXAONE 4", architecture="Exaone4ForCausalLM", model_type="exaone4", config=_TEXT | _WINDOWS),
    Family(name="Seed-OSS", architecture="SeedOssForCausalLM", model_type="seed_oss", config=_TEXT | {"head_dim": 32}),
    Family(name="OLMo 3", architecture="Olmo3ForCausalLM", model_type="olmo3", config=_TEXT | _WINDOWS),
    Family(
        name="LFM2",
        architecture="Lfm2ForCausalLM",
        model_type="lfm2",
        config=_TEXT
        | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 64, "tie_word_embeddings": True},
        config_json={"conv_dim": 128, "conv_dim_out": 128, "block_dim": 128, "block_ff_dim": 256},
    ),
    Family(
        name="Falcon-H1",
        architecture="FalconH1ForCausalLM",
        model_type="falcon_h1",
        config=_TEXT
        | {"mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1},
    ),
    Family(
        name="Gemma 4 (text)",
        architecture="Gemma4ForCausalLM",
        model_type="gemma4_text",
        config=_TEXT | _GEMMA_4 | _PER_LAYER,
    ),
    Family(
        name="OPT",
        architecture="OPTForCausalLM",
        model_type="opt",
        config=_TEXT | {"ffn_dim": 256, "word_embed_proj_dim": 128, "tie_word_embeddings": True},
    ),
    Family(
        name="GPT-2",
        architecture="GPT2LMHeadModel",
        model_type="gpt2",
        config=_TEXT,
        refused="transposed Conv1D",
    ),
    Family(
        name="Falcon",
        architecture="FalconForCausalLM",
        model_type="falcon",
        config=_TEXT,
        oneshot="compressed-tensors 0.19 leaves the subclass of nn.Linear in BF16 and says it is done",
    ),
    Family(
        name="GPT-NeoX",
        architecture="GPTNeoXForCausalLM",
        model_type="gpt_neox",
        # It has no groups of queries; transformers passes the key over, vLLM believes it.
        config=_TEXT | {"num_key_value_heads": 4},
    ),
    Family(
        name="Command R7B",
        architecture="Cohere2ForCausalLM",
        model_type="cohere2",
        config=_TEXT | {"tie_word_embeddings": True},
    ),
    Family(
        name="DeepSeek-V2",
        architecture="DeepseekV2ForCausalLM",
        model_type="deepseek_v2",
        config=_TEXT | _EXPERTS | _LATENT | {"topk_method": "greedy"},
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="DeepSeek-V3",
        architecture="DeepseekV3ForCausalLM",
        model_type="deepseek_v3",
        config=_TEXT | _EXPERTS | _LATENT,
        config_json={"topk_method": "noaux_tc"},
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="Mixtral",
        architecture="MixtralForCausalLM",
        model_type="mixtral",
        config=_TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2},
        oneshot=_RENAMED,
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="DBRX",
        architecture="DbrxForCausalLM",
        model_type="dbrx",
        config={
            "vocab_size": 320,
            "d_model": 128,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 500000, "clip_qkv": 8},
            "ffn_config": {"ffn_hidden_size": 256, "moe_num_experts": 4, "moe_top_k": 2},
            "tie_word_embeddings": False,
        },
        refused="vLLM 0.32 finds the experts of DBRX in no form, quantized or not",
    ),
    Family(
        name="DeepSeek-V3.2",
        architecture="DeepseekV32ForCausalLM",
        model_type="deepseek_v32",
        config=_TEXT | _EXPERTS | _LATENT | _SPARSE,
        config_json={"topk_method": "noaux_tc"},
        vllm_run=_SPARSE_ON_CPU,
        oneshot=_INDEXER,
    ),
    Family(
        name="GLM 5",
        architecture="GlmMoeDsaForCausalLM",
        model_type="glm_moe_dsa",
        config=_TEXT | _EXPERTS | _LATENT | _SPARSE,
        config_json={"topk_method": "noaux_tc"},
        vllm_run=_SPARSE_ON_CPU,
        oneshot=_INDEXER,
    ),
    Family(
        name="GLM 4.5 to 4.7",
        architecture="Glm4MoeForCausalLM",
        model_type="glm4_moe",
        config=_TEXT | _EXPERTS | _ROUTED | {"head_dim": 32},
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="GLM 4.7 Flash",
        architecture="Glm4MoeLiteForCausalLM",
        model_type="glm4_moe_lite",
        config=_TEXT | _EXPERTS | _LATENT | {"n_shared_experts": 1},
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="MiniMax-M2",
        architecture="MiniMaxM2ForCausalLM",
        model_type="minimax_m2",
        config=_TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "rotary_dim": 16},
        config_json={"scoring_func": "sigmoid", "use_routing_bias": True},
        vllm_run=_EXPERTS_ON_CPU,
        oneshot=_RENAMED,
    ),
    Family(
        name="MiMo-V2-Flash",
        architecture="MiMoV2FlashForCausalLM",
        model_type="mimo_v2_flash",
        config=_TEXT | _EXPERTS | _ROUTED | {"head_dim": 32},
        config_json={
            "hybrid_layer_pattern": [0, 1],
            "moe_layer_freq": [0, 1],
            "layernorm_epsilon": 1e-5,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 32,
            "swa_v_head_dim": 32,
            "swa_rope_theta": 10000,
            "sliding_window_size": 16,
            "add_swa_attention_sink_bias": True,
            "add_full_attention_sink_bias": False,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
        },
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="Ernie 4.5 (experts)",
        architecture="Ernie4_5_MoeForCausalLM",
        model_type="ernie4_5_moe",
        config=_TEXT
        | {
            "moe_intermediate_size": 128,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
        },
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="HunYuan (experts)",
        architecture="HunYuanMoEV1ForCausalLM",
        model_type="hunyuan_v1_moe",
        config=_TEXT | {"head_dim": 32, "num_experts": 4, "moe_topk": 2},
        vllm_run=_EXPERTS_ON_CPU,
        oneshot=_ROUTERS,
    ),
    Family(
        name="LFM2 (experts)",
        architecture="Lfm2MoeForCausalLM",
        model_type="lfm2_moe",
        config=_TEXT | _EXPERTS | {"num_experts": 4, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
        vllm_run=_EXPERTS_ON_CPU,
        oneshot=f"{_RENAMED}, and widens expert_bias to FP32",
    ),
    Family(
        name="Nemotron-H",
        architecture="NemotronHForCausalLM",
        model_type="nemotron_h",
        config=_TEXT
        | {
            "head_dim": 32,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "num_hidden_layers": 3,
            "mamba_num_heads": 8,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 2,
        },
    ),
    Family(
        name="Qwen2-MoE",
        architecture="Qwen2MoeForCausalLM",
        model_type="qwen2_moe",
        config=_TEXT | _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 128},
        vllm_run=_EXPERTS_ON_CPU,
        oneshot="it quantizes mlp.shared_expert_gate, which vLLM holds unquantized",
    ),
    Family(
        name="Qwen3-MoE",
        architecture="Qwen3MoeForCausalLM",
        model_type="qwen3_moe",
        config=_TEXT | _EXPERTS | {"num_experts": 4, "head_dim": 32, "mlp_only_layers": [0]},
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="Qwen3-Next",
        architecture="Qwen3NextForCausalLM",
        model_type="qwen3_next",
        config=_TEXT
        | _EXPERTS
        | {
            "num_experts": 4,
            "shared_expert_intermediate_size": 128,
        }
        | _LINEAR_ATTENTION,
        oneshot=_SHARED_GATE,
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="OLMoE",
        architecture="OlmoeForCausalLM",
        model_type="olmoe",
        config=_TEXT | {"num_experts": 4, "num_experts_per_tok": 2},
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="Granite-MoE",
        architecture="GraniteMoeForCausalLM",
        model_type="granitemoe",
        config=_TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2},
        transformers=FUSED_ONLY,
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="Granite 4 (hybrid)",
        architecture="GraniteMoeHybridForCausalLM",
        model_type="granitemoehybrid",
        config=_TEXT
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 128,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_expand": 2,
            "mamba_chunk_size": 16,
        },
        transformers=FUSED_ONLY,
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="Granite-MoE, shared",
        architecture="GraniteMoeSharedForCausalLM",
        model_type="granitemoeshared",
        config=_TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 128},
        transformers=FUSED_ONLY,
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="gpt-oss",
        architecture="GptOssForCausalLM",
        model_type="gpt_oss",
        config=_TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32},
        refused="has no FP8 experts with biases",
    ),
    Family(
        name="Jamba",
        architecture="JambaForCausalLM",
        model_type="jamba",
        config=_TEXT
        | {
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
        },
        oneshot="it quantizes the Mamba layers, which vLLM holds unquantized",
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="Mamba-2 (Codestral Mamba)",
        architecture="Mamba2ForCausalLM",
        model_type="mamba2",
        config={
            "vocab_size": 320,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 32,
            "state_size": 16,
            "n_groups": 1,
            "expand": 2,
            "chunk_size": 16,
        },
    ),
    Family(
        name="Bamba",
        architecture="BambaForCausalLM",
        model_type="bamba",
        config=_TEXT
        | _STATES
        | {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_chunk_size": 16},
        vllm="it has no Bamba since 0.23",
    ),
    Family(
        name="Qwen2-VL, newer names",
        architecture="Qwen2VLForConditionalGeneration",
        model_type="qwen2_vl",
        config={
            "text_config": _TEXT
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}},
            "vision_config": {"depth": 3, "embed_dim": 64, "hidden_size": 128, "num_heads": 4},
            "tie_word_embeddings": False,
        },
        # As transformers has saved it since 4.52; see `Qwen2VLForConditionalGeneration` in the conversion mapping.
        renamed=((r"^visual\.", "model.visual."), (r"^model\.(?!visual\.)", "model.language_model.")),
    ),
    Family(
        name="Qwen2.5-VL",
        architecture="Qwen2_5_VLForConditionalGeneration",
        model_type="qwen2_5_vl",
        config={
            "text_config": _TEXT
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}},
            "vision_config": _QWEN_VISION | {"fullatt_block_indexes": [0]},
            "tie_word_embeddings": False,
        },
    ),
    Family(
        name="Qwen3-VL",
        architecture="Qwen3VLForConditionalGeneration",
        model_type="qwen3_vl",
        config={
            "text_config": _TEXT | {"head_dim": 32},
            "vision_config": _QWEN_VISION | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
            "tie_word_embeddings": False,
        },
    ),
    Family(
        name="Qwen3-VL-MoE",
        architecture="Qwen3VLMoeForConditionalGeneration",
        model_type="qwen3_vl_moe",
        config={
            "text_config": _TEXT | _EXPERTS | {"head_dim": 32, "num_experts": 4, "moe_intermediate_size": 96},
            "vision_config": _QWEN_VISION | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
            "tie_word_embeddings": False,
        },
        transformers=FUSED_ONLY,
        nested_json={"text_config": {"norm_topk_prob": True}},
        # As in Qwen/Qwen3-VL-30B-A3B-Instruct; `Transpose(1, 2, check_dims=True)` in the conversion mapping.
        transposed=r"experts\.(gate_up_proj|down_proj)$",
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="Qwen3.5",
        architecture="Qwen3_5ForConditionalGeneration",
        model_type="qwen3_5",
        config={
            "text_config": _TEXT | _LINEAR_ATTENTION,
            "vision_config": _QWEN_VISION | {"num_position_embeddings": 16},
            "tie_word_embeddings": False,
        },
        oneshot=_NORMS,
    ),
    Family(
        name="Qwen3.5-MoE",
        architecture="Qwen3_5MoeForConditionalGeneration",
        model_type="qwen3_5_moe",
        config={
            "text_config": _TEXT
            | _LINEAR_ATTENTION
            | _EXPERTS
            | {"num_experts": 4, "shared_expert_intermediate_size": 128},
            "vision_config": _QWEN_VISION | {"num_position_embeddings": 16},
            "tie_word_embeddings": False,
        },
        oneshot=_SHARED_GATE,
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="Llava 1.5",
        architecture="LlavaForConditionalGeneration",
        model_type="llava",
        config={
            "text_config": _TEXT | {"model_type": "llama"},
            "vision_config": _VISION | {"model_type": "clip_vision_model", "projection_dim": 64},
            "tie_word_embeddings": False,
        },
        # As in llava-hf/llava-1.5-7b-hf; PrefixChange of `CLIPVisionModel` in the conversion mapping.
        renamed=((r"^vision_tower\.", "vision_tower.vision_model."),),
    ),
    Family(
        name="Llava 1.6",
        architecture="LlavaNextForConditionalGeneration",
        model_type="llava_next",
        config={
            "text_config": _TEXT | {"model_type": "mistral"},
            "vision_config": _VISION | {"model_type": "clip_vision_model", "projection_dim": 64},
            "tie_word_embeddings": False,
        },
        # As in llava-hf/llava-v1.6-mistral-7b-hf.
        renamed=((r"^vision_tower\.", "vision_tower.vision_model."),),
    ),
    Family(
        name="PaliGemma 2",
        architecture="PaliGemmaForConditionalGeneration",
        model_type="paligemma",
        config={
            "text_config": _TEXT | {"model_type": "gemma2", "head_dim": 32, "tie_word_embeddings": True},
            "vision_config": _VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
            "projection_dim": 128,
        },
        # As in google/paligemma2-3b-pt-224.
        renamed=((r"^vision_tower\.", "vision_tower.vision_model."),),
        oneshot=_NORMS,
    ),
    Family(
        name="Pixtral",
        architecture="LlavaForConditionalGeneration",
        model_type="llava",
        config={
            "text_config": _TEXT | {"model_type": "mistral"},
            "vision_config": _VISION | {"model_type": "pixtral", "head_dim": 16},
            "tie_word_embeddings": False,
        },
    ),
    Family(
        name="Mistral Small 3",
        architecture="Mistral3ForConditionalGeneration",
        model_type="mistral3",
        config={
            "text_config": _TEXT | {"model_type": "mistral"},
            "vision_config": _VISION | {"model_type": "pixtral", "head_dim": 16},
            "tie_word_embeddings": False,
        },
    ),
    Family(
        name="Gemma 3 (vision)",
        architecture="Gemma3ForConditionalGeneration",
        model_type="gemma3",
        config={
            "text_config": _TEXT | {"head_dim": 32, "tie_word_embeddings": True},
            # The published one has no pooling head.
            "vision_config": _VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
            "mm_tokens_per_image": 4,
        },
        # As in google/gemma-3-4b-it; PrefixChange of `SiglipVisionModel`, which stands for that of CLIP.
        renamed=((r"^vision_tower\.", "vision_tower.vision_model."),),
        oneshot=_NORMS,
    ),
    Family(
        name="Gemma 4 (vision)",
        architecture="Gemma4ForConditionalGeneration",
        model_type="gemma4",
        config={
            "text_config": _TEXT | _GEMMA_4 | _PER_LAYER | {"layer_types": ["sliding_attention", "full_attention"]},
            "vision_config": _VISION | {"head_dim": 16, "num_key_value_heads": 4, "position_embedding_size": 16},
            "audio_config": None,
        },
    ),
    Family(
        name="Gemma 4 (vision, experts)",
        architecture="Gemma4ForConditionalGeneration",
        model_type="gemma4",
        config={
            "text_config": _TEXT
            | _GEMMA_4
            | _GEMMA_4_EXPERTS
            | {"layer_types": ["sliding_attention", "full_attention"]},
            "vision_config": _VISION | {"head_dim": 16, "num_key_value_heads": 4, "position_embedding_size": 16},
            "audio_config": None,
        },
        transformers=FUSED_ONLY,
        vllm_run=_EXPERTS_ON_CPU,
        oneshot=_ROUTERS,
    ),
    Family(
        name="GLM 4.5V and 4.6V",
        architecture="Glm4vMoeForConditionalGeneration",
        model_type="glm4v_moe",
        config={
            "text_config": _TEXT
            | _EXPERTS
            | _ROUTED
            | {
                "head_dim": 32,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.5,
                    "mrope_section": [2, 3, 3],
                },
            },
            "vision_config": _VISION | {"depth": 3, "num_heads": 4, "out_hidden_size": 128},
            "tie_word_embeddings": False,
        },
        nested_json={"text_config": {"use_qk_norm": False}},
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="InternVL 3",
        architecture="InternVLForConditionalGeneration",
        model_type="internvl",
        config={
            "text_config": _TEXT | {"model_type": "qwen2"},
            "vision_config": _VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
            "tie_word_embeddings": False,
        },
    ),
    Family(
        name="SmolVLM",
        architecture="SmolVLMForConditionalGeneration",
        model_type="smolvlm",
        config={
            "text_config": _TEXT | {"model_type": "llama"},
            "vision_config": _VISION,
            "scale_factor": 2,
            "tie_word_embeddings": False,
        },
        oneshot="it quantizes the connector, a part of what sees",
    ),
    Family(
        name="Llava OneVision",
        architecture="LlavaOnevisionForConditionalGeneration",
        model_type="llava_onevision",
        config={
            "text_config": _TEXT | {"model_type": "qwen2"},
            "vision_config": _VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
            "tie_word_embeddings": False,
        },
        renamed=_TOWER_OF_SIGLIP,
    ),
    Family(
        name="Command A Vision",
        architecture="Cohere2VisionForConditionalGeneration",
        model_type="cohere2_vision",
        config={
            "text_config": _TEXT | {"model_type": "cohere2", "tie_word_embeddings": True},
            "vision_config": _VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        },
        renamed=_TOWER_OF_SIGLIP,
    ),
    Family(
        name="Llama 4",
        architecture="Llama4ForConditionalGeneration",
        model_type="llama4",
        config={
            "text_config": _TEXT
            | {
                "head_dim": 32,
                "intermediate_size": 192,
                "intermediate_size_mlp": 256,
                "num_local_experts": 4,
                "num_experts_per_tok": 1,
            },
            "vision_config": {
                "hidden_size": 64,
                "intermediate_size": 256,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 28,
                "patch_size": 14,
                "projector_input_dim": 128,
                "projector_output_dim": 128,
                "vision_output_dim": 128,
            },
        },
        vllm_run=_EXPERTS_ON_CPU,
    ),
    Family(
        name="Whisper",
        architecture="WhisperForConditionalGeneration",
        model_type="whisper",
        config={
            "vocab_size": 320,
            "d_model": 128,
            "encoder_layers": 3,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 256,
            "decoder_ffn_dim": 256,
            "num_mel_bins": 16,
            "max_source_positions": 32,
            "max_target_positions": 32,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "decoder_start_token_id": 1,
        },
        vllm_run=SOUND,
    ),
    Family(
        name="Qwen3 embedding",
        architecture="Qwen3Model",
        model_type="qwen3",
        config=_TEXT | {"head_dim": 32},
    ),
    Family(
        name="Qwen2 classifier",
        architecture="Qwen2ForSequenceClassification",
        model_type="qwen2",
        config=_TEXT | {"num_labels": 3, "pad_token_id": 0},
    ),
    Family(
        name="InternLM 2, with code of its own",
        architecture="InternLM2ForCausalLM",
        model_type="internlm2",
        config=_TEXT | {"rms_norm_eps": 1e-5, "rope_theta": 1000000, "hidden_act": "silu", "bias": False},
        config_json={
            "auto_map": {
                "AutoConfig": "configuration_internlm2.InternLM2Config",
                "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
            }
        },
        tensors=_INTERNLM2,
        # vLLM reads the config by it, and has a model class of its own.
        code={
            "configuration_internlm2.py": (
                "from transformers import PretrainedConfig\n\n\n"
                "class InternLM2Config(PretrainedConfig):\n    model_type = 'internlm2'\n"
            )
        },
        transformers=_OWN_CODE,
        oneshot=_OWN_CODE,
    ),
    Family(
        name="BGE (BERT)",
        architecture="BertModel",
        model_type="bert",
        config={"vocab_size": 320, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "max_position_embeddings": 64},
    ),
)


def family(name: str) -> Family:
    """Return the family of that name."""
    return next(each for each in FAMILIES if each.name == name)
