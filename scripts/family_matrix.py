"""The families of models that are checked end to end: a tiny config of each, in the names of the published one.

Data only. `tests/families.py` builds the checkpoints and `tests/test_families.py` holds them against transformers,
llm-compressor and vLLM; what became of each is recorded in `recorded_families.json`, from which `readme.py` makes
the table of the README.

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
    renamed: tuple[tuple[str, str], ...] = ()
    """Regular expressions over the names transformers saves, each with what the published model says."""
    refused: str | None = None
    """Words of the refusal, where nothing is quantized; the rest is about the others."""
    vllm: str | None = None
    """Why vLLM 0.32 cannot be asked; None: it loads the output, and every parameter is right."""
    transformers: str | None = None
    """Why transformers cannot load the output; None: it does, and its logits are close."""
    oneshot: str | None = None
    """How the output differs on purpose from llm-compressor's `oneshot`; None: tensor for tensor the same."""
    note: str = ""


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
_STATES: Final[dict[str, Any]] = {"mamba_d_state": 16, "mamba_expand": 2}

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
        note="embeddings tied: one table on disk",
    ),
    Family(name="Qwen3", architecture="Qwen3ForCausalLM", model_type="qwen3", config=_TEXT | {"head_dim": 32}),
    Family(name="Phi-3 and 4", architecture="Phi3ForCausalLM", model_type="phi3", config=_TEXT),
    Family(
        name="Gemma 2",
        architecture="Gemma2ForCausalLM",
        model_type="gemma2",
        config=_TEXT | {"head_dim": 32, "tie_word_embeddings": True},
    ),
    Family(
        name="Gemma 3 (text)",
        architecture="Gemma3ForCausalLM",
        model_type="gemma3_text",
        config=_TEXT | {"head_dim": 32, "tie_word_embeddings": True},
    ),
    Family(name="Granite", architecture="GraniteForCausalLM", model_type="granite", config=_TEXT),
    Family(name="OLMo 2", architecture="Olmo2ForCausalLM", model_type="olmo2", config=_TEXT),
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
    Family(name="GPT-NeoX", architecture="GPTNeoXForCausalLM", model_type="gpt_neox", config=_TEXT),
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
    ),
    Family(
        name="DeepSeek-V3",
        architecture="DeepseekV3ForCausalLM",
        model_type="deepseek_v3",
        config=_TEXT | _EXPERTS | _LATENT,
        config_json={"topk_method": "noaux_tc"},
    ),
    Family(
        name="Mixtral",
        architecture="MixtralForCausalLM",
        model_type="mixtral",
        config=_TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2},
        oneshot="it renames the experts' w1, w2, w3 to gate_proj, down_proj, up_proj",
    ),
    Family(
        name="Qwen3-MoE",
        architecture="Qwen3MoeForCausalLM",
        model_type="qwen3_moe",
        config=_TEXT | _EXPERTS | {"num_experts": 4, "head_dim": 32, "mlp_only_layers": [0]},
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
            "head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "layer_types": ["linear_attention", "full_attention"],
        },
        oneshot="it quantizes mlp.shared_expert_gate unless told not to, which vLLM holds unquantized",
    ),
    Family(
        name="OLMoE",
        architecture="OlmoeForCausalLM",
        model_type="olmoe",
        config=_TEXT | {"num_experts": 4, "num_experts_per_tok": 2},
    ),
    Family(
        name="Granite-MoE",
        architecture="GraniteMoeForCausalLM",
        model_type="granitemoe",
        config=_TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2},
        refused="holds all experts in one tensor",
    ),
    Family(
        name="gpt-oss",
        architecture="GptOssForCausalLM",
        model_type="gpt_oss",
        config=_TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32},
        refused="holds all experts in one tensor",
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
        oneshot="it quantizes the Mamba layers and the router, which vLLM holds unquantized",
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
)


def family(name: str) -> Family:
    """Return the family of that name."""
    return next(each for each in FAMILIES if each.name == name)
