"""KV cache by each architecture's own rule: published figures, vLLM's own classes, transformers' own caches."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from fp8cli.core.model.attention import AttentionLayers, read_attention
from fp8cli.core.serving.kv_cache import ANY_LENGTH, BLOCK_TOKENS, KvCache, read_kv_cache

KIB = 1024

# What published config.json files say, shortened to what counts here.
LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "max_position_embeddings": 163840,
    "torch_dtype": "bfloat16",
}
# Says nothing of heads, of their size or of the pattern: all of it comes from the config class.
GEMMA_3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
}
MISTRAL_7B_V01 = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
QWEN25_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "sliding_window": 131072,
    "max_window_layers": 28,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
}
GPT_OSS_20B = {
    "model_type": "gpt_oss",
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_size": 2880,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
}
QWEN3_NEXT_80B = {
    "model_type": "qwen3_next",
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_size": 2048,
    "full_attention_interval": 4,
    "torch_dtype": "bfloat16",
}
JAMBA = {
    "model_type": "jamba",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "torch_dtype": "bfloat16",
}
FALCON_7B = {
    "model_type": "falcon",
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "hidden_size": 4544,
    "multi_query": True,
    "new_decoder_architecture": False,
    "torch_dtype": "bfloat16",
}
NEMOTRON_H_8B = {
    "model_type": "nemotron_h",
    "num_hidden_layers": 52,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_size": 4096,
    "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
}


@pytest.mark.parametrize(
    ("config", "fp8", "tokens", "expected"),
    [
        # The figure everyone quotes: 2 · 32 layers · 8 heads · 128 · 2 bytes.
        (LLAMA_3_8B, False, 1, 128 * KIB),
        (LLAMA_3_8B, False, 8192, 2**30),
        (LLAMA_3_8B, True, 8192, 2**29),
        # DeepSeek's own: 61 layers · (512 + 64) · 2 bytes.
        (DEEPSEEK_V3, False, 1, 70_272),
        (DEEPSEEK_V3, True, 1, 35_136),
        # 5 layers of 34 attend to all; 4 heads of 256, keys and values, 2 bytes.
        (GEMMA_3_4B, False, 1, 34 * 4 * 256 * 2 * 2),
        (GEMMA_3_4B, False, 32768, (5 * 32768 + 29 * 1024) * 4 * 256 * 2 * 2),
        (MISTRAL_7B_V01, False, 32768, 4096 * 128 * KIB),
        (QWEN25_7B, False, 32768, 32768 * 28 * 4 * 128 * 2 * 2),
        (GPT_OSS_20B, False, 4096, (12 * 4096 + 12 * 128) * 8 * 64 * 2 * 2),
        (QWEN3_NEXT_80B, False, 1000, 1000 * 12 * 2 * 256 * 2 * 2),
        (JAMBA, False, 1000, 1000 * 4 * 8 * 128 * 2 * 2),
        (FALCON_7B, False, 1, 32 * 1 * 64 * 2 * 2),
        (NEMOTRON_H_8B, False, 1, 4 * 8 * 128 * 2 * 2),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else None,
)
def test_a_published_model_keeps_the_bytes_that_its_config_implies(
    config: dict[str, Any], fp8: bool, tokens: int, expected: int
) -> None:
    assert read_kv_cache(config, fp8=fp8).bytes_of(tokens) == expected


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        (LLAMA_3_8B, "32 layers × 8 KV heads of 32 query heads × 128 × 2"),
        (DEEPSEEK_V3, "61 layers × one latent vector of 576 (MLA), the same on every GPU"),
        (
            GEMMA_3_4B,
            (
                "5 layers × 4 KV heads of 8 query heads × 256 × 2; "
                "29 layers × 4 KV heads of 8 query heads × 256 × 2, the last 1,024 tokens only"
            ),
        ),
        (
            JAMBA,
            (
                "4 layers × 8 KV heads of 32 query heads × 128 × 2; "
                "28 layers keep a state of constant size, not counted here"
            ),
        ),
        (FALCON_7B, "32 layers × 1 KV head of 71 query heads × 64 × 2"),
        ({"model_type": "mamba", "num_hidden_layers": 4}, "4 layers keep a state of constant size, not counted here"),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else None,
)
def test_the_rule_is_said_in_words(config: dict[str, Any], rule: str) -> None:
    assert read_kv_cache(config, fp8=False).rule == rule


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "there is no config.json to tell"),
        ({}, "its config.json does not say how many layers there are"),
        ({"model_type": "llama", "num_hidden_layers": 10**12}, "its config.json speaks of 1,000,000,000,000 layers"),
        ({"num_hidden_layers": 2}, "its config.json names no model_type"),
        ({"model_type": "newer", "num_hidden_layers": 2}, "no rule for `newer` is known"),
        ({"model_type": "zamba2", "num_hidden_layers": 2}, "no rule for `zamba2` is known"),
        (
            {"model_type": "t5", "num_hidden_layers": 2, "is_encoder_decoder": True},
            "an encoder-decoder keeps a cache for each side, and no rule for it is known",
        ),
        (
            {"model_type": "deepseek_v32", "num_hidden_layers": 2},
            "its sparse attention keeps an index besides, in a form that vLLM chooses by the GPU",
        ),
        (
            GPT_OSS_20B | {"layer_types": ["sliding_attention"] * 3},
            "its `layer_types` lists 3 layers and the config has 24",
        ),
        (GPT_OSS_20B | {"layer_types": [["x"]] * 24}, "no rule for a layer of `['x']` is known"),
        (GPT_OSS_20B | {"layer_types": [None] * 24}, "no rule for a layer of `None` is known"),
        (GPT_OSS_20B | {"sliding_window": None}, "its config.json names layers with a window and no window"),
        (
            QWEN25_7B | {"use_sliding_window": True, "max_window_layers": 20},
            "vLLM 0.32 refuses a window on some of `qwen2`'s layers only",
        ),
        ({"model_type": "bamba", "num_hidden_layers": 4}, "its config.json does not say which layers attend to what"),
        (LLAMA_3_8B | {"per_layer_config": {"0": {}}}, "its layers differ in a way that no rule is known for"),
    ],
)
def test_what_is_not_known_is_said_to_be_unknown_and_why(config: dict[str, Any] | None, reason: str) -> None:
    cache = read_kv_cache(config, fp8=False)
    assert (cache.unknown, cache.rule) == (reason, f"unknown: {reason}")
    assert cache.bytes_of(1) is None
    assert cache.bytes_to_admit(1) is None
    assert cache.tokens_in(2**40) is None


HOSTILE: tuple[Any, ...] = (None, True, -1, 0, 10**30, 1.5, "\x1b[31m", [], [[]], {}, {"a": []})


@pytest.mark.parametrize("base", [LLAMA_3_8B, DEEPSEEK_V3, GEMMA_3_4B["text_config"], JAMBA, NEMOTRON_H_8B, QWEN25_7B])
@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_no_value_in_a_config_raises(base: dict[str, Any], value: Any) -> None:
    keys = (
        *base,
        "layer_types",
        "sliding_window",
        "rope_scaling",
        "quantization_config",
        "use_bidirectional_attention",
    )
    for key in (*keys, "per_layer_config", "num_kv_shared_layers", "text_config", "dtype", "no_rope_layers"):
        cache = read_kv_cache(base | {key: value}, fp8=False)
        assert (cache.bytes_of(100) is None) == (cache.unknown is not None)


def test_heads_are_split_over_gpus_and_copied_where_they_cannot_be() -> None:
    cache = read_kv_cache(LLAMA_3_8B, fp8=False)
    assert [cache.per_token(gpus) for gpus in (1, 2, 8, 16)] == [128 * KIB, 64 * KIB, 16 * KIB, 16 * KIB]
    latent = read_kv_cache(DEEPSEEK_V3, fp8=False)
    assert [latent.per_token(gpus) for gpus in (1, 8)] == [70_272, 70_272]


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ("bfloat16", "BF16"),
        ("torch.float16", "FP16"),
        ("float32", "16 bits (vLLM serves a float32 model in 16 bits)"),
        (None, "16 bits"),
    ],
)
def test_numbers_are_16_bits_whatever_the_weights_are_unless_the_checkpoint_asks_for_fp8(
    dtype: str | None, words: str
) -> None:
    config = LLAMA_3_8B | {"torch_dtype": dtype}
    assert (read_kv_cache(config, fp8=False).numbers, read_kv_cache(config, fp8=False).number_bytes) == (words, 2)
    assert (read_kv_cache(config, fp8=True).numbers, read_kv_cache(config, fp8=True).number_bytes) == ("FP8", 1)


def test_the_longest_sequence_that_fits_is_the_last_that_vllm_would_admit() -> None:
    for config in (LLAMA_3_8B, GEMMA_3_4B, DEEPSEEK_V3):
        cache = read_kv_cache(config, fp8=False)
        room = 3 * 2**30 + 12345
        tokens = cache.tokens_in(room, in_flight=2048)
        assert tokens is not None
        assert cache.bytes_to_admit(tokens, in_flight=2048) <= room < cache.bytes_to_admit(tokens + 1, in_flight=2048)
    # Nothing but windows: room for a full window is room for any length.
    assert read_kv_cache(MISTRAL_7B_V01, fp8=False).tokens_in(2**30) == ANY_LENGTH
    assert read_kv_cache(LLAMA_3_8B, fp8=False).tokens_in(-1) == 0


@pytest.mark.slow
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 4095, 4096, 5000, 100_000])
def test_vllms_own_classes_ask_for_the_same_bytes(tokens: int, fp8: bool) -> None:
    import torch
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        FullAttentionSpec,
        MLAAttentionSpec,
        SlidingWindowSpec,
    )

    dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
    in_flight = 2048
    vllm = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=tokens),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        max_in_flight_tokens=in_flight,
    )
    shape = {"block_size": BLOCK_TOKENS, "num_kv_heads": 8, "head_size": 128, "dtype": dtype}
    latent = {"block_size": BLOCK_TOKENS, "num_kv_heads": 1, "head_size": 576, "dtype": dtype}
    specs = {
        "full": FullAttentionSpec(**shape),
        "sliding": SlidingWindowSpec(**shape, sliding_window=1024),
        "chunked": ChunkedLocalAttentionSpec(**shape, attention_chunk_size=1024),
        "latent": MLAAttentionSpec(**latent),
    }
    for kind, spec in specs.items():
        is_latent = kind == "latent"
        group = AttentionLayers(
            kind=kind,  # type: ignore[arg-type]
            layers=3,
            kv_heads=1 if is_latent else 8,
            key_size=576 if is_latent else 128,
            value_size=0 if is_latent else 128,
            window=1024 if kind in {"sliding", "chunked"} else None,
        )
        cache = KvCache(rule="", numbers="", number_bytes=1 if fp8 else 2, groups=(group,), unknown=None)
        assert cache.bytes_to_admit(tokens, in_flight=in_flight) == 3 * spec.max_memory_usage_bytes(vllm), kind
        content = cache.bytes_of(tokens)
        assert content is not None
        assert content <= 3 * spec.max_memory_usage_bytes(vllm)
        assert cache.bytes_of(BLOCK_TOKENS) == 3 * spec.page_size_bytes, kind


SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "sliding_window": 8,
    "attention_chunk_size": 8,
}
MORE_SIZES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [3, 7], "mamba_n_heads": 8, "mamba_d_head": 16},
    "dots1": {"head_dim": 16, "n_shared_experts": 1},
    "gemma3n_text": {"num_hidden_layers": 10, "num_kv_shared_layers": 5, "vocab_size_per_layer_input": 96},
    "gemma4_text": {"global_head_dim": 32},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 4, "mamba_n_heads": 8, "mamba_d_head": 16},
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "moe_topk": 2},
    "ministral": {"head_dim": 16},
}
# One layer's kind per architecture is checked here; those that need more than sizes to be built are not.
BUILT = """
    afmoe apertus arcee bamba bitnet bloom cohere cohere2 cwm dots1 ernie4_5 ernie4_5_moe exaone4 falcon flex_olmo
    gemma gemma2 gemma3_text gemma4_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gpt_oss granite granite_swa
    granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe jais2 jamba lfm2
    llama llama4_text mellum minimax_m2 ministral ministral3 mistral mixtral mpt nemotron nemotron_h olmo olmo2 olmo3
    olmo_hybrid olmoe opt phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next
    seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma
""".split()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", BUILT)
def test_transformers_keeps_the_same_heads_in_the_same_layers(model_type: str) -> None:
    """A model of that architecture is built and run; what its cache then holds must be what config.json implied."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = CONFIG_MAPPING[model_type]
    known = cls()
    sizes = {key: value for key, value in SIZES.items() if hasattr(known, key) or key in cls.attribute_map}
    config = cls(**sizes | MORE_SIZES.get(model_type, {}))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        cache = model(torch.arange(24)[None] % 90, use_cache=True).past_key_values
    held = Counter(
        (
            "window" if layer.is_sliding else "all",
            layer.keys.shape[1],
            layer.keys.shape[-1],
            layer.values.shape[-1],
        )
        for layer in cache.layers
        if getattr(layer, "keys", None) is not None and layer.keys.numel()
    )
    # Both what transformers saves in full and what it saves when it leaves out its defaults must be understood.
    for saved in (config.to_dict(), config.to_diff_dict() | {"model_type": config.model_type}):
        attention = read_attention(saved)
        assert attention.unknown is None
        ours = Counter(
            {
                ("all" if group.window is None else "window", group.kv_heads, group.key_size, group.value_size): (
                    group.layers
                )
                for group in attention.groups
            }
        )
        assert ours == held
        assert {group.window for group in attention.groups} <= {None, 8}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "model_type",
    # Gemma 4's heads differ by layer, which vLLM's one number does not say.
    [name for name in BUILT if name != "gemma4_text"]
    + ["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "qwen3_vl_text"],
)
def test_vllm_reads_the_same_heads_and_lengths_from_the_same_config(model_type: str) -> None:
    import vllm.config  # noqa: F401 - the next module cannot be imported before it
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from vllm.transformers_utils.model_arch_config_convertor import (
        MODEL_ARCH_CONFIG_CONVERTORS,
        ModelArchConfigConvertorBase,
    )

    # Nemotron's class leaves its heads open, where every published config says them.
    config = CONFIG_MAPPING[model_type](**{"num_key_value_heads": 8} if model_type == "nemotron" else {})
    reader = MODEL_ARCH_CONFIG_CONVERTORS.get(model_type, ModelArchConfigConvertorBase)(config, config)
    attention = read_attention(config.to_dict())
    assert attention.heads == reader.get_total_num_attention_heads()
    for group in attention.groups:
        assert group.key_size == reader.get_head_size()
        if group.kind != "latent":
            assert group.kv_heads == reader.get_total_num_kv_heads()
    longest, _ = reader.derive_max_model_len_and_key()
    assert attention.longest == (None if longest == float("inf") else longest)


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (LLAMA_3_8B, 8192),
        (DEEPSEEK_V3 | {"rope_scaling": {"type": "yarn", "factor": 40}}, 163840),
        (LLAMA_3_8B | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 8192),
        (LLAMA_3_8B | {"rope_scaling": {"type": "linear", "factor": 4.0}}, 32768),
        (LLAMA_3_8B | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 16384),
        (LLAMA_3_8B | {"rope_scaling": {"type": "linear", "factor": float("inf")}}, 8192),
        (
            LLAMA_3_8B | {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096},
            4096,
        ),
        (LLAMA_3_8B | {"model_max_length": 131072}, 131072),
        ({"model_type": "llama"}, None),
    ],
)
def test_the_longest_context_is_the_one_that_vllm_would_take(config: dict[str, Any], longest: int | None) -> None:
    assert read_attention(config).longest == longest
