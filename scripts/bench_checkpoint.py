"""Checkpoints to measure with: layers of well-known shapes, random weights, no library but Python's own.

`write_checkpoint` makes what `save_pretrained` would: shards in layer order, an index, a config.json. The weights
are one block of normal random BF16 numbers, entered at another place for every tensor; speed does not depend on
their values, and so gigabytes are made as fast as the disk takes them. A sparse checkpoint has its headers and
its sizes but no data on disk: it reads as zeros.
"""

import json
import os
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.formats.safetensors import lay_out

SHARD_BYTES: Final = 1_000_000_000
BF16_BYTES: Final = 2

_BLOCK_ELEMENTS: Final = 1_000_003
"""A prime, so that no two rows of any matrix are alike."""
_STANDARD_DEVIATION: Final = 0.02

TensorShape = tuple[str, tuple[int, ...]]
"""Name and shape of one BF16 tensor."""


@dataclass(frozen=True, kw_only=True)
class Llama:
    """The dimensions of a Llama with its own lm_head; those of Llama-3-8B unless said otherwise."""

    layers: int = 32
    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 128256

    def tensors(self) -> Iterator[TensorShape]:
        """All tensors, in the order of the model."""
        kv_width = self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            yield from _attention(prefix, self.hidden, self.hidden, kv_width)
            yield f"{prefix}.mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield f"{prefix}.mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield f"{prefix}.mlp.down_proj.weight", (self.hidden, self.intermediate)
            yield from _norms(prefix, self.hidden)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocab, self.hidden)

    def config(self) -> dict[str, object]:
        """Its config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 8192,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "vocab_size": self.vocab,
        }


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The dimensions of a Qwen3 mixture of experts: those of Qwen3-235B-A22B, with experts as many as one likes."""

    experts: int
    layers: int = 94
    hidden: int = 4096
    expert_width: int = 1536
    heads: int = 64
    kv_heads: int = 4
    head_width: int = 128
    vocab: int = 151936

    def tensors(self) -> Iterator[TensorShape]:
        """All tensors, in the order of the model."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            yield from _attention(prefix, self.hidden, self.heads * self.head_width, self.kv_heads * self.head_width)
            yield f"{prefix}.self_attn.q_norm.weight", (self.head_width,)
            yield f"{prefix}.self_attn.k_norm.weight", (self.head_width,)
            yield f"{prefix}.mlp.gate.weight", (self.experts, self.hidden)
            for expert in range(self.experts):
                for projection in ("gate_proj", "up_proj"):
                    name = f"{prefix}.mlp.experts.{expert}.{projection}.weight"
                    yield name, (self.expert_width, self.hidden)
                yield f"{prefix}.mlp.experts.{expert}.down_proj.weight", (self.hidden, self.expert_width)
            yield from _norms(prefix, self.hidden)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocab, self.hidden)

    def config(self) -> dict[str, object]:
        """Its config.json."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "dtype": "bfloat16",
            "decoder_sparse_step": 1,
            "head_dim": self.head_width,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": 12288,
            "mlp_only_layers": [],
            "moe_intermediate_size": self.expert_width,
            "num_attention_heads": self.heads,
            "num_experts": self.experts,
            "num_experts_per_tok": 8,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-06,
            "tie_word_embeddings": False,
            "vocab_size": self.vocab,
        }


@dataclass(frozen=True, kw_only=True)
class Made:
    """What was written."""

    folder: Path
    tensors: int
    bytes: int
    """Of all shards, headers too."""
    shards: int


def write_checkpoint(
    folder: Path, model: Llama | Mixture, *, shard_bytes: int = SHARD_BYTES, sparse: bool = False
) -> Made:
    """Write a checkpoint into a new folder. A tensor larger than `shard_bytes` gets a shard of its own."""
    folder.mkdir(parents=True)
    shards = list(_cut_into_shards(model.tensors(), shard_bytes))
    block = memoryview(b"" if sparse else _random_block())
    weight_map = {}
    data_bytes = file_bytes = 0
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map.update(dict.fromkeys((tensor for tensor, _ in tensors), name))
        head, header = lay_out(((tensor, "BF16", shape) for tensor, shape in tensors), {"format": "pt"})
        data_bytes += header.file_bytes - header.data_begin
        file_bytes += header.file_bytes
        with (folder / name).open("wb", buffering=0) as file:
            file.write(head)
            for place, tensor in enumerate([] if sparse else header.tensors):
                _write_cyclically(file.fileno(), block, entry=(number * 7919 + place) * 104_729, size=tensor.bytes)
            file.truncate(header.file_bytes)
    index = {"metadata": {"total_size": data_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
    (folder / "config.json").write_text(json.dumps(model.config(), indent=2) + "\n", "utf-8")
    return Made(folder=folder, tensors=len(weight_map), bytes=file_bytes, shards=len(shards))


def size_in_bytes(model: Llama | Mixture) -> int:
    """Bytes of all weights."""
    return sum(_bytes(shape) for _, shape in model.tensors())


def _attention(prefix: str, hidden: int, query_width: int, kv_width: int) -> Iterator[TensorShape]:
    yield f"{prefix}.self_attn.q_proj.weight", (query_width, hidden)
    yield f"{prefix}.self_attn.k_proj.weight", (kv_width, hidden)
    yield f"{prefix}.self_attn.v_proj.weight", (kv_width, hidden)
    yield f"{prefix}.self_attn.o_proj.weight", (hidden, query_width)


def _norms(prefix: str, hidden: int) -> Iterator[TensorShape]:
    yield f"{prefix}.input_layernorm.weight", (hidden,)
    yield f"{prefix}.post_attention_layernorm.weight", (hidden,)


def _cut_into_shards(tensors: Iterator[TensorShape], shard_bytes: int) -> Iterator[Sequence[TensorShape]]:
    shard: list[TensorShape] = []
    size = 0
    for tensor in tensors:
        added = _bytes(tensor[1])
        if shard and size + added > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += added
    yield shard


def _bytes(shape: Sequence[int]) -> int:
    elements = 1
    for dimension in shape:
        elements *= dimension
    return elements * BF16_BYTES


def _random_block() -> bytes:
    """Normal random numbers as BF16: the upper half of a little-endian float32."""
    numbers = random.Random(0)
    wide = array("f", (numbers.gauss(0, _STANDARD_DEVIATION) for _ in range(_BLOCK_ELEMENTS)))
    if array("H", [1]).tobytes() != b"\1\0":
        wide.byteswap()
    float32 = wide.tobytes()
    block = bytearray(_BLOCK_ELEMENTS * BF16_BYTES)
    block[0::2], block[1::2] = float32[2::4], float32[3::4]
    return bytes(block)


def _write_cyclically(descriptor: int, block: memoryview, *, entry: int, size: int) -> None:
    """Write `size` bytes of the endlessly repeated block, from element `entry` on."""
    position = entry % _BLOCK_ELEMENTS * BF16_BYTES
    while size > 0:
        written = os.write(descriptor, block[position : position + size])
        position = (position + written) % len(block)
        size -= written
