"""What rounding does to the outputs of some layers: signal and noise, with inputs that nothing else has changed."""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from fp8cli.measurer.budget_forms import Forms


def measure_outputs(forms: Forms, modules: Collection[str], samples: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return [Σ y², Σ (y − ŷ)²] of each layer over all samples: y what it puts out as it is, ŷ when it is rounded.

    modules: Linears that have one input (see `core.budgeting.groups`), so that rounding one changes no other's; experts
    of a layer are one layer. No KV cache is rounded, which would change inputs. samples: token ids of each. The outputs
    of all samples, in the model's dtype, are in main memory meanwhile.
    """
    layers = forms.layers(modules)
    plain: list[list[Tensor]] = [[] for _ in layers]
    _watch(forms.model, layers, samples, lambda place, output: plain[place].append(output.cpu()))
    sums = [[0.0, 0.0] for _ in layers]

    def compare(place: int, output: Tensor) -> None:
        before = plain[place].pop(0).to(output.device)
        sums[place][0] += float(before.double().square().sum())
        sums[place][1] += float((before.double() - output.double()).square().sum())

    with forms.rounded(modules, cache=False):
        _watch(forms.model, layers, samples, compare)
    return sums


def _watch(
    model: Any, layers: Sequence[Any], samples: Sequence[Sequence[int]], see: Callable[[int, Tensor], None]
) -> None:
    """Run a model over samples, and show what each of some layers puts out."""
    with ExitStack() as undo, torch.inference_mode():
        for place, layer in enumerate(layers):
            hook = layer.register_forward_hook(lambda _layer, _inputs, output, place=place: see(place, output))
            undo.callback(hook.remove)
        for ids in samples:
            model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
