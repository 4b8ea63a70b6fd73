"""Experts that transformers holds fused, computed one after the other, so that the input of each can be rounded.

What they compute is what transformers asks of every implementation of experts (`integrations/moe.py`): for a token
and each expert chosen for it, weight · down(act(gate x) · up x), summed. Its own implementations multiply all experts
at once, and nothing comes between their two multiplications. Llama 4 has weighed the tokens before, sorts them by
experts with zeros where one was not chosen, and sums afterwards.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from fp8cli.simulator.finding import FusedExperts, Place

See = Callable[[int, Place, Tensor], Tensor]
"""Gets the input of an expert's Linears, [tokens, features], and returns what goes into them."""


def compute_one_by_one(experts: FusedExperts, see: See, *, show_all: bool = False) -> Callable[[], None]:
    """Let a module of fused experts compute each by itself, with `see` in front; returns what undoes it.

    show_all: every expert is shown every token, as llm-compressor calibrates them, whatever the router chose; the
    output is the same.
    """

    def outputs(expert: int, hidden: Tensor) -> Tensor:
        middle = experts.gated(linear(see(expert, "gate_up", hidden), experts.matrix("gate_up", expert)))
        return linear(see(expert, "down", middle), experts.matrix("down", expert))

    def of_chosen(_: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        result = torch.zeros_like(hidden_states)
        for expert in range(experts.count):
            tokens, ranks = torch.where(top_k_index == expert)
            if show_all:
                outputs(expert, hidden_states)
            if len(tokens):
                part = outputs(expert, hidden_states[tokens])
                weighted = part * top_k_weights[tokens, ranks, None]
                result.index_add_(0, tokens, weighted.to(result.dtype))
        return result

    def of_sorted(_: Any, hidden_states: Tensor) -> Tensor:
        if show_all:
            for expert in range(experts.count):
                outputs(expert, hidden_states)
        shares = hidden_states.chunk(experts.count)
        return torch.cat([outputs(expert, share) for expert, share in enumerate(shares)])

    experts.module.forward = MethodType(of_sorted if experts.sorted else of_chosen, experts.module)

    def undo() -> None:
        del experts.module.forward

    return undo
