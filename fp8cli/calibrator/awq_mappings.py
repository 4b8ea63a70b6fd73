"""AWQ's mappings for models that llm-compressor 0.14 has none for, or some that no set of modules fits.

A mapping divides what a module puts out, channel by channel, and multiplies the weights of the layers that read it. It
leaves the model as it is only where the module's weight is a factor of its output, where all that reads it is named,
and where what lies between keeps the factor.

- OLMo 2 has its norms after attention and MLP: none feeds a linear layer, so values and the MLP's gated product remain.
- OPT has a norm before each (where the config says so), and a ReLU in the MLP, which positive factors pass.
- DeepSeek-V3 mixes dense layers and layers of experts: only the latter's norm is read by a router too, and patterns for
  all layers at once, as llm-compressor has them, wait for a router where there is none. So each layer has its own.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final


def awq_mappings(model: Any) -> list[Any] | None:
    """Return the mappings of a model that llm-compressor's table is wrong for; None where the table is to be used."""
    from llmcompressor.modifiers.transform.awq import AWQMapping

    make = _MAKERS.get(type(model).__name__)
    if make is None:
        return None
    return [AWQMapping(smooth_layer=smooth, balance_layers=balance) for smooth, balance in make(model)]


def _olmo2(_model: Any) -> Iterator[tuple[str, list[str]]]:
    yield r"re:.*\.v_proj$", [r"re:.*\.o_proj$"]
    yield r"re:.*\.up_proj$", [r"re:.*\.down_proj$"]


def _opt(model: Any) -> Iterator[tuple[str, list[str]]]:
    if model.config.do_layer_norm_before and model.config.layer_norm_elementwise_affine:
        yield r"re:.*\.self_attn_layer_norm$", [r"re:.*\.q_proj$", r"re:.*\.k_proj$", r"re:.*\.v_proj$"]
        yield r"re:.*\.layers\.\d+\.final_layer_norm$", [r"re:.*\.fc1$"]
    yield r"re:.*\.v_proj$", [r"re:.*\.out_proj$"]
    if model.config.activation_function == "relu":
        yield r"re:.*\.fc1$", [r"re:.*\.fc2$"]


def _deepseek_v3(model: Any) -> Iterator[tuple[str, list[str]]]:
    names = {name for name, _ in model.named_modules()}
    for number in range(model.config.num_hidden_layers):
        layer = f"model.layers.{number}"
        at = f"re:^{re.escape(layer)}"
        low_rank = f"{layer}.self_attn.q_a_proj" in names
        query = "q_a_proj" if low_rank else "q_proj"
        yield f"{layer}.input_layernorm", [f"{layer}.self_attn.{query}", f"{layer}.self_attn.kv_a_proj_with_mqa"]
        if low_rank:
            yield f"{layer}.self_attn.q_a_layernorm", [f"{layer}.self_attn.q_b_proj"]
        yield f"{layer}.self_attn.kv_a_layernorm", [f"{layer}.self_attn.kv_b_proj"]
        router = [f"{layer}.mlp.gate"] if f"{layer}.mlp.gate" in names else []
        read = [*router, rf"{at}\.mlp\.(.*\.)?gate_proj$", rf"{at}\.mlp\.(.*\.)?up_proj$"]
        yield f"{layer}.post_attention_layernorm", read
    yield r"re:.*\.up_proj$", [r"re:.*\.down_proj$"]


_MAKERS: Final[Mapping[str, Callable[[Any], Iterator[tuple[str, list[str]]]]]] = MappingProxyType(
    {"DeepseekV3ForCausalLM": _deepseek_v3, "OPTForCausalLM": _opt, "Olmo2ForCausalLM": _olmo2}
)
