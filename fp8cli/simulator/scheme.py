"""The schemes that can be simulated: what is rounded, to which numbers, and what shares a scale. Nothing to compute.

More than this tool writes (see `fp8cli.schemes`): E5M2 and MXFP8 need no checkpoint to be tried. With the standard
library alone, so that every process and every room may know them.
"""

import re
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
    """`FP8_DYNAMIC`, `FP8_DYNAMIC+KV`, `FP8+SMOOTHQUANT_0.8+GPTQ+KV`, `MXFP8`, …"""
    summary: str
    weights: Rounding | None
    activations: Rounding | None
    kv_cache: KvRounding | None = None
    """One scale for the keys and one for the values of a layer, or of each of its KV heads."""
    smoothing: float | None = None
    """Strength of SmoothQuant, 0 to 1; None: without it."""
    awq: bool = False
    gptq: bool = False

    @property
    def base(self) -> str:
        """The name without a KV cache and without modifiers."""
        return self.name.partition("+")[0]

    @property
    def modified(self) -> bool:
        """Whether llm-compressor changes weights before or while they are rounded."""
        return self.smoothing is not None or self.awq or self.gptq

    @property
    def moves_channels(self) -> bool:
        """Whether scales of channels go from activations into weights, which then are not the checkpoint's any more."""
        return self.smoothing is not None or self.awq

    @property
    def needs_data(self) -> bool:
        """Whether there is something that only data can tell."""
        static = self.activations is not None and not self.activations.dynamic
        return self.kv_cache is not None or static or self.modified


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


SMOOTHING_DEFAULT: Final = 0.5
"""llm-compressor's own."""
SMOOTHING_DECIMALS: Final = 6
"""Of a strength that a name can say."""
_SMOOTHQUANT: Final = "SMOOTHQUANT"
_OF_SMOOTHING: Final = re.compile(rf"{_SMOOTHQUANT}(?:_([01](?:\.\d{{1,{SMOOTHING_DECIMALS}}})?))?", re.ASCII)


def with_modifiers(
    scheme: SimulatedScheme, *, smoothing: float | None = None, awq: bool = False, gptq: bool = False
) -> SimulatedScheme:
    """Return a plain scheme whose weights llm-compressor's modifiers prepare; itself, if there are none."""
    words, names = [], []
    if smoothing is not None:
        strength = f"{smoothing:.{SMOOTHING_DECIMALS}f}".rstrip("0").rstrip(".")
        words.append(_SMOOTHQUANT if smoothing == SMOOTHING_DEFAULT else f"{_SMOOTHQUANT}_{strength}")
        names.append(f"SmoothQuant {smoothing:g}")
    others = [name for name, wanted in (("AWQ", awq), ("GPTQ", gptq)) if wanted]
    words, names = [*words, *others], [*names, *others]
    if not words:
        return scheme
    return replace(
        scheme,
        name="+".join((scheme.name, *words)),
        summary=f"{scheme.summary}; weights by {' and '.join(names)}",
        smoothing=smoothing,
        awq=awq,
        gptq=gptq,
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
"""By name, with and without a KV cache, none of them with modifiers."""


def scheme_named(name: str) -> SimulatedScheme | None:
    """Return the scheme that a job or a record calls so, modifiers and all; None for what is no such name.

    Parts behind the first may stand in any order: `FP8_DYNAMIC+KV+GPTQ` is `FP8_DYNAMIC+GPTQ+KV`.
    """
    base, *parts = name.split("+")
    scheme = {**SIMULATED, UNROUNDED.name: UNROUNDED}.get(base)
    if scheme is None or len(set(parts)) != len(parts):
        return None
    caches = {suffix.removeprefix("+"): cache for cache, suffix in _KV_SUFFIXES.items()}
    cached = [caches[part] for part in parts if part in caches]
    smooth = [match for part in parts if (match := _OF_SMOOTHING.fullmatch(part)) is not None]
    awq, gptq = "AWQ" in parts, "GPTQ" in parts
    if len(cached) > 1 or len(smooth) > 1 or len(cached) + len(smooth) + awq + gptq != len(parts):
        return None
    smoothing = float(smooth[0][1] or SMOOTHING_DEFAULT) if smooth else None
    modified = with_modifiers(scheme, smoothing=smoothing, awq=awq, gptq=gptq)
    return with_kv_cache(modified, cached[0] if cached else None)
