"""The names of scales in the checkpoint at hand, where llm-compressor has other names for the same module.

transformers renames experts when it loads Mixtral and its like, and llm-compressor saves them under the new names. The
streaming engine keeps a checkpoint's own, so the scale of an expert is to lie beside the weight of that name.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final

_OF_EXPERTS: Final = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def weights_of(checkpoint: Path) -> frozenset[str]:
    """Return the names of all tensors of a checkpoint."""
    from safetensors import safe_open

    found: set[str] = set()
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found.update(file.keys())
    return frozenset(found)


def rename(scale: str, weights: Collection[str]) -> str:
    """Return the name of a scale as a checkpoint with these tensors has it; itself, if there is nothing to rename."""
    module, _, kind = scale.rpartition(".")
    parent, _, layer = module.rpartition(".")
    other = f"{parent}.{_OF_EXPERTS.get(layer, layer)}"
    if f"{module}.weight" not in weights and f"{other}.weight" in weights:
        return f"{other}.{kind}"
    return scale
