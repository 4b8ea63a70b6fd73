"""Checkpoints of any size that take no disk: weights are holes in the file, which read as zeros; scales are ones."""

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fp8cli.formats.safetensors import lay_out

Shapes = Iterable[tuple[str, str, tuple[int, ...]]]
"""Name, dtype and shape of every tensor."""

FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
DYNAMIC_GROUP = {
    "targets": ["Linear"],
    "weights": {**FLOAT8, "strategy": "channel", "dynamic": False},
    "input_activations": {**FLOAT8, "strategy": "token", "dynamic": True},
}
FP8_DYNAMIC_BLOCK = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": DYNAMIC_GROUP},
    "ignore": ["lm_head"],
}
FP8_DYNAMIC_CONFIG = {"architectures": ["LlamaForCausalLM"], "quantization_config": FP8_DYNAMIC_BLOCK}

_ONES = {"BF16": b"\x80\x3f", "F32": struct.pack("<f", 1.0)}


def write_weights(file: Path, tensors: Shapes) -> None:
    """Write a file of zeros, but for its scales, each value of which is 1."""
    first_bytes, header = lay_out(tensors, {"format": "pt"})
    file.write_bytes(first_bytes)
    os.truncate(file, header.file_bytes)
    with file.open("r+b") as opened:
        for tensor in header.tensors:
            if "_scale" in tensor.name:
                opened.seek(tensor.begin)
                opened.write(_ONES[tensor.dtype] * tensor.elements)


def write_checkpoint(folder: Path, tensors: Shapes, config: Mapping[str, object] | None) -> Path:
    folder.mkdir(parents=True)
    write_weights(folder / "model.safetensors", tensors)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def llama_config(*, layers: int, vocabulary: int, hidden: int, intermediate: int, kv: int) -> dict[str, object]:
    """Return the config of such a Llama, with heads of 128 as in the large ones, or of 16."""
    head = 128 if hidden % 128 == 0 and kv % 128 == 0 else 16
    return FP8_DYNAMIC_CONFIG | {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": hidden // head,
        "num_key_value_heads": kv // head,
        "head_dim": head,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def llama(
    *, layers: int, vocabulary: int, hidden: int, intermediate: int, kv: int
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name the tensors of a Llama under FP8_DYNAMIC: E4M3 linears with BF16 scales [out, 1], the rest BF16."""
    linears = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    yield "model.embed_tokens.weight", "BF16", (vocabulary, hidden)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (vocabulary, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", "BF16", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", "BF16", (hidden,)
        for name, (rows, columns) in linears.items():
            yield f"{prefix}.{name}.weight", "F8_E4M3", (rows, columns)
            yield f"{prefix}.{name}.weight_scale", "BF16", (rows, 1)
