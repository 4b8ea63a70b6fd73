"""The headers of the shards that a simulated scheme would have, to the byte, before any of it exists.

For a scheme that `fp8 quantize` writes these are its plan's. For another they are those of FP8_DYNAMIC with that
scheme's numbers and scales: E5M2 takes as many bytes as E4M3, and its scales stand in the same places; MXFP8 has a
scale of one byte (E8M0, stored as U8) for every 32 values of a row.
"""

from collections.abc import Iterator

from fp8cli.core.quantizing.plan import METADATA, Plan
from fp8cli.formats.safetensors import Header, TensorInfo, lay_out
from fp8cli.schemes import FP8_DYNAMIC, SCHEMES, Scheme
from fp8cli.simulator.scheme import Rounding, SimulatedScheme


def planned_as(scheme: SimulatedScheme) -> Scheme | None:
    """Return the scheme whose plan says which weights are rounded; None where none are."""
    name, _, _ = scheme.name.partition("+")
    return None if scheme.weights is None else SCHEMES.get(name, FP8_DYNAMIC)


def headers_of(plan: Plan, scheme: SimulatedScheme) -> list[Header]:
    """Return the headers of all shards. plan: of `planned_as(scheme)`."""
    headers = [shard.header for shard in plan.shards]
    if scheme.weights is None or scheme.name.partition("+")[0] in SCHEMES:
        return headers
    shapes = {each.scale.name: each.source.shape for each in plan.tensors if each.scale is not None}
    return [lay_out(list(_content(header, shapes, scheme.weights)), METADATA)[1] for header in headers]


def _content(
    header: Header, shapes: dict[str, tuple[int, ...]], rounding: Rounding
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    weights = {name.removesuffix("_scale") for name in shapes}
    for info in header.tensors:
        if info.name in shapes:
            yield info.name, *_scale(info, shapes[info.name], rounding)
        elif info.name in weights:
            yield info.name, "F8_E5M2" if rounding.number == "e5m2" else "F8_E4M3", info.shape
        else:
            yield info.name, info.dtype, info.shape


def _scale(info: TensorInfo, shape: tuple[int, ...], rounding: Rounding) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of the scales of a weight [rows, columns]; `info`: those of FP8_DYNAMIC."""
    if rounding.sharing != "group":
        return info.dtype, info.shape
    rows, columns = shape
    return "U8" if rounding.scale == "e8m0" else info.dtype, (rows, -(-columns // rounding.group))
