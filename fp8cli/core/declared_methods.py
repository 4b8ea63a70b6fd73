"""The configs of every tool that quantizes, each read into one Declaration.

Where a config says something unknown, the declaration says that it is unknown: a kind, a granularity or a time of
None. What each method means is taken from vLLM 0.32's own readers of it (vllm/model_executor/layers/quantization).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from fp8cli.core.declaration import Declaration, Group, Numbers, Strategy, When, mapping
from fp8cli.formats.checkpoint import CONFIG
from fp8cli.formats.quant_methods import describe_method, find_quantization, name_method

MODELOPT_CONFIG: Final = "hf_quant_config.json"

_LINEAR: Final = ("Linear",)
_STRATEGIES: Final[Mapping[object, Strategy]] = {
    "tensor": "tensor",
    "channel": "channel",
    "token": "token",
    "block": "block",
    "group": "group",
    "tensor_group": "group",
    "attn_head": "attn_head",
}
_QUARK_STRATEGIES: Final[Mapping[object, Strategy]] = {
    "per_tensor": "tensor",
    "per_channel": "channel",
    "per_token": "token",
    "per_block": "block",
    "per_group": "group",
}
_QUARK_KINDS: Final = {
    "fp8_e4m3": ("E4M3", 8),
    "fp8_e5m2": ("E5M2", 8),
    "fp4": ("FP4", 4),
    "int8": ("INT8", 8),
    "int4": ("INT4", 4),
    "uint4": ("INT4", 4),
}

_TENSOR: Final = Numbers(kind="E4M3", bits=8, strategy="tensor")
_CHANNEL: Final = Numbers(kind="E4M3", bits=8, strategy="channel")
_TOKEN: Final = Numbers(kind="E4M3", bits=8, strategy="token", when="run time")
_BLOCK_128: Final = Numbers(kind="E4M3", bits=8, strategy="block", block=(128, 128))
_GROUP_128: Final = Numbers(kind="E4M3", bits=8, strategy="group", block=(1, 128), when="run time")
_MX: Final = Numbers(kind="E4M3", bits=8, strategy="group", block=(1, 32))
_MX_RUN_TIME: Final = replace(_MX, when="run time")
_FP4: Final = Numbers(kind="FP4", bits=4, strategy="group", block=(1, 16))
_MXFP4: Final = Numbers(kind="FP4", bits=4, strategy="group", block=(1, 32))

_MODELOPT: Final[Mapping[str, Group]] = {
    "FP8": Group(targets=_LINEAR, weights=_TENSOR, activations=_TENSOR),
    "FP8_PER_CHANNEL_PER_TOKEN": Group(targets=_LINEAR, weights=_CHANNEL, activations=_TOKEN),
    # Its name says "weights only"; vLLM takes activations in groups of 128 all the same.
    "FP8_PB_WO": Group(targets=_LINEAR, weights=_BLOCK_128, activations=_GROUP_128),
    "FP8_BLOCK_SCALES": Group(targets=_LINEAR, weights=_BLOCK_128, activations=_GROUP_128),
    "MXFP8": Group(targets=_LINEAR, weights=_MX, activations=_MX_RUN_TIME),
    "NVFP4": Group(targets=_LINEAR, weights=_FP4, activations=replace(_FP4, when="run time")),
    "W4A16_NVFP4": Group(targets=_LINEAR, weights=_FP4, activations=None),
}


def read_declaration(
    config: Mapping[str, object], side_configs: Mapping[str, Mapping[str, object]]
) -> Declaration | None:
    """Return what the configs declare, config.json before all; None if they declare nothing."""
    block = mapping(find_quantization(config))
    if block:
        return _read(block, CONFIG)
    beside = mapping(side_configs.get(MODELOPT_CONFIG)).get("quantization")
    if beside:
        return _modelopt({"quantization": beside, "quant_method": "modelopt"}, MODELOPT_CONFIG)
    return None


def _read(block: Mapping[str, object], source: str) -> Declaration:
    method = name_method(block)
    read = _READERS.get(method) if isinstance(method, str) else None
    if read is not None:
        return read(block, source)
    return Declaration(
        source=source,
        method=method if isinstance(method, str) else "unknown method",
        name=describe_method(block),
        ignored=_names(block, ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules")),
    )


def _compressed_tensors(block: Mapping[str, object], source: str) -> Declaration:
    scheme = mapping(block.get("kv_cache_scheme"))
    form = block.get("format")
    return Declaration(
        source=source,
        method="compressed-tensors",
        name="compressed-tensors",
        format=form if isinstance(form, str) else None,
        groups=tuple(_group(mapping(group)) for group in mapping(block.get("config_groups")).values()),
        ignored=_names(block, ("ignore",)),
        matching="compressed-tensors",
        kv_cache=_cache(scheme),
    )


def _group(group: Mapping[str, object]) -> Group:
    weights, activations = group.get("weights"), group.get("input_activations")
    return Group(
        targets=_texts(group.get("targets")),
        weights=None if weights is None else _arguments(mapping(weights)),
        activations=None if activations is None else _arguments(mapping(activations)),
    )


def _arguments(arguments: Mapping[str, object]) -> Numbers:
    """Read one `QuantizationArgs` of compressed-tensors."""
    bits, size = _size(arguments.get("num_bits")), _size(arguments.get("group_size"))
    strategy = _STRATEGIES.get(_text(arguments.get("strategy")))
    block = _pair(arguments.get("block_structure")) if strategy == "block" else None
    if strategy == "group" and size is not None:
        block = (1, size)
    return Numbers(
        kind=_kind(arguments.get("type", "int"), bits),
        bits=bits,
        strategy=strategy,
        block=block,
        when=_when(arguments.get("dynamic", False)),
    )


def _kind(family: object, bits: int | None) -> str | None:
    match family, bits:
        case "float", 8:
            return "E4M3"
        case "float", int():
            return f"FP{bits}"
        case "int", int():
            return f"INT{bits}"
        case _:
            return None


def _when(dynamic: object) -> When | None:
    match dynamic:
        case True:
            return "run time"
        case False:
            return "static"
        case _:
            return None


def _cache(scheme: Mapping[str, object]) -> Numbers | None:
    # ModelOpt writes this object without a strategy; its scales are one number each.
    return _arguments({"strategy": "tensor", **scheme}) if scheme else None


def _fp8(block: Mapping[str, object], source: str) -> Declaration:
    """`quant_method: fp8`: with `weight_block_size` DeepSeek's, without it one scale a tensor."""
    size, scheme = block.get("weight_block_size"), block.get("activation_scheme")
    kind = {"e4m3": "E4M3", "e5m2": "E5M2"}.get(str(block.get("fmt", "e4m3")).lower())
    pair = _pair(size)
    if size is None:
        weights = replace(_TENSOR, kind=kind)
        activations = Numbers(kind=kind, bits=8, strategy="unsaid", when="run time")
    else:
        weights = replace(_BLOCK_128, kind=kind, block=pair)
        activations = replace(_GROUP_128, kind=kind, block=None if pair is None else (1, pair[1]))
    match scheme:
        case "dynamic":
            pass
        case "static":
            activations = replace(_TENSOR, kind=kind)
        case _:
            activations = replace(activations, when=None)
    return Declaration(
        source=source,
        method="fp8",
        name="fp8 (AutoFP8)" if size is None else "DeepSeek block FP8",
        groups=(Group(targets=_LINEAR, weights=weights, activations=activations),),
        ignored=_names(block, ("ignored_layers", "modules_to_not_convert")),
        inverse_name=size is not None,
    )


def _modelopt(block: Mapping[str, object], source: str) -> Declaration:
    inner = mapping(block.get("quantization")) or block
    algorithm = str(inner.get("quant_algo") or "").upper()
    cache = str(inner.get("kv_cache_quant_algo") or "").upper()
    layers = mapping(inner.get("quantized_layers"))
    if algorithm == "MIXED_PRECISION":
        by_algorithm: dict[str, list[str]] = {}
        for name, layer in layers.items():
            by_algorithm.setdefault(str(mapping(layer).get("quant_algo") or "").upper(), []).append(name)
        groups = tuple(replace(_algorithm(each), targets=tuple(names)) for each, names in by_algorithm.items())
    else:
        groups = (_algorithm(algorithm),) if algorithm else ()
    return Declaration(
        source=source,
        method=str(block.get("quant_method", "modelopt")).lower(),
        name=f"ModelOpt ({algorithm})" if algorithm else "ModelOpt",
        groups=groups,
        ignored=_names(inner, ("exclude_modules", "ignore")),
        matching="wildcards",
        kv_cache=_TENSOR if cache == "FP8" else _cache(mapping(inner.get("kv_cache_scheme"))),
    )


def _algorithm(name: str) -> Group:
    return _MODELOPT.get(name, Group(targets=_LINEAR, weights=Numbers(kind=None), activations=None))


def _quark(block: Mapping[str, object], source: str) -> Declaration:
    layers = mapping(block.get("layer_quant_config"))
    cached = _texts(mapping(block.get("export")).get("kv_cache_group"))
    groups = [_quark_group(mapping(block.get("global_quant_config")), _LINEAR)]
    # Layers of the KV cache differ from the others by their outputs alone, and are no scheme of their own.
    groups += [_quark_group(mapping(value), (name,)) for name, value in layers.items() if name not in cached]
    outputs = next((mapping(mapping(layers.get(name)).get("output_tensors")) for name in cached), None)
    return Declaration(
        source=source,
        method="quark",
        name="AMD Quark",
        groups=tuple(group for group in groups if group.weights is not None),
        ignored=_names(block, ("exclude",)),
        matching="wildcards",
        kv_cache=_quark_numbers(outputs) if outputs else None,
    )


def _quark_group(group: Mapping[str, object], targets: tuple[str, ...]) -> Group:
    weights, activations = group.get("weight"), group.get("input_tensors")
    return Group(
        targets=targets,
        weights=None if weights is None else _quark_numbers(mapping(weights)),
        activations=None if activations is None else _quark_numbers(mapping(activations)),
    )


def _quark_numbers(arguments: Mapping[str, object]) -> Numbers:
    kind, bits = _QUARK_KINDS.get(str(arguments.get("dtype")), (None, None))
    strategy = _QUARK_STRATEGIES.get(_text(arguments.get("qscheme")))
    dynamic = arguments.get("is_dynamic")
    if strategy == "channel" and dynamic is True:
        # Quark's per-channel activations are one scale a row of the input: a token.
        strategy = "token"
    size = _size(arguments.get("group_size"))
    block = _pair(arguments.get("block_size"))
    if strategy == "group":
        block = None if size is None else (1, size)
    return Numbers(kind=kind, bits=bits, strategy=strategy, block=block, when=_when(dynamic or False))


def _fbgemm(block: Mapping[str, object], source: str) -> Declaration:
    return _uniform(block, source, Group(targets=_LINEAR, weights=_CHANNEL, activations=_TOKEN), name="FBGEMM FP8")


def _mxfp8(block: Mapping[str, object], source: str) -> Declaration:
    return _uniform(block, source, Group(targets=_LINEAR, weights=_MX, activations=_MX_RUN_TIME), name="MXFP8")


def _mxfp4(block: Mapping[str, object], source: str) -> Declaration:
    return _uniform(block, source, Group(targets=_LINEAR, weights=_MXFP4, activations=None), name="MXFP4 (gpt-oss)")


def _whole_numbers(block: Mapping[str, object], source: str) -> Declaration:
    """GPTQ and AWQ, which differ in how they pack."""
    bits = _size(block.get("bits", block.get("w_bit")))
    size = block.get("group_size", block.get("q_group_size"))
    grouped = _size(size)
    weights = Numbers(
        kind=None if bits is None else f"INT{bits}",
        bits=bits,
        strategy="channel" if size == -1 else "group",
        block=None if grouped is None else (1, grouped),
    )
    name = describe_method(block)
    return _uniform(block, source, Group(targets=_LINEAR, weights=weights, activations=None), name=name)


def _bitsandbytes(block: Mapping[str, object], source: str) -> Declaration:
    bits = 4 if block.get("load_in_4bit") else 8
    weights = Numbers(kind="INT8" if bits == 8 else str(block.get("bnb_4bit_quant_type", "fp4")).upper(), bits=bits)
    name = describe_method(block)
    return _uniform(block, source, Group(targets=_LINEAR, weights=weights, activations=None), name=name)


def _uniform(block: Mapping[str, object], source: str, group: Group, *, name: str) -> Declaration:
    ignored = _names(block, ("modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules"))
    return Declaration(source=source, method=str(name_method(block)), name=name, groups=(group,), ignored=ignored)


_READERS: Final[Mapping[str, Callable[[Mapping[str, object], str], Declaration]]] = {
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "modelopt_mixed": _modelopt,
    "mxfp4": _mxfp4,
    "mxfp8": _mxfp8,
    "quark": _quark,
    "gptq": _whole_numbers,
    "awq": _whole_numbers,
    "bitsandbytes": _bitsandbytes,
}


def _names(block: Mapping[str, object], keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for key in keys for name in _texts(block.get(key)))


def _texts(value: object) -> tuple[str, ...]:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _size(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 2**31 else None


def _pair(value: object) -> tuple[int, int] | None:
    match value:
        case [rows, columns] if (first := _size(rows)) and (second := _size(columns)):
            return first, second
        case _:
            return None
