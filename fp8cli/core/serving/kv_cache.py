"""Bytes of KV cache: what one sequence keeps on each GPU while vLLM answers it.

Every layer keeps, of each token and each head of keys and values, one key and one value:

    bytes per token = Σ layers · kv_heads · (key_size + value_size) · bytes per number

A layer with a window keeps the last tokens only, and latent attention (MLA) one vector in place of all heads. Heads
are split over GPUs, and a head that cannot be split is copied to each of them; so is the latent vector. States of
constant size, which Mamba and linear attention keep, are not counted: their size is vLLM's own choice.

`bytes_of` is the cache's content; `bytes_to_admit` is what vLLM sets aside before it takes a sequence in: whole
blocks of 16 tokens, and in layers with a window also the tokens that are still on their way. Source: vLLM 0.32,
vllm/v1/kv_cache_interface.py, `max_memory_usage_bytes` of FullAttentionSpec, SlidingWindowSpec,
ChunkedLocalAttentionSpec and MLAAttentionSpec. Layers of several kinds vLLM allocates in groups of equal size, and
fills up the last group of each kind; that waste is not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fp8cli.core.model.attention import Attention, AttentionLayers, read_attention

BLOCK_TOKENS: Final = 16
"""Tokens that vLLM allocates at a time."""

ANY_LENGTH: Final = 2**40
"""Tokens, standing for no limit: a model whose layers all have windows or states never needs more room."""

_MODEL_BYTES: Final = 2
_FP8_BYTES: Final = 1

_NUMBERS: Final[Mapping[str, str]] = {
    "bfloat16": "BF16",
    "float16": "FP16",
    # vLLM's --dtype auto turns it into the widest 16-bit type that the GPU has.
    "float32": "16 bits (vLLM serves a float32 model in 16 bits)",
}


@dataclass(frozen=True, kw_only=True)
class KvCache:
    """The KV cache of one model."""

    rule: str
    """How it is counted, in words; or that it is unknown, and why."""
    numbers: str
    """The type of its numbers, in words."""
    number_bytes: int
    groups: tuple[AttentionLayers, ...]
    """Empty where it is unknown, and for models that keep states alone."""
    unknown: str | None
    """Why it is unknown; None: it is known."""

    def per_token(self, gpus: int = 1) -> int | None:
        """Bytes on each of `gpus` GPUs for one more token that all layers keep, while no window is full."""
        return self.bytes_of(1, gpus)

    def bytes_of(self, tokens: int, gpus: int = 1) -> int | None:
        """Bytes that a sequence of `tokens` tokens keeps on each of `gpus` GPUs; None: unknown."""
        if self.unknown is not None:
            return None
        return sum(self._token_bytes(group, gpus) * min(tokens, group.window or tokens) for group in self.groups)

    def bytes_to_admit(self, tokens: int, gpus: int = 1, *, in_flight: int = 0) -> int | None:
        """Bytes that vLLM must have free on each GPU to take in a sequence of `tokens` tokens; None: unknown.

        `in_flight`: tokens that are scheduled and not yet computed, in all batches at once.
        """
        if self.unknown is not None:
            return None
        return sum(
            self._token_bytes(group, gpus) * BLOCK_TOKENS * _blocks(group, tokens, in_flight) for group in self.groups
        )

    def tokens_in(self, room: int, gpus: int = 1, *, in_flight: int = 0) -> int | None:
        """Longest sequence in tokens for which `room` bytes on each GPU are enough; None: unknown."""
        if self.unknown is not None:
            return None
        low, high = 0, ANY_LENGTH + 1
        while high - low > 1:
            middle = (low + high) // 2
            fits = (self.bytes_to_admit(middle, gpus, in_flight=in_flight) or 0) <= room
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _token_bytes(self, group: AttentionLayers, gpus: int) -> int:
        heads = max(1, group.kv_heads // gpus)
        return group.layers * heads * (group.key_size + group.value_size) * self.number_bytes


def _blocks(group: AttentionLayers, tokens: int, in_flight: int) -> int:
    if group.window is None:
        return -(-tokens // BLOCK_TOKENS)
    if group.kind == "chunked":
        return -(-min(group.window + in_flight, tokens) // BLOCK_TOKENS)
    # One more block, because a window need not begin where a block does.
    return -(-min(group.window - 1 + in_flight, tokens) // BLOCK_TOKENS) + 1


def read_kv_cache(config: Mapping[str, object] | None, *, fp8: bool) -> KvCache:
    """Read the rule of a model from its parsed config.json. `fp8`: the checkpoint asks for an FP8 KV cache."""
    return kv_cache_of(read_attention(config), fp8=fp8)


def kv_cache_of(attention: Attention, *, fp8: bool) -> KvCache:
    """Return the KV cache of a model whose attention is known, or say that it is not."""
    return KvCache(
        rule=_rule(attention),
        numbers="FP8" if fp8 else _NUMBERS.get(attention.dtype or "", "16 bits"),
        number_bytes=_FP8_BYTES if fp8 else _MODEL_BYTES,
        groups=attention.groups,
        unknown=attention.unknown,
    )


def _rule(attention: Attention) -> str:
    if attention.unknown is not None:
        return f"unknown: {attention.unknown}"
    parts = [_group_rule(group, attention) for group in attention.groups]
    if attention.sharing_layers:
        parts.append(f"{attention.sharing_layers} layers use the cache of others")
    if attention.state_layers:
        parts.append(f"{attention.state_layers} layers keep a state of constant size, not counted here")
    return "; ".join(parts)


def _group_rule(group: AttentionLayers, attention: Attention) -> str:
    layers = f"{group.layers} {'layer' if group.layers == 1 else 'layers'}"
    if group.kind == "latent":
        return f"{layers} × one latent vector of {group.key_size} (MLA), the same on every GPU"
    of = "" if attention.heads in {None, group.kv_heads} else f" of {attention.heads} query heads"
    words = f"{layers} × {group.kv_heads} KV {'head' if group.kv_heads == 1 else 'heads'}{of} × {group.key_size} × 2"
    if group.kind == "sliding":
        return f"{words}, the last {group.window:,} tokens only"
    if group.kind == "chunked":
        return f"{words}, within chunks of {group.window:,} tokens"
    return words
