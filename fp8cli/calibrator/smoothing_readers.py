"""Whether smoothing leaves a model as it is: all that reads a norm must make up for what the norm is divided by.

Tables of mappings name readers by patterns, and forget some: in llm-compressor 0.14 the shared experts of Qwen2-MoE and
the routers of DeepSeek-V2, whose logits change without a word. So the model is watched while it reads a few tokens:
what takes the very tensor that a norm put out, reads it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fp8cli.worker.failures import Failure

_TOKENS: Final = 8
"""Enough for every module that does not depend on what the tokens are; experts take copies, and are not watched."""

_MATRIX: Final = 2
"""Dimensions of its weight."""


def refuse_forgotten_readers(name: str, mappings: Sequence[tuple[str, Sequence[str]]], model: Any) -> None:
    """Raise Failure for a module that reads a norm which is smoothed, and is not among those that make up for it.

    name: of the modifier. mappings: patterns of what is smoothed, and of what makes up for it.
    """
    from compressed_tensors.utils.match import match_name

    smoothed = {
        module: [balance for smooth, balance in mappings if match_name(module, smooth)]
        for module, layer in model.named_modules()
        if any(match_name(module, smooth) for smooth, _ in mappings) and _weight_dimensions(layer) == 1
    }
    for norm, readers in _readers(model, [*smoothed]).items():
        named = [pattern for balance in smoothed[norm] for pattern in balance]
        for reader in readers:
            if not any(match_name(reader, pattern) for pattern in named):
                raise Failure(
                    kind="model",
                    message=f"llm-compressor's {name} would change this model: it divides the output of `{norm}` "
                    f"and forgets `{reader}`, which reads it",
                    hint="use --gptq, or name the mappings in a recipe",
                )


def _weight_dimensions(module: Any) -> int:
    """Return 1 for a norm, 2 for a Linear or a router. The weight of a Linear is not touched: it may lie on disk."""
    import torch

    return 2 if isinstance(module, torch.nn.Linear) else getattr(getattr(module, "weight", None), "ndim", 0)


def _readers(model: Any, norms: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return by norm the modules with a matrix for weight that take its output, a view of it included."""
    import torch

    places: dict[int, str] = {}
    alive: list[Any] = []
    found: dict[str, list[str]] = {norm: [] for norm in norms}

    def note_output(norm: str, output: Any) -> None:
        alive.append(output)  # Else another tensor would get its place.
        places[output.data_ptr()] = norm

    def note_input(reader: str, module: Any, given: Sequence[Any]) -> None:
        tensors = [each for each in given if isinstance(each, torch.Tensor)]
        norm = places.get(tensors[0].data_ptr()) if tensors else None
        if norm is not None and _weight_dimensions(module) == _MATRIX:
            found[norm].append(reader)

    modules = dict(model.named_modules())
    hooks = [
        modules[norm].register_forward_hook(lambda _module, _given, output, norm=norm: note_output(norm, output))
        for norm in norms
    ]
    hooks += [
        module.register_forward_pre_hook(
            lambda module, given, named, reader=reader: note_input(reader, module, (*given, *named.values())),
            with_kwargs=True,
        )
        for reader, module in modules.items()
    ]
    device = "cpu" if model.device.type == "meta" else model.device  # Of weights that stay on disk.
    try:
        with torch.no_grad():
            model(torch.arange(1, _TOKENS + 1, device=device)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found
