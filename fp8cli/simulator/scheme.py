"""The schemes that can be simulated: what is rounded, to which numbers, and what shares a scale. Nothing to compute.

More than this tool writes (see `fp8cli.schemes`): E5M2 and MXFP8 need no checkpoint to be tried. With the standard
library alone, so that every process and every room may know them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

Number = Literal["e4m3", "e5m2"]
Sharing = Literal["tensor", "row", "block", "group"]
KvRounding = Literal["tensor", "head"]

BLOCK: Final = 128
"""Rows and columns that share a scale where blocks do."""
BLOCK_GROUP: Final = 128
"""Values of an activation that share a scale beside weights in blocks."""
MX_GROUP: Final = 32
"""Values that share a scale in all formats of the OCP Microscaling (MX) specification v1.0, section 5.2."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How one tensor is rounded to 8 bits."""

    number: Number
    sharing: Sharing
    """What shares a scale: all of it; an output channel of a weight, a token of an activation; 128×128; or `group`
    values along the last dimension."""
    group: int = 0
    """Where `sharing` is `group`, how many values."""
    scale: Literal["model", "e8m0"] = "model"
    """Of which numbers scales are: the dtype at hand, or powers of two (MX)."""
    dynamic: bool = True
    """Whether scales are those of the values at hand; if not, an activation has one scale, found with data."""


@dataclass(frozen=True, kw_only=True)
class SimulatedScheme:
    """What is rounded in a model."""

    name: str
    """`FP8_DYNAMIC`, `FP8_DYNAMIC+KV`, `MXFP8`, …"""
    summary: str
    weights: Rounding | None
    activations: Rounding | None
    kv_cache: KvRounding | None = None
    """One scale for the keys and one for the values of a layer, or of each of its KV heads."""

    @property
    def needs_data(self) -> bool:
        """Whether there are scales that only data can tell."""
        return self.kv_cache is not None or (self.activations is not None and not self.activations.dynamic)


_CHANNELS: Final = Rounding(number="e4m3", sharing="row")
_MX: Final = Rounding(number="e4m3", sharing="group", group=MX_GROUP, scale="e8m0")

UNROUNDED: Final = SimulatedScheme(
    name="NONE", summary="weights and activations as they are", weights=None, activations=None
)
"""What a KV cache alone is added to."""

SIMULATED: Final[Mapping[str, SimulatedScheme]] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            SimulatedScheme(
                name="FP8_DYNAMIC",
                summary="E4M3 weights per channel, activations per token at run time",
                weights=_CHANNELS,
                activations=_CHANNELS,
            ),
            SimulatedScheme(
                name="FP8_BLOCK",
                summary="E4M3 weights per 128×128 block, activations per group of 128 at run time",
                weights=Rounding(number="e4m3", sharing="block"),
                activations=Rounding(number="e4m3", sharing="group", group=BLOCK_GROUP),
            ),
            SimulatedScheme(
                name="FP8",
                summary="E4M3 weights per tensor, activations per tensor, calibrated",
                weights=Rounding(number="e4m3", sharing="tensor"),
                activations=Rounding(number="e4m3", sharing="tensor", dynamic=False),
            ),
            SimulatedScheme(
                name="FP8_W8A16",
                summary="E4M3 weights per channel, activations in 16 bits, as GPUs without FP8 arithmetic compute it",
                weights=_CHANNELS,
                activations=None,
            ),
            SimulatedScheme(
                name="E5M2_DYNAMIC",
                summary="E5M2 weights per channel, activations per token at run time",
                weights=Rounding(number="e5m2", sharing="row"),
                activations=Rounding(number="e5m2", sharing="row"),
            ),
            SimulatedScheme(
                name="MXFP8",
                summary="E4M3 weights and activations in groups of 32 with scales that are powers of two",
                weights=_MX,
                activations=_MX,
            ),
        )
    }
)

_KV_SUFFIXES: Final[Mapping[KvRounding, str]] = MappingProxyType({"tensor": "+KV", "head": "+KV_HEAD"})
_KV_SUMMARIES: Final[Mapping[KvRounding, str]] = MappingProxyType(
    {
        "tensor": "E4M3 KV cache, a scale per layer, calibrated",
        "head": "E4M3 KV cache, a scale per KV head, calibrated",
    }
)


def with_kv_cache(scheme: SimulatedScheme, kv: KvRounding | None) -> SimulatedScheme:
    """Return a scheme without a KV cache of its own with one rounded so; itself, if there is none to add."""
    if kv is None:
        return scheme
    return replace(
        scheme,
        name=f"{scheme.name}{_KV_SUFFIXES[kv]}",
        summary=f"{scheme.summary}; {_KV_SUMMARIES[kv]}",
        kv_cache=kv,
    )


EVERY_SCHEME: Final[Mapping[str, SimulatedScheme]] = MappingProxyType(
    {
        **SIMULATED,
        **{
            scheme.name: scheme
            for cache in _KV_SUFFIXES
            for scheme in (with_kv_cache(base, cache) for base in (*SIMULATED.values(), UNROUNDED))
        },
    }
)
"""By name, with and without a KV cache; a job or a record names them so."""
