"""A model in memory as it would be under a scheme: its weights rounded, and at every call what goes into them.

Nothing is stored in FP8. Activations of Linears are rounded before each call, keys and values on their way into the
cache, and multiplications stay in the model's dtype; compressed-tensors does the same when transformers runs a
checkpoint of this tool. Rows of activations are tokens whatever the rank of the tensor: where a model flattens batch
and tokens, compressed-tensors takes one scale for all of them, and vLLM one for each, as here.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from fp8cli.simulator.caching import watch_cache
from fp8cli.simulator.experts import compute_one_by_one
from fp8cli.simulator.finding import FusedExperts, Place, find_attentions, find_layers
from fp8cli.simulator.observing import Observed
from fp8cli.simulator.rounding import round_activation, round_weight, round_with, scale_of
from fp8cli.simulator.scheme import KvRounding, Rounding, SimulatedScheme
from fp8cli.worker.failures import Failure

_CACHE: Final = Rounding(number="e4m3", sharing="tensor", dynamic=False)
_ROWS_AT_ONCE: Final = 1024
"""Of a weight, in float64, while its noise is summed."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What a simulation did to the weights."""

    noise: Mapping[str, tuple[float, float]]
    """By module: the sum of squares of its weight, and of what rounding changed in it."""


@contextmanager
def simulated(
    model: torch.nn.Module,
    scheme: SimulatedScheme,
    modules: Collection[str],
    observed: Observed | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Iterator[Simulation]:
    """Simulate a scheme in these Linears (see `find_layers`), and in the KV cache of all attention if it has one.

    observed: for schemes that need data, see `observe`. dtype: that of the checkpoint, in which all stored scales are
    and weights are divided by theirs; None: the one that the model computes in. While it lasts, the weights that are
    named are in memory twice; on leaving, the model is bit for bit what it was. Raises Failure for a module that is not
    there or cannot be simulated.
    """
    with ExitStack() as undo:
        yield _apply(model, scheme, modules, observed, dtype, undo)


def simulate(
    model: torch.nn.Module,
    scheme: SimulatedScheme,
    modules: Collection[str],
    observed: Observed | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Simulation:
    """Do the same for good: no weight is kept as it was, and memory holds one model."""
    return _apply(model, scheme, modules, observed, dtype, None)


def _apply(
    model: torch.nn.Module,
    scheme: SimulatedScheme,
    modules: Collection[str],
    observed: Observed | None,
    dtype: torch.dtype | None,
    undo: ExitStack | None,
) -> Simulation:
    # First all that can be refused, then the changes.
    layers = find_layers(model, modules)
    scales = _Scales(scheme=scheme, observed=observed, dtype=dtype)
    scales.check(modules)
    attentions = find_attentions(model) if scheme.kv_cache is not None else {}
    noise: dict[str, tuple[float, float]] = {}
    keep = undo.callback if undo is not None else _forget
    for name, linear in layers.linears.items():
        if scheme.weights is not None:
            before = linear.weight
            rounded = _round(name, before.data, scheme.weights, dtype, noise)
            # A parameter of its own: one that is tied to the embedding leaves the embedding as it is.
            linear.weight = torch.nn.Parameter(rounded, requires_grad=False)
            keep(partial(setattr, linear, "weight", before))
        if scheme.activations is not None:
            hook = partial(_before, scales, name)
            keep(linear.register_forward_pre_hook(hook, with_kwargs=True).remove)
    for experts in layers.experts:
        _apply_to_experts(experts, scales, dtype, noise, keep, keeps=undo is not None)
    for name, attention in attentions.items():
        keep(watch_cache(attention, partial(_keep_rounded, *scales.of_cache(name))))
    return Simulation(noise=noise)


def _apply_to_experts(
    experts: FusedExperts,
    scales: "_Scales",
    dtype: torch.dtype | None,
    noise: dict[str, tuple[float, float]],
    keep: Callable[[Callable[[], object]], object],
    *,
    keeps: bool,
) -> None:
    scheme = scales.scheme
    for expert, parts in experts.parts.items():
        for part in sorted(parts):
            if scheme.weights is not None:
                weight = experts.weight(expert, part)
                rounded = _round(f"{experts.name}.{expert}.{part}", weight, scheme.weights, dtype, noise)
                if keeps:
                    keep(partial(weight.copy_, weight.clone()))
                weight.copy_(rounded)
    if scheme.activations is not None:
        keep(compute_one_by_one(experts, partial(_see, scales, experts)))


@dataclass(frozen=True, kw_only=True)
class _Scales:
    """Where the scales of activations, keys and values come from."""

    scheme: SimulatedScheme
    observed: Observed | None
    dtype: torch.dtype | None

    def check(self, modules: Collection[str]) -> None:
        """Refuse a scheme that needs data which nobody observed."""
        static = self.scheme.activations is not None and not self.scheme.activations.dynamic
        seen = Observed() if self.observed is None else self.observed
        missing = next((name for name in modules if static and name not in seen.inputs), None)
        if missing is not None:
            raise Failure(kind="data", message=f"{self.scheme.name} needs the inputs of `{missing}` observed with data")

    def round_input(self, name: str, values: Tensor) -> Tensor:
        """Round the input of a Linear."""
        rounding = self.scheme.activations
        if rounding is None:
            return values
        scale = None
        if not rounding.dynamic and self.observed is not None:
            scale = scale_of(self._stored(self.observed.inputs[name]), rounding)
        return round_activation(values, rounding, scale)

    def of_cache(self, attention: str) -> tuple[Tensor, Tensor]:
        """Return the scales of keys and values, [1] or [KV heads, 1, 1]."""
        if self.observed is None or attention not in self.observed.keys or self.scheme.kv_cache is None:
            message = f"{self.scheme.name} needs the keys and values of `{attention}` observed with data"
            raise Failure(kind="data", message=message)
        of_heads = self.observed.keys[attention], self.observed.values[attention]
        keys, values = (scale_of(_shared(self._stored(each), self.scheme.kv_cache), _CACHE) for each in of_heads)
        return keys, values

    def _stored(self, amax: Tensor) -> Tensor:
        return amax if self.dtype is None else amax.to(self.dtype)


def _shared(amax: Tensor, kv_cache: KvRounding) -> Tensor:
    return amax.amax().view(1) if kv_cache == "tensor" else amax.view(-1, 1, 1)


def _before(
    scales: _Scales, name: str, _: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (scales.round_input(name, args[0]), *args[1:]), named
    return args, {**named, "input": scales.round_input(name, named["input"])}


def _see(scales: _Scales, experts: FusedExperts, expert: int, place: Place, values: Tensor) -> Tensor:
    # gate_proj and up_proj have the same input, hence the same scale.
    part: Final = "down_proj" if place == "down" else "gate_proj"
    if part not in experts.parts.get(expert, ()):
        return values
    return scales.round_input(f"{experts.name}.{expert}.{part}", values)


def _keep_rounded(key_scale: Tensor, value_scale: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return (
        round_with(keys, key_scale.to(device=keys.device, dtype=keys.dtype), _CACHE.number),
        round_with(values, value_scale.to(device=values.device, dtype=values.dtype), _CACHE.number),
    )


def _round(
    name: str, weight: Tensor, rounding: Rounding, dtype: torch.dtype | None, noise: dict[str, tuple[float, float]]
) -> Tensor:
    """Round one weight, and note what that changed. Raises Failure for one that is not finite."""
    rounded = round_weight(weight if dtype is None else weight.to(dtype), rounding, into=weight.dtype)
    noise[name] = change_of(weight, rounded, name)
    return rounded


def change_of(weight: Tensor, rounded: Tensor, name: str) -> tuple[float, float]:
    """Return the sum of squares of a weight [rows, columns], and that of what rounding changed in it.

    Raises Failure, with the module's name, for a weight that is not finite.
    """
    signal = error = 0.0
    for begin in range(0, len(weight), _ROWS_AT_ONCE):
        rows = weight[begin : begin + _ROWS_AT_ONCE].double()
        signal += float(rows.square().sum())
        error += float(rows.sub_(rounded[begin : begin + _ROWS_AT_ONCE]).square().sum())
    if not math.isfinite(signal + error):
        message = f"the weight of `{name}` has a number that is not finite"
        raise Failure(kind="model", message=message, hint="fp8 inspect --verify shows which")
    return signal, error


def _forget(_: Callable[[], object]) -> None:
    """Keep nothing: the simulation is for good."""
