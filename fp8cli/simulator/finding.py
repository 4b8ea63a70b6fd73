"""The layers of a model in memory, by the names that a checkpoint or transformers has for them.

Two things stand between a checkpoint's names and a model's: transformers renames while it loads (a prefix of the bare
model, Mixtral's `block_sparse_moe`), and it holds the experts of a layer in two parameters of three dimensions, where
a checkpoint has three Linears for each.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Final, Literal

import torch
from transformers import PreTrainedModel

from fp8cli.worker.failures import Failure

ExpertPart = Literal["gate_proj", "up_proj", "down_proj"]
Place = Literal["gate_up", "down"]

_EXPERT: Final = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)")
_PARTS: Final[Mapping[str, ExpertPart]] = {
    "gate_proj": "gate_proj",
    "up_proj": "up_proj",
    "down_proj": "down_proj",
    "w1": "gate_proj",
    "w3": "up_proj",
    "w2": "down_proj",
}
_SORTED: Final = "Llama4TextExperts"
_ATTENTION: Final = re.compile(r"(?:.+\.)?(?:self_attn|attention)")
_KEYS: Final = ("k_proj", "v_proj", "qkv_proj", "kv_b_proj")
"""As in `core.quantizing.calibrated_scales`: attention modules whose cache compressed-tensors quantizes."""


@dataclass(frozen=True, kw_only=True)
class FusedExperts:
    """The experts of one layer, and which of their Linears are meant."""

    name: str
    module: Any
    parts: dict[int, set[ExpertPart]] = field(default_factory=dict)
    """By the number of an expert."""

    @property
    def count(self) -> int:
        """How many experts there are."""
        return len(self.module.gate_up_proj)

    @property
    def sorted(self) -> bool:
        """Whether they get the tokens of each expert one after the other, [experts · tokens, features], as in Llama 4.

        Else they get all tokens once, and who was chosen for each. Weights of Llama 4 are stored as their transposes.
        """
        return type(self.module).__name__ == _SORTED

    def weight(self, expert: int, part: ExpertPart) -> torch.Tensor:
        """Return a view of the weight that a checkpoint has for one Linear, [out, in]."""
        if part == "down_proj":
            return self.matrix("down", expert)
        both = self.matrix("gate_up", expert)
        middle = both.shape[0] // 2
        half: torch.Tensor = both[:middle] if part == "gate_proj" else both[middle:]
        return half

    def matrix(self, place: Place, expert: int) -> torch.Tensor:
        """Return a view of what an expert multiplies with at one place, [out, in]."""
        stored = self.module.down_proj if place == "down" else self.module.gate_up_proj
        found: torch.Tensor = stored.data[expert]
        return found.t() if self.sorted else found

    def gated(self, both: torch.Tensor) -> torch.Tensor:
        """Return act(gate) · up of both, [tokens, 2 · features]."""
        if not self.sorted:
            found: torch.Tensor = self.module._apply_gate(both)
            return found
        gate, up = both.chunk(2, dim=-1)
        weighed: torch.Tensor = self.module.act_fn(gate)
        return up * weighed


@dataclass(frozen=True, kw_only=True)
class Found:
    """The layers that are meant."""

    linears: Mapping[str, torch.nn.Linear]
    experts: tuple[FusedExperts, ...]


def find_layers(model: torch.nn.Module, modules: Collection[str], *, outline: bool = False) -> Found:
    """Return the layers with these names: of `model.named_modules()`, or `….experts.3.up_proj` (`w3`) of an expert.

    outline: whether there need be no numbers in them yet.

    Raises Failure naming one that is not there, is no nn.Linear, or lies in experts of a kind that is not understood.
    """
    there = dict(model.named_modules())
    linears: dict[str, torch.nn.Linear] = {}
    experts: dict[str, FusedExperts] = {}
    for name in modules:
        module = there.get(name)
        if isinstance(module, torch.nn.Linear):
            if not outline:
                _need_values(name, module.weight)
            linears[name] = module
        elif module is not None:
            raise Failure(kind="model", message=f"`{name}` is a {type(module).__name__}, and no nn.Linear")
        else:
            _add_expert(name, there, experts)
    for each in experts.values():
        if not outline:
            _need_values(each.name, each.module.gate_up_proj)
        for number, parts in each.parts.items():
            if len(parts & {"gate_proj", "up_proj"}) == 1:
                message = f"of expert {number} in `{each.name}` only one of gate_proj and up_proj is named"
                raise Failure(kind="model", message=message, hint="they have one input, so name both or neither")
    return Found(linears=linears, experts=tuple(experts.values()))


def find_outputs(model: torch.nn.Module, modules: Collection[str]) -> tuple[torch.nn.Module, ...]:
    """Return what puts out the outputs of these Linears: each itself, and of experts their layer, fused or not."""
    there, found = dict(model.named_modules()), find_layers(model, modules)
    layers = dict.fromkeys(_layer_of(name, there) for name in found.linears)
    return (*layers, *(experts.module for experts in found.experts))


def _layer_of(name: str, there: Mapping[str, torch.nn.Module]) -> torch.nn.Module:
    expert = _EXPERT.fullmatch(name)
    layer = None if expert is None else there.get(expert[1])
    # A mere list of experts is never called.
    is_called = layer is not None and type(layer).forward is not torch.nn.ModuleList.forward
    return layer if is_called and layer is not None else there[name]


def find_attentions(model: torch.nn.Module) -> Mapping[str, torch.nn.Module]:
    """Return the attention modules with a cache that compressed-tensors would quantize. Raises Failure for none.

    Those in towers for pictures are none: what they make is no text, and nothing of it is kept.
    """
    decoder = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    language = {id(module) for module in decoder.modules()}
    found = {
        name: module
        for name, module in model.named_modules()
        if id(module) in language
        and _ATTENTION.fullmatch(name)
        and any(hasattr(module, keys) for keys in _KEYS)
        and "past_key_values" in signature(module.forward).parameters
    }
    if not found:
        message = f"{type(model).__name__} has no attention whose KV cache can be rounded"
        raise Failure(kind="model", message=message, hint="simulate the scheme without +kv")
    return found


def refuse_unfit(outline: torch.nn.Module, weights: Iterable[str], *, cache: bool) -> None:
    """Raise Failure for what cannot be simulated, before there are numbers in a model.

    weights: of Linears, by their names in the checkpoint. cache: whether the KV cache is rounded too.
    """
    find_layers(outline, model_names(outline, weights), outline=True)
    if cache:
        find_attentions(outline)


def model_names(model: Any, weights: Iterable[str]) -> tuple[str, ...]:
    """Return the names that a model has for the Linears whose weights a checkpoint calls so, without `.weight`.

    By transformers' own rules of renaming; those of experts are `….experts.3.up_proj`, whatever they are in the file.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    transforms = get_model_conversion_mapping(model)
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
    there = model.state_dict()
    found = []
    for weight in weights:
        renamed, _ = rename_source_key(weight, renamings, converters, model.base_model_prefix, there)
        expert = _EXPERT.fullmatch(weight.removesuffix(".weight"))
        fused = renamed.rpartition(".")[0]
        if expert is not None and fused.endswith(".experts") and expert[3] in _PARTS:
            found.append(f"{fused}.{expert[2]}.{_PARTS[expert[3]]}")
        else:
            found.append(renamed.removesuffix(".weight"))
    return tuple(found)


def _add_expert(name: str, there: Mapping[str, Any], experts: dict[str, FusedExperts]) -> None:
    match = _EXPERT.fullmatch(name)
    module = None if match is None else there.get(match[1])
    if match is None or module is None or not hasattr(module, "gate_up_proj"):
        raise Failure(kind="model", message=f"the model has no module `{name}`")
    _need_plain_experts(match[1], module)
    number, part = int(match[2]), _PARTS.get(match[3])
    count = len(module.gate_up_proj)
    if part is None or number >= count:
        raise Failure(kind="model", message=f"the {count} experts of `{match[1]}` have no `{match[2]}.{match[3]}`")
    experts.setdefault(match[1], FusedExperts(name=match[1], module=module)).parts.setdefault(number, set()).add(part)


def _need_plain_experts(name: str, module: Any) -> None:
    """Refuse experts that do otherwise than `down(act(gate x) · up x)`, or hold their weights in an unknown way."""
    plain = type(module).__name__ == _SORTED or (
        getattr(module, "has_gate", False)
        and not getattr(module, "has_bias", True)
        and not getattr(module, "is_transposed", True)
        and getattr(module, "is_concatenated", False)
        and hasattr(module, "_apply_gate")
        and list(signature(module.forward).parameters) == ["hidden_states", "top_k_index", "top_k_weights"]
    )
    if not plain:
        message = f"the experts in `{name}` are a {type(module).__name__}, which cannot be simulated yet"
        raise Failure(kind="model", message=message, hint="quantize it and evaluate the checkpoint: fp8 quantize")


def _need_values(name: str, weight: torch.Tensor) -> None:
    if weight.is_meta:
        message = f"the weight of `{name}` is not in memory"
        raise Failure(kind="memory", message=message, hint="a simulation needs the whole model in memory")
    if weight.dtype not in {torch.bfloat16, torch.float16, torch.float32}:
        message = f"the weight of `{name}` is {str(weight.dtype).removeprefix('torch.')}, so it is quantized already"
        raise Failure(kind="model", message=message, hint="load the model as it is: leave such arguments of it out")
