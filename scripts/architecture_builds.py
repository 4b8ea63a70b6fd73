"""Models of one architecture on the meta device, for `architecture_table.py`: many configs, no bytes of weights.

Every dimension has a number of its own, and a different one in the second set, so that a size can be traced back
to the config keys it was computed from. Then each switch of the config is turned over once, and each further
number moved once, to see which tensors and sizes depend on it.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fp8cli.core.model import modeling

LAYERS = 8
"""Deep enough for one period of the usual hybrids and for a few dense layers before the first sparse one."""

# Two sets of numbers without a common sum or product, so that no dimension has two readings in both.
DIMENSIONS: dict[str, tuple[int, int]] = {
    "vocab_size": (1013, 1511),
    "hidden_size": (1152, 1040),
    "intermediate_size": (1328, 1616),
    "num_attention_heads": (24, 20),
    "num_key_value_heads": (6, 10),
    "head_dim": (46, 58),
    "num_hidden_layers": (LAYERS, LAYERS),
    "num_experts": (4, 6),
    "num_local_experts": (4, 6),
    "n_routed_experts": (4, 6),
    "moe_num_experts": (4, 6),
    "num_experts_per_tok": (2, 2),
    "moe_topk": (2, 2),
    "n_shared_experts": (3, 7),
    "num_shared_experts": (3, 7),
    "moe_num_shared_experts": (3, 7),
    "n_group": (2, 2),
    "topk_group": (1, 1),
    "moe_intermediate_size": (304, 272),
    "shared_expert_intermediate_size": (432, 368),
    "shared_intermediate_size": (432, 368),
    "moe_shared_expert_intermediate_size": (432, 368),
    "q_lora_rank": (88, 104),
    "kv_lora_rank": (74, 54),
    "qk_nope_head_dim": (30, 42),
    "qk_rope_head_dim": (14, 22),
    "v_head_dim": (38, 26),
    "max_position_embeddings": (2053, 3001),
    "word_embed_proj_dim": (200, 216),
    "ffn_dim": (1328, 1616),
    "mamba_expand": (2, 4),
    "expand": (2, 4),
    "linear_num_key_heads": (4, 8),
    "linear_num_value_heads": (16, 24),
    "linear_key_head_dim": (28, 44),
    "linear_value_head_dim": (50, 54),
}
OPTIONAL_KEYS = ("num_key_value_heads", "head_dim", "moe_intermediate_size")
UNDECLARED = ("head_dim",)
"""Read by some models although their config class does not declare it."""
TURNED: dict[str, tuple[Any, ...]] = {
    "first_k_dense_replace": (0, 1),
    "mlp_only_layers": ([1],),
    "decoder_sparse_step": (2,),
    "num_local_experts": (0,),
    "n_shared_experts": (None, 0),
    "num_shared_experts": (0,),
    "shared_intermediate_size": (0,),
    "q_lora_rank": (None,),
    "mlp_type": ("gated", "default"),
    "num_ln_in_parallel_attn": (1, 2),
    "attn_layer_indices": ([3, 6],),
    "layer_types": (["attention"] * LAYERS, ["mamba", "attention"] * (LAYERS // 2)),
    "layers_block_type": (["attention"] * LAYERS, ["mamba", "attention", "moe", "mlp"] * (LAYERS // 4)),
    "mlp_layer_types": (["dense"] * LAYERS, ["dense", "sparse"] * (LAYERS // 2)),
    "num_kv_shared_layers": (2,),
    "interleave_moe_layer_step": (2,),
    "n_inner": (1777,),
    "word_embed_proj_dim": (1152,),
}
FIXED: dict[str, dict[str, Any]] = {
    "cohere2_moe": {"mlp_layer_types": ["dense", "sparse"] * (LAYERS // 2)},
    "lfm2": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
}
"""Keys without which a config class cannot be built."""
UNTURNED = re.compile(r"^(use_cache|return_dict|is_encoder_decoder|tie_word_embeddings|add_cross_attention)$|^output_")
UNMOVED = re.compile(r"token|chunk|window|position|layer|period|offset|group|per_tok|topk|seed|pretraining_tp")
"""Whole numbers that are no size of anything, or that only mean something beside others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build:
    """One model on the meta device: the keys its config.json would hold, and the tensors it would save."""

    keys: Mapping[str, Any]
    tensors: tuple[modeling.DiskTensor, ...]
    gates: tuple[str, ...]
    layers: int


def build_all(config_class: Any, model_class: Any) -> tuple[list[Build], dict[str, Any]]:
    """Build every variant that the classes accept; the traits of the class come with the first."""
    builds: list[Build] = []
    traits: dict[str, Any] = {}
    for number, keys in enumerate(variants(config_class)):
        try:
            config = config_class(**keys)
            with torch.device("meta"):
                model = model_class(config)
            builds.append(_read(model, keys))
        except Exception:
            # The first build must work; after that, a config class may refuse any combination of its keys.
            if number == 0:
                raise
            continue
        traits = traits or modeling.read_traits(model)
    return builds, traits


def _read(model: Any, keys: Mapping[str, Any]) -> Build:
    """Put down what one model on the meta device would save."""
    tied = modeling.tied_names(model)
    return Build(
        keys=keys,
        tensors=tuple(tensor for tensor in modeling.read_tensors(model) if tensor.name not in tied),
        gates=tuple(modeling.read_gates(model)),
        layers=model.config.get_text_config(decoder=True).num_hidden_layers,
    )


def variants(config_class: Any) -> Iterator[dict[str, Any]]:
    """Keys of each config to build: two full ones, a bare one, then one switch at a time turned over."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    own = {key: key if key in fields else config_class.attribute_map.get(key, key) for key in DIMENSIONS}
    first, second = (
        {own[key]: numbers[which] for key, numbers in DIMENSIONS.items() if own[key] in fields or key in UNDECLARED}
        for which in (0, 1)
    )
    fixed = {"pad_token_id": None} | FIXED.get(config_class.model_type, {})
    first, second = _buildable(config_class, first | fixed), _buildable(config_class, second | fixed)
    yield first | {"tie_word_embeddings": False}
    yield second | {"tie_word_embeddings": False}
    yield {key: value for key, value in first.items() if key not in OPTIONAL_KEYS}
    for key, field in fields.items():
        if isinstance(field.default, bool) and not UNTURNED.search(key):
            yield first | {key: not field.default}
        elif "int" in str(field.type) and key not in first and not UNMOVED.search(key):
            yield first | {key: field.default + 2 if isinstance(field.default, int) else 1776}
        if "int" in str(field.type) and key not in first:
            # A size of 0 often means that there is no such part.
            yield first | {key: 0}
        for value in TURNED.get(key, ()):
            yield first | {key: value}
            yield second | {key: value}
    yield first | {"tie_word_embeddings": True}


def _buildable(config_class: Any, keys: dict[str, Any]) -> dict[str, Any]:
    """Leave out the keys this config class refuses, one after the other."""
    for key in [None, *keys]:
        attempt = {name: value for name, value in keys.items() if name != key}
        with contextlib.suppress(Exception):
            config_class(**attempt)
            return attempt
    return {key: value for key, value in keys.items() if key in ("num_hidden_layers", "n_layer", "vocab_size")}
