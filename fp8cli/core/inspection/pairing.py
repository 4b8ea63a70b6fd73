"""Every FP8 weight with its scale, and what the scale's own shape says about it.

A scale multiplies: weight ≈ codes × scale. For codes [N, K] it is [] or [1] per tensor, [N, 1] per channel,
[⌈N/r⌉, ⌈K/c⌉] per block of r×c, [N, ⌈K/g⌉] per group of g. Where several readings fit, as with a weight smaller
than a block, the declared one is taken.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from fp8cli.core.inspection.declaration import Group, Numbers
from fp8cli.core.inspection.scale_names import FP8_DTYPES
from fp8cli.core.inspection.survey import StoredTensor

Granularity = Literal["tensor", "channel", "block", "group"]
Shape = tuple[int, ...]
Reading = tuple[Granularity, tuple[int, int] | None]
"""What shares a scale; rows and columns for blocks and groups."""

_BLOCK: Final = 128
"""The block that is tried first where nothing is declared: nobody has published another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedWeight:
    """An FP8 weight and its scale."""

    name: str
    """Tensor of the codes."""
    module: str
    scale: str | None
    """Tensor of its weight scale; None if it has none."""
    granularity: Granularity | None
    """As the shape of the scale says; None if no reading fits it."""
    block: tuple[int, int] | None
    """Rows and columns that share one scale, for blocks and groups."""


def module_of(name: str) -> str:
    """Module that a weight belongs to; fused experts, which have no `.weight`, are modules of their own."""
    return name.removesuffix(".weight").removesuffix("._weight_qdata")


def pair(name: str, tensors: Mapping[str, StoredTensor], group: Group | None) -> QuantizedWeight:
    """Find the scale of the FP8 weight `name`."""
    module = module_of(name)
    scale = find_scale(name, tensors)
    granularity, block = None, None
    if scale is not None:
        declared = group.weights if group is not None else None
        granularity, block = read_scale(tensors[name].info.shape, tensors[scale].info.shape, declared)
    return QuantizedWeight(name=name, module=module, scale=scale, granularity=granularity, block=block)


def find_scale(name: str, tensors: Mapping[str, StoredTensor]) -> str | None:
    """Name of the tensor that scales a weight, under whichever of its usual names it is there."""
    return next((candidate for candidate in scale_names(name) if candidate in tensors), None)


def scale_names(name: str) -> tuple[str, ...]:
    """Names under which the scale of a weight may lie, the most usual first."""
    if name.endswith("._weight_qdata"):
        return (f"{name.removesuffix('_qdata')}_scale",)
    if name.endswith(".weight"):
        return (f"{name}_scale", f"{name}_scale_inv", f"{name.removesuffix('.weight')}.scale")
    return (f"{name}_scale", f"{name}_scale_inv", f"{name}_weight_scale", f"{name}_weight_scale_inv")


def is_fp8_weight(tensor: StoredTensor, label: str | None) -> bool:
    """Whether a tensor holds FP8 codes; NVFP4's scales are 8-bit floats too."""
    return label is None and tensor.info.dtype in FP8_DTYPES


@lru_cache(maxsize=2**12)
def read_scale(weight: Shape, scale: Shape, declared: Numbers | None) -> Reading | tuple[None, None]:
    """Say what a scale of that shape is shared by; declared: what the config says of the weights."""
    for granularity, block in _readings(weight, declared):
        if scale in scale_shapes(weight, granularity, block):
            return granularity, block if granularity in {"block", "group"} else None
    return None, None


def scale_shapes(weight: Shape, granularity: Granularity, block: tuple[int, int] | None) -> tuple[Shape, ...]:
    """Shapes that the scale of a weight [N, K], or of experts [E, N, K], may have; the first is the usual one."""
    *experts, rows, columns = (1, 1, *weight) if len(weight) < 2 else weight
    lead = tuple(experts) if len(weight) > 2 else ()
    match granularity:
        case "tensor" if lead:
            return ((*lead, 1, 1), (*lead, 1), lead, (1,), ())
        case "tensor":
            return ((1,), (), (1, 1))
        case "channel":
            # Experts that are stored transposed, [E, in, out], have their channels along the last dimension.
            transposed = ((*lead, 1, columns),) if lead else ()
            return ((*lead, rows, 1), (*lead, rows), *transposed)
        case "block" if block is not None:
            across, along = math.ceil(rows / block[0]), math.ceil(columns / block[1])
            # ModelOpt keeps the blocks' own dimensions, each 1.
            return ((*lead, across, along), (*lead, across, 1, along, 1))
        case "group" if block is not None:
            return ((*lead, rows, math.ceil(columns / block[1])),)
        case _:
            return ()


def _readings(weight: Shape, declared: Numbers | None) -> Iterator[Reading]:
    match declared:
        case Numbers(strategy="tensor" | "channel" | "block" | "group" as strategy, block=block):
            yield strategy, block
    # Blocks first: the one block of a small weight has the scale [1, 1], which would do for a tensor too.
    yield from (("block", (_BLOCK, _BLOCK)), ("tensor", None), ("channel", None))
    size = weight[-1] if weight else 1
    yield from (("group", (1, width)) for width in (16, 32, 64, _BLOCK) if width < size)
