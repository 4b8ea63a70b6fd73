"""Keys and values on their way into the cache, seen or rounded: a thin cache in front of the one that keeps them.

compressed-tensors does the same in `modeling/kvcache.py`. vLLM rounds at the same place, and every later token reads
what was rounded; so do the tokens of the same prompt here, because attention goes on with what `update` returns.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Kept = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Gets keys and values, [batch, KV heads, tokens, head size], and returns what is kept of them."""


def watch_cache(attention: torch.nn.Module, keep: Kept) -> Callable[[], None]:
    """Put `keep` between an attention module and its cache, or where it has none; returns what undoes it."""

    def before(_: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        return args, {**named, "past_key_values": _Watched(named.get("past_key_values"), keep)}

    handle = attention.register_forward_pre_hook(before, with_kwargs=True)
    return handle.remove


class _Watched:
    """A cache in front of another, or of none."""

    def __init__(self, behind: Any, keep: Kept) -> None:
        self._behind = behind
        self._keep = keep

    def update(self, keys: Tensor, values: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Give keys and values to the cache as they are to be kept, and return what attention goes on with."""
        keys, values = self._keep(keys, values)
        if self._behind is None:
            return keys, values
        kept: tuple[Tensor, Tensor] = self._behind.update(keys, values, *rest, **named)
        return kept

    def __getattr__(self, name: str) -> Any:
        # Whatever else a model asks of its cache.
        return getattr(self._behind, name)
