"""Tiny checkpoints for the tests, built by transformers itself from random weights with awkward values in them."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

ALIGNED = {"hidden_size": 128, "intermediate_size": 256}
ODD = {"hidden_size": 208, "intermediate_size": 344}
"""Sizes that are not multiples of 128, as in the reference's own corner cases."""


def llama_config(**changes: object) -> LlamaConfig:
    """Return a two-layer Llama with grouped-query attention."""
    sizes = {"vocab_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(**{**sizes, **ALIGNED, "max_position_embeddings": 64, **changes})


def qwen2_config(**changes: object) -> Qwen2Config:
    """Return a two-layer Qwen2: biases on q, k and v, tied embeddings as the small ones are published."""
    sizes = {"vocab_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2Config(**{**sizes, **ALIGNED, "max_position_embeddings": 64, "tie_word_embeddings": True, **changes})


def save_model(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype = torch.bfloat16, *, max_shard_size: str = "5GB"
) -> Path:
    """Save a random model of that config: all-zero rows, −0.0, huge and tiny rows, biases that are not zero."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter[3] = 0
                parameter[0, ::5] = -0.0
                parameter[1] *= 1000
                parameter[2] *= 1e-4
                parameter[:, -1] *= -3
            elif name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder
