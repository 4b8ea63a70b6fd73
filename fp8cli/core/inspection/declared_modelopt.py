"""What NVIDIA ModelOpt declares, in config.json or in a file of its own: an algorithm, or one for each layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from fp8cli.core.inspection.declaration import Declaration, Group, Numbers
from fp8cli.core.inspection.declared_json import as_mapping, names_under
from fp8cli.core.inspection.declared_numbers import (
    BLOCK_128,
    CHANNEL,
    FP4,
    GROUP_128,
    LINEAR,
    MX,
    MX_RUN_TIME,
    TENSOR,
    TOKEN,
    read_cache,
)

_ALGORITHMS: Final[Mapping[str, Group]] = {
    "FP8": Group(targets=LINEAR, weights=TENSOR, activations=TENSOR),
    "FP8_PER_CHANNEL_PER_TOKEN": Group(targets=LINEAR, weights=CHANNEL, activations=TOKEN),
    # Its name says "weights only"; vLLM takes activations in groups of 128 all the same.
    "FP8_PB_WO": Group(targets=LINEAR, weights=BLOCK_128, activations=GROUP_128),
    "FP8_BLOCK_SCALES": Group(targets=LINEAR, weights=BLOCK_128, activations=GROUP_128),
    "MXFP8": Group(targets=LINEAR, weights=MX, activations=MX_RUN_TIME),
    "NVFP4": Group(targets=LINEAR, weights=FP4, activations=replace(FP4, when="run time")),
    "W4A16_NVFP4": Group(targets=LINEAR, weights=FP4, activations=None),
}


def read_modelopt(block: Mapping[str, object], source: str) -> Declaration:
    """Read a quantization block of ModelOpt, which may be nested in another; `source` is the file it stands in."""
    inner = as_mapping(block.get("quantization")) or block
    algorithm = str(inner.get("quant_algo") or "").upper()
    cache = str(inner.get("kv_cache_quant_algo") or "").upper()
    layers = as_mapping(inner.get("quantized_layers"))
    if algorithm == "MIXED_PRECISION":
        by_algorithm: dict[str, list[str]] = {}
        for name, layer in layers.items():
            by_algorithm.setdefault(str(as_mapping(layer).get("quant_algo") or "").upper(), []).append(name)
        groups = tuple(
            replace(_algorithm(each), targets=tuple(layer_names)) for each, layer_names in by_algorithm.items()
        )
    else:
        groups = (_algorithm(algorithm),) if algorithm else ()
    return Declaration(
        source=source,
        method=str(block.get("quant_method", "modelopt")).lower(),
        name=f"ModelOpt ({algorithm})" if algorithm else "ModelOpt",
        groups=groups,
        ignored=names_under(inner, ("exclude_modules", "ignore")),
        matching="wildcards",
        kv_cache=TENSOR if cache == "FP8" else read_cache(as_mapping(inner.get("kv_cache_scheme"))),
    )


def _algorithm(name: str) -> Group:
    return _ALGORITHMS.get(name, Group(targets=LINEAR, weights=Numbers(kind=None), activations=None))
