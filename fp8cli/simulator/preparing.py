"""A copy of a model as llm-compressor's modifiers leave it, in which every Linear can be in either state.

A choice of what stays in 16 bits asks about many sets of Linears, and modifiers would begin anew with each. Here they
run once, over all of them, and each Linear keeps two weights: the one that came out, and the one that went into the
rounding. The second is the model's own, or where smoothing moved the scale of channels, which it does in what stays in
16 bits too, the one that took it in.

What a run for fewer Linears would change in how those are rounded is not in it: GPTQ rounds for what earlier layers
hand on, and AWQ chooses scales by what its Linears make of them. Only a run for them alone can say that.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from fp8cli.samples.encoding import Encoded
from fp8cli.simulator.applying import change_of
from fp8cli.simulator.finding import find_outputs
from fp8cli.simulator.modifying import modify, weights_of
from fp8cli.simulator.scheme import SimulatedScheme


@dataclass(frozen=True, kw_only=True)
class _Linear:
    """One Linear, and its two weights."""

    module: Any
    rounded: Parameter
    plain: Parameter

    def turn(self, *, on: bool) -> None:
        """Round its weight and what goes into it, or neither."""
        self.module.weight = self.rounded if on else self.plain
        self.module.quantization_enabled = on


class Prepared:
    """A prepared copy of a model; nothing in it is rounded but inside `rounded`."""

    def __init__(self, model: Any, plain: Mapping[str, Tensor]) -> None:
        """Take a copy that `modify` has changed. plain: the weights that went into the rounding."""
        self.model = model
        there = dict(model.named_modules())
        self._linears = {
            name: _Linear(module=there[name], rounded=there[name].weight, plain=Parameter(weight, requires_grad=False))
            for name, weight in plain.items()
        }
        self._caches = [
            module
            for name, module in there.items()
            if name not in plain and getattr(module, "quantization_scheme", None) is not None
        ]
        """Attention modules, which compressed-tensors quantizes the KV cache of."""
        self.noise: Mapping[str, tuple[float, float]] = {
            name: change_of(each.plain.data, each.rounded.data, name) for name, each in self._linears.items()
        }
        """By module: the sum of squares of its weight before it was rounded, and of what that changed in it."""
        self._turn(plain, cache=True, on=False)

    @contextmanager
    def rounded(self, modules: Collection[str], *, cache: bool = True) -> Iterator[None]:
        """Round these Linears, with their inputs, while it lasts. cache: whether the KV cache is rounded too."""
        self._turn(modules, cache=cache, on=True)
        try:
            yield
        finally:
            self._turn(modules, cache=cache, on=False)

    def layers(self, modules: Collection[str]) -> Sequence[Any]:
        """Return what puts out the outputs of these Linears, see `find_outputs`."""
        return find_outputs(self.model, modules)

    def _turn(self, modules: Collection[str], *, cache: bool, on: bool) -> None:
        for name in modules:
            self._linears[name].turn(on=on)
        for module in self._caches if cache else ():
            module.quantization_enabled = on


def prepare(
    model: Any,
    scheme: SimulatedScheme,
    modules: Sequence[str],
    *,
    tokenizer: Any,
    encoded: Encoded,
    seed: int,
    notify: Callable[[int, int], None] = lambda _done, _total: None,
) -> Prepared:
    """Let llm-compressor prepare these Linears in a copy of a model; see `modify`, and for what it raises.

    Where no scale is moved, the copy's weights in 16 bits are the model's own, not copied once more.
    """
    copied = copy.deepcopy(model)
    taken: dict[str, Tensor] = {}

    def take(name: str, weight: Tensor) -> None:
        taken[name] = weight.to(model.device, copy=True)

    modify(
        copied,
        scheme,
        modules,
        tokenizer=tokenizer,
        encoded=encoded,
        seed=seed,
        notify=notify,
        keep=take if scheme.moves_channels else None,
    )
    return Prepared(copied, taken if scheme.moves_channels else weights_of(model, modules))
