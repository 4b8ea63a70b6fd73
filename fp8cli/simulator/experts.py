"""Experts that transformers holds fused, computed one after the other, so that the input of each can be rounded.

What they compute is what transformers asks of every implementation of experts (`integrations/moe.py`): for a token
and each expert chosen for it, weight · down(act(gate x) · up x), summed. Its own implementations multiply all experts
at once, and nothing comes between their two multiplications.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

Place = Literal["gate_up", "down"]
See = Callable[[int, Place, Tensor], Tensor]
"""Gets the input of an expert's Linears, [tokens, features], and returns what goes into them."""


def compute_one_by_one(module: Any, see: See, *, show_all: bool = False) -> Callable[[], None]:
    """Let a module of fused experts compute each by itself, with `see` in front; returns what undoes it.

    show_all: every expert is shown every token, as llm-compressor calibrates them, whatever the router chose; the
    output is the same.
    """

    def forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        result = torch.zeros_like(hidden_states)
        for expert in range(self.gate_up_proj.shape[0]):
            tokens, ranks = torch.where(top_k_index == expert)
            if show_all:
                _outputs(self, expert, hidden_states, see)
            if len(tokens):
                part = _outputs(self, expert, hidden_states[tokens], see)
                weighted = part * top_k_weights[tokens, ranks, None]
                result.index_add_(0, tokens, weighted.to(result.dtype))
        return result

    module.forward = MethodType(forward, module)

    def undo() -> None:
        del module.forward

    return undo


def _outputs(module: Any, expert: int, hidden: Tensor, see: See) -> Tensor:
    middle = module._apply_gate(linear(see(expert, "gate_up", hidden), module.gate_up_proj[expert]))
    return linear(see(expert, "down", middle), module.down_proj[expert])
