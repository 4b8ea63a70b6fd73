"""The largest magnitudes that some samples cause in a model: what scales are made of that only data can tell.

Every sample goes through the unrounded model by itself, with attention computed step by step (transformers' `eager`),
and every expert sees every token. So does llm-compressor's calibration (`static_minmax`, `moe_calibrate_all_experts`):
with the same samples and on the same device the scales are the same to the last bit.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fp8cli.simulator.caching import watch_cache
from fp8cli.simulator.experts import compute_one_by_one
from fp8cli.simulator.finding import FusedExperts, Place, find_attentions, find_layers
from fp8cli.simulator.scheme import KvRounding
from fp8cli.worker.failures import Failure


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Largest magnitudes, in the dtype that the model computes in."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Of the input of each Linear, by its name: [1]."""
    keys: dict[str, Tensor] = field(default_factory=dict)
    """Of the keys of each attention module: [KV heads]; of the values likewise."""
    values: dict[str, Tensor] = field(default_factory=dict)


def observe(
    model: Any,
    modules: Collection[str],
    kv_cache: KvRounding | None,
    samples: Iterable[Sequence[int]],
    *,
    notify: Callable[[], None] = lambda: None,
) -> Observed:
    """Run a model over samples and return what it saw: of the inputs of these Linears, and of keys and values.

    modules: see `find_layers`. samples: token ids. notify: told of each sample that is done. Raises Failure naming a
    module that is not there, or that no sample reached.
    """
    observed = Observed()
    layers = find_layers(model, modules)
    attentions = find_attentions(model) if kv_cache is not None else {}
    with ExitStack() as stack:
        for name, module in layers.linears.items():
            hook = partial(_before, observed.inputs, name)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        for experts in layers.experts:
            see = partial(_see, observed.inputs, experts)
            stack.callback(compute_one_by_one(experts, see, show_all=True))
        for name, attention in attentions.items():
            stack.callback(watch_cache(attention, partial(_keep, observed, name)))
        stack.callback(setattr, model.config, "_attn_implementation", model.config._attn_implementation)
        model.config._attn_implementation = "eager"
        device = model.get_input_embeddings().weight.device
        with torch.inference_mode():
            for ids in samples:
                model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
                notify()
    unreached = [name for name in modules if name not in observed.inputs]
    unreached += [name for name in attentions if name not in observed.keys]
    if unreached:
        more = f" and {len(unreached) - 1:,} more" if len(unreached) > 1 else ""
        message = f"no sample reached `{unreached[0]}`{more}, so there is no scale for it"
        raise Failure(kind="data", message=message, hint="take more samples, or leave its activations as they are")
    return observed


def _before(seen: dict[str, Tensor], name: str, _: torch.nn.Module, args: Sequence[Any], named: dict[str, Any]) -> None:
    _add(seen, name, (args[0] if args else named["input"]).abs().amax().view(1))


def _see(seen: dict[str, Tensor], experts: FusedExperts, expert: int, place: Place, values: Tensor) -> Tensor:
    for part in experts.parts.get(expert, ()):
        if (part == "down_proj") == (place == "down") and values.numel():
            _add(seen, f"{experts.name}.{expert}.{part}", values.abs().amax().view(1))
    return values


def _keep(observed: Observed, name: str, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    _add(observed.keys, name, keys.abs().amax(dim=(0, 2, 3)))
    _add(observed.values, name, values.abs().amax(dim=(0, 2, 3)))
    return keys, values


def _add(seen: dict[str, Tensor], name: str, amax: Tensor) -> None:
    seen[name] = torch.maximum(seen[name], amax) if name in seen else amax.clone()
