"""AWQ's mappings for models that llm-compressor 0.14 has none for, or some that no set of modules fits.

A mapping divides what a module puts out, channel by channel, and multiplies the weights of the layers that read it. It
leaves the model as it is only where the module's weight is a factor of its output, where all that reads it is named,
and where what lies between keeps the factor.

- OLMo 2 has its norms after attention and MLP: none feeds a linear layer, so values and the MLP's gated product remain.
- OPT has a norm before each (where the config says so), and a ReLU in the MLP, which positive factors pass.
- DeepSeek-V2 and V3, GLM 4.5 and 4.7 mix dense layers and layers of experts: only the latter's norm is read by a router
  too, and patterns for all layers at once, as llm-compressor has them, wait for a router where there is none, or leave
  it out where there is one. So each layer has its own.
- Of Mixtral and Qwen2-MoE llm-compressor forgets the router, and the shared expert with its gate.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final


def awq_mappings(model: Any) -> list[Any] | None:
    """Return the mappings of a model that llm-compressor's table is wrong for; None where the table is to be used."""
    from llmcompressor.modifiers.transform.awq import AWQMapping

    make = _MAKERS.get(type(model).__name__)
    if make is None:
        return None
    return [AWQMapping(smooth_layer=smooth, balance_layers=balance) for smooth, balance in make(model)]


@contextmanager
def without_idle_mappings() -> Iterator[None]:
    """Let AWQ pass over mappings whose readers all stay as they are.

    llm-compressor 0.14 asks whether the reader or what is read is to be quantized. Of values that are, before an output
    projection that is not, it weighs no weight at all, and divides by their number.
    """
    from llmcompressor.modifiers.transform import AWQModifier

    resolve = AWQModifier._set_resolved_mappings  # noqa: SLF001 - there is no other place

    def resolve_fewer(modifier: Any, model: Any) -> None:
        resolve(modifier, model)
        modifier._resolved_mappings = [  # noqa: SLF001 - as above
            mapping
            for mapping in modifier._resolved_mappings  # noqa: SLF001 - as above
            if any(hasattr(layer, "quantization_scheme") for layer in mapping.balance_layers)
        ]

    try:
        AWQModifier._set_resolved_mappings = resolve_fewer  # noqa: SLF001 - as above
        yield
    finally:
        AWQModifier._set_resolved_mappings = resolve  # noqa: SLF001 - as above


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


def _mixture(model: Any) -> Iterator[tuple[str, list[str]]]:
    names = {name for name, _ in model.named_modules()}
    for number in range(model.config.num_hidden_layers):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm", [f"{layer}.self_attn.{each}_proj" for each in "qkv"]
        yield f"{layer}.self_attn.v_proj", [f"{layer}.self_attn.o_proj"]
        yield f"{layer}.post_attention_layernorm", _read_after_attention(layer, names)
    yield r"re:.*\.up_proj$", [r"re:.*\.down_proj$"]


def _latent(model: Any) -> Iterator[tuple[str, list[str]]]:
    names = {name for name, _ in model.named_modules()}
    for number in range(model.config.num_hidden_layers):
        layer = f"model.layers.{number}"
        low_rank = f"{layer}.self_attn.q_a_proj" in names
        query = "q_a_proj" if low_rank else "q_proj"
        yield f"{layer}.input_layernorm", [f"{layer}.self_attn.{query}", f"{layer}.self_attn.kv_a_proj_with_mqa"]
        if low_rank:
            yield f"{layer}.self_attn.q_a_layernorm", [f"{layer}.self_attn.q_b_proj"]
        yield f"{layer}.self_attn.kv_a_layernorm", [f"{layer}.self_attn.kv_b_proj"]
        yield f"{layer}.post_attention_layernorm", _read_after_attention(layer, names)
    yield r"re:.*\.up_proj$", [r"re:.*\.down_proj$"]


def _read_after_attention(layer: str, names: Collection[str]) -> list[str]:
    """Return what reads the norm before the MLP: a router and the gate of a shared expert where there are, and experts.

    Experts are named by patterns: until llm-compressor takes them apart they may be one tensor.
    """
    at = f"re:^{re.escape(layer)}"
    routers = [name for name in (f"{layer}.mlp.gate", f"{layer}.mlp.shared_expert_gate") if name in names]
    return [*routers, rf"{at}\.mlp\.(.*\.)?gate_proj$", rf"{at}\.mlp\.(.*\.)?up_proj$"]


_MAKERS: Final[Mapping[str, Callable[[Any], Iterator[tuple[str, list[str]]]]]] = MappingProxyType(
    {
        "DeepseekV2ForCausalLM": _latent,
        "DeepseekV3ForCausalLM": _latent,
        "Glm4MoeForCausalLM": _mixture,
        "Glm4MoeLiteForCausalLM": _latent,
        "MixtralForCausalLM": _mixture,
        "OPTForCausalLM": _opt,
        "Olmo2ForCausalLM": _olmo2,
        "Qwen2MoeForCausalLM": _mixture,
    }
)
