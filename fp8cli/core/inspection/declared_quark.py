"""What AMD Quark declares: one way for the whole model, and others for layers that it names."""

from collections.abc import Mapping
from typing import Final

from fp8cli.core.inspection.declaration import Declaration, Group, Numbers, Strategy
from fp8cli.core.inspection.declared_json import as_mapping, as_pair, as_size, as_text, as_texts, names_under
from fp8cli.core.inspection.declared_numbers import LINEAR, read_when

_STRATEGIES: Final[Mapping[object, Strategy]] = {
    "per_tensor": "tensor",
    "per_channel": "channel",
    "per_token": "token",
    "per_block": "block",
    "per_group": "group",
}
_KINDS: Final = {
    "fp8_e4m3": ("E4M3", 8),
    "fp8_e5m2": ("E5M2", 8),
    "fp4": ("FP4", 4),
    "int8": ("INT8", 8),
    "int4": ("INT4", 4),
    "uint4": ("INT4", 4),
}


def read_quark(block: Mapping[str, object], source: str) -> Declaration:
    """Read a quantization block of Quark; `source` is the file it stands in."""
    layers = as_mapping(block.get("layer_quant_config"))
    cached = as_texts(as_mapping(block.get("export")).get("kv_cache_group"))
    groups = [_group(as_mapping(block.get("global_quant_config")), LINEAR)]
    # Layers of the KV cache differ from the others by their outputs alone, and are no scheme of their own.
    groups += [_group(as_mapping(value), (name,)) for name, value in layers.items() if name not in cached]
    outputs = next((as_mapping(as_mapping(layers.get(name)).get("output_tensors")) for name in cached), None)
    return Declaration(
        source=source,
        method="quark",
        name="AMD Quark",
        groups=tuple(group for group in groups if group.weights is not None),
        ignored=names_under(block, ("exclude",)),
        matching="wildcards",
        kv_cache=_numbers(outputs) if outputs else None,
    )


def _group(group: Mapping[str, object], targets: tuple[str, ...]) -> Group:
    weights, activations = group.get("weight"), group.get("input_tensors")
    return Group(
        targets=targets,
        weights=None if weights is None else _numbers(as_mapping(weights)),
        activations=None if activations is None else _numbers(as_mapping(activations)),
    )


def _numbers(arguments: Mapping[str, object]) -> Numbers:
    kind, bits = _KINDS.get(str(arguments.get("dtype")), (None, None))
    strategy = _STRATEGIES.get(as_text(arguments.get("qscheme")))
    dynamic = arguments.get("is_dynamic")
    if strategy == "channel" and dynamic is True:
        # Quark's per-channel activations are one scale a row of the input: a token.
        strategy = "token"
    size = as_size(arguments.get("group_size"))
    block = as_pair(arguments.get("block_size"))
    if strategy == "group":
        block = None if size is None else (1, size)
    return Numbers(kind=kind, bits=bits, strategy=strategy, block=block, when=read_when(dynamic or False))
