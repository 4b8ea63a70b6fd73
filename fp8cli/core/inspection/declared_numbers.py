"""Numbers as configs declare them: those that methods mean by their names, and compressed-tensors' own description."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from fp8cli.core.inspection.declaration import Numbers, Strategy, When
from fp8cli.core.inspection.declared_json import as_pair, as_size, as_text

LINEAR: Final = ("Linear",)
"""Targets of a group that is for all nn.Linear modules."""

_STRATEGIES: Final[Mapping[object, Strategy]] = {
    "tensor": "tensor",
    "channel": "channel",
    "token": "token",
    "block": "block",
    "group": "group",
    "tensor_group": "group",
    "attn_head": "attn_head",
}

TENSOR: Final = Numbers(kind="E4M3", bits=8, strategy="tensor")
CHANNEL: Final = Numbers(kind="E4M3", bits=8, strategy="channel")
TOKEN: Final = Numbers(kind="E4M3", bits=8, strategy="token", when="run time")
BLOCK_128: Final = Numbers(kind="E4M3", bits=8, strategy="block", block=(128, 128))
GROUP_128: Final = Numbers(kind="E4M3", bits=8, strategy="group", block=(1, 128), when="run time")
MX: Final = Numbers(kind="E4M3", bits=8, strategy="group", block=(1, 32))
MX_RUN_TIME: Final = replace(MX, when="run time")
FP4: Final = Numbers(kind="FP4", bits=4, strategy="group", block=(1, 16))
MXFP4: Final = Numbers(kind="FP4", bits=4, strategy="group", block=(1, 32))


def read_arguments(arguments: Mapping[str, object]) -> Numbers:
    """Read one `QuantizationArgs` of compressed-tensors."""
    bits, size = as_size(arguments.get("num_bits")), as_size(arguments.get("group_size"))
    strategy = _STRATEGIES.get(as_text(arguments.get("strategy")))
    block = as_pair(arguments.get("block_structure")) if strategy == "block" else None
    if strategy == "group" and size is not None:
        block = (1, size)
    return Numbers(
        kind=_kind(arguments.get("type", "int"), bits),
        bits=bits,
        strategy=strategy,
        block=block,
        when=read_when(arguments.get("dynamic", False)),
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


def read_when(dynamic: object) -> When | None:
    """When a scale is taken, by the word `dynamic`; None if it is another word than yes or no."""
    match dynamic:
        case True:
            return "run time"
        case False:
            return "static"
        case _:
            return None


def read_cache(scheme: Mapping[str, object]) -> Numbers | None:
    """Read a `kv_cache_scheme`; None if it is empty."""
    # ModelOpt writes this object without a strategy; its scales are one number each.
    return read_arguments({"strategy": "tensor", **scheme}) if scheme else None
