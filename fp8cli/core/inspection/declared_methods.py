"""The configs of every tool that quantizes, each read into one Declaration.

Where a config says something unknown, the declaration says that it is unknown: a kind, a granularity or a time of
None. What each method means is taken from vLLM 0.32's own readers of it (vllm/model_executor/layers/quantization).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from fp8cli.core.inspection.declaration import Declaration, Group, Numbers
from fp8cli.core.inspection.declared_json import as_mapping, as_pair, as_size, as_texts, names_under
from fp8cli.core.inspection.declared_modelopt import read_modelopt
from fp8cli.core.inspection.declared_numbers import (
    BLOCK_128,
    CHANNEL,
    GROUP_128,
    LINEAR,
    MX,
    MX_RUN_TIME,
    MXFP4,
    TENSOR,
    TOKEN,
    read_arguments,
    read_cache,
)
from fp8cli.core.inspection.declared_quark import read_quark
from fp8cli.formats.checkpoint import CONFIG
from fp8cli.formats.quant_methods import describe_method, find_quantization, name_method

MODELOPT_CONFIG: Final = "hf_quant_config.json"


def read_declaration(
    config: Mapping[str, object], side_configs: Mapping[str, Mapping[str, object]]
) -> Declaration | None:
    """Return what the configs declare, config.json before all; None if they declare nothing."""
    block = as_mapping(find_quantization(config))
    if block:
        return _read(block, CONFIG)
    beside = as_mapping(side_configs.get(MODELOPT_CONFIG)).get("quantization")
    if beside:
        return read_modelopt({"quantization": beside, "quant_method": "modelopt"}, MODELOPT_CONFIG)
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
        ignored=names_under(block, ("modules_to_not_convert", "ignore", "ignored_layers", "exclude_modules")),
    )


def _compressed_tensors(block: Mapping[str, object], source: str) -> Declaration:
    scheme = as_mapping(block.get("kv_cache_scheme"))
    form = block.get("format")
    return Declaration(
        source=source,
        method="compressed-tensors",
        name="compressed-tensors",
        format=form if isinstance(form, str) else None,
        groups=tuple(_group(as_mapping(group)) for group in as_mapping(block.get("config_groups")).values()),
        ignored=names_under(block, ("ignore",)),
        matching="compressed-tensors",
        kv_cache=read_cache(scheme),
    )


def _group(group: Mapping[str, object]) -> Group:
    weights, activations = group.get("weights"), group.get("input_activations")
    return Group(
        targets=as_texts(group.get("targets")),
        weights=None if weights is None else read_arguments(as_mapping(weights)),
        activations=None if activations is None else read_arguments(as_mapping(activations)),
    )


def _fp8(block: Mapping[str, object], source: str) -> Declaration:
    """`quant_method: fp8`: with `weight_block_size` DeepSeek's, without it one scale a tensor."""
    size, scheme = block.get("weight_block_size"), block.get("activation_scheme")
    kind = {"e4m3": "E4M3", "e5m2": "E5M2"}.get(str(block.get("fmt", "e4m3")).lower())
    pair = as_pair(size)
    if size is None:
        weights = replace(TENSOR, kind=kind)
        activations = Numbers(kind=kind, bits=8, strategy="unsaid", when="run time")
    else:
        weights = replace(BLOCK_128, kind=kind, block=pair)
        activations = replace(GROUP_128, kind=kind, block=None if pair is None else (1, pair[1]))
    match scheme:
        case "dynamic":
            pass
        case "static":
            activations = replace(TENSOR, kind=kind)
        case _:
            activations = replace(activations, when=None)
    return Declaration(
        source=source,
        method="fp8",
        name="fp8 (AutoFP8)" if size is None else "DeepSeek block FP8",
        groups=(Group(targets=LINEAR, weights=weights, activations=activations),),
        ignored=names_under(block, ("ignored_layers", "modules_to_not_convert")),
        inverse_name=size is not None,
    )


def _fbgemm(block: Mapping[str, object], source: str) -> Declaration:
    return _uniform(block, source, Group(targets=LINEAR, weights=CHANNEL, activations=TOKEN), name="FBGEMM FP8")


def _mxfp8(block: Mapping[str, object], source: str) -> Declaration:
    return _uniform(block, source, Group(targets=LINEAR, weights=MX, activations=MX_RUN_TIME), name="MXFP8")


def _mxfp4(block: Mapping[str, object], source: str) -> Declaration:
    return _uniform(block, source, Group(targets=LINEAR, weights=MXFP4, activations=None), name="MXFP4 (gpt-oss)")


def _whole_numbers(block: Mapping[str, object], source: str) -> Declaration:
    """GPTQ and AWQ, which differ in how they pack."""
    bits = as_size(block.get("bits", block.get("w_bit")))
    size = block.get("group_size", block.get("q_group_size"))
    grouped = as_size(size)
    weights = Numbers(
        kind=None if bits is None else f"INT{bits}",
        bits=bits,
        strategy="channel" if size == -1 else "group",
        block=None if grouped is None else (1, grouped),
    )
    name = describe_method(block)
    return _uniform(block, source, Group(targets=LINEAR, weights=weights, activations=None), name=name)


def _bitsandbytes(block: Mapping[str, object], source: str) -> Declaration:
    bits = 4 if block.get("load_in_4bit") else 8
    weights = Numbers(kind="INT8" if bits == 8 else str(block.get("bnb_4bit_quant_type", "fp4")).upper(), bits=bits)
    name = describe_method(block)
    return _uniform(block, source, Group(targets=LINEAR, weights=weights, activations=None), name=name)


def _uniform(block: Mapping[str, object], source: str, group: Group, *, name: str) -> Declaration:
    ignored = names_under(block, ("modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules"))
    return Declaration(source=source, method=str(name_method(block)), name=name, groups=(group,), ignored=ignored)


_READERS: Final[Mapping[str, Callable[[Mapping[str, object], str], Declaration]]] = {
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "modelopt": read_modelopt,
    "modelopt_fp4": read_modelopt,
    "modelopt_mixed": read_modelopt,
    "mxfp4": _mxfp4,
    "mxfp8": _mxfp8,
    "quark": read_quark,
    "gptq": _whole_numbers,
    "awq": _whole_numbers,
    "bitsandbytes": _bitsandbytes,
}
