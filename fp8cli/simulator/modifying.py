"""A model in memory as llm-compressor's modifiers leave it: GPTQ, AWQ, SmoothQuant, with what they need besides.

Here nothing is imitated. `oneshot` runs on the model as it does when `fp8 quantize` writes a checkpoint, and its
modules, quantized and not packed, go on computing by compressed-tensors' own forward: weights and activations rounded
to FP8 and back. transformers runs the written checkpoint by the same code, so both say the same to the last bit.

This is the one file of the room that needs llm-compressor, and a process imports it only for a scheme with modifiers.
"""

import importlib.metadata
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch

from fp8cli.calibrator.compressing import compress_model
from fp8cli.calibrator.compressing_recipe import modifiers_for
from fp8cli.calibrator.keeping import keeper_of
from fp8cli.calibrator.surroundings import INSTALL, seed_all
from fp8cli.samples.encoding import Encoded
from fp8cli.simulator.applying import change_of
from fp8cli.simulator.finding import find_layers
from fp8cli.simulator.scheme import SimulatedScheme
from fp8cli.worker.failures import Failure

PACKAGE: Final = "llmcompressor"


def need_llm_compressor() -> str:
    """Return its version. Raises Failure where this interpreter has none."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise Failure(kind="packages", message=f"`{sys.executable}` has no `{PACKAGE}`", hint=INSTALL) from None


def modify(
    model: Any,
    scheme: SimulatedScheme,
    modules: Sequence[str],
    *,
    tokenizer: Any,
    encoded: Encoded,
    seed: int,
    notify: Callable[[int, int], None] = lambda _done, _total: None,
    keep: Callable[[str, Any], None] | None = None,
) -> None:
    """Let llm-compressor prepare and round these Linears of a model, for good, and its KV cache if the scheme has one.

    model: in the dtype of its checkpoint. modules: its own names for them. encoded: what it is shown. seed: of the
    draw. notify: parts of the model that are done, and all there are. keep: gets the weight of each of these Linears as
    it is before it is rounded, smoothed if the scheme smooths.

    Raises Failure for a module that is not there, and for a model that llm-compressor cannot take.
    """
    find_layers(model, modules)
    device, parts = model.device, 0

    def tell(event: str, **facts: Any) -> None:
        nonlocal parts
        parts = facts.get("layers", parts)
        done = facts["number"] if event == "layer" else 0
        notify(done, max(parts, done))

    seed_all(seed)
    modifiers = modifiers_for(scheme, scheme.base, targets=modules, ignore=())
    keepers = () if keep is None else (keeper_of(modules, keep),)
    compress_model(modifiers, model, tokenizer, encoded, tell, before_last=keepers)
    _round(model, modules, device)


def changes(model: Any, modified: Any, modules: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    """Return by module the sum of squares of its weight, and of what became of it, in a modified copy of the model."""
    others = find_layers(modified, modules).linears
    weights = weights_of(model, modules)
    return {name: change_of(weight, others[name].weight.data, name) for name, weight in weights.items()}


def weights_of(model: Any, modules: Sequence[str]) -> Mapping[str, Any]:
    """Return the weights of these Linears, by their names; those of experts that transformers fuses as views."""
    layers = find_layers(model, modules)
    weights = {name: linear.weight.data for name, linear in layers.linears.items()}
    for experts in layers.experts:
        for expert, parts in experts.parts.items():
            weights |= {f"{experts.name}.{expert}.{part}": experts.weight(expert, part) for part in sorted(parts)}
    return weights


def _round(model: Any, modules: Sequence[str], device: Any) -> None:
    """Round all weights once instead of at every call, as those of a checkpoint are when it has been loaded."""
    from compressed_tensors.offload import remove_dispatch
    from compressed_tensors.quantization import QuantizationStatus
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    remove_dispatch(model).to(device)
    there = dict(model.named_modules())
    for name in modules:
        module = there.get(name)
        wanted = getattr(module, "quantization_scheme", None)
        if module is None or wanted is None:
            raise Failure(kind="model", message=f"llm-compressor quantized nothing in `{name}`")
        rounded = forward_quantize(module, module.weight.data, "weight", wanted.weights)
        module.weight = torch.nn.Parameter(rounded, requires_grad=False)
        module.quantization_status = QuantizationStatus.DECOMPRESSED
