"""Scales and errors over the depth of a model: every tensor put at its layer, and each layer summed up.

Many tensors become few numbers here, smallest, middle and largest of each layer, so that a drawing of 100,000
tensors costs no more than one of 200. Nothing is drawn, and no value is read: all of it comes from the report.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, get_args

from fp8cli.core.findings import Finding
from fp8cli.core.folding import natural_order
from fp8cli.core.inspection.depth_axis import Axis, ModuleKind, lay_out, locate
from fp8cli.core.inspection.fidelity import WeightFidelity
from fp8cli.core.inspection.scale_names import Kind, kind_of
from fp8cli.core.inspection.scale_sweep import Fault
from fp8cli.core.inspection.scale_values import ScaleStats
from fp8cli.core.unfolding import unfold

NAMED: Final = 3
"""Weights that are named as the worst."""

_FAULTS: Final[tuple[str, ...]] = get_args(Fault)
_Spots = dict[str, tuple[int, ModuleKind]]
"""Tensor → position and kind of module."""
_Values = defaultdict[str, defaultdict[int, list[tuple[float, float, float]]]]
"""Name of a band → position → smallest, middle and largest of each tensor there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """What the tensors at one position have in common; for scales the units are those of the scale."""

    position: int
    smallest: float
    middle: float
    largest: float
    tensors: int


@dataclass(frozen=True, kw_only=True)
class Band:
    """One line of a drawing with its spans in the order of their positions."""

    name: str
    """A ModuleKind, or for scales of the KV cache their label."""
    spans: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BadScales:
    """Scales at one position that cannot scale."""

    position: int
    fault: str
    """Last word of the check: `nan`, `zero`, …"""
    tensors: int


@dataclass(frozen=True, kw_only=True)
class ScaleDepth:
    """Scales of one label over depth; those of the KV cache share one, with a band for each label.

    `middle` of a span is the median of its tensors' middles, and a tensor's middle is √(smallest · largest): exact
    where a tensor has one scale, and half way on a logarithmic axis where it has many.
    """

    kind: Kind
    labels: tuple[str, ...]
    tensors: int
    values: int
    smallest: float | None
    median: float | None
    """Of all values; None where there are none, or several labels."""
    largest: float | None
    bands: tuple[Band, ...]
    bad: tuple[BadScales, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Worst:
    """A weight far from its source. `sqnr_db` is −∞ where the two have nothing in common."""

    position: int
    name: str
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class FidelityDepth:
    """Signal to noise in dB over depth, of the weights whose ratio is finite."""

    bands: tuple[Band, ...]
    worst: tuple[Worst, ...]
    equal: int
    """Weights that do not differ from their source at all."""
    unlike: int
    """Weights that have nothing in common with it."""


@dataclass(frozen=True, kw_only=True)
class Depth:
    """Everything that is drawn over depth, on one axis."""

    axis: Axis
    scales: tuple[ScaleDepth, ...]
    fidelity: FidelityDepth | None
    """None if no weight was compared with a source."""


def over_depth(scales: Sequence[ScaleStats], findings: Iterable[Finding], weights: Sequence[WeightFidelity]) -> Depth:
    """Sum up a report's scales and errors by layer. The findings tell which scales are bad."""
    names = [name for stats in scales for name in stats.names]
    places = {name: locate(name) for name in (*names, *(weight.name for weight in weights))}
    axis = lay_out(places.values())
    spots = {name: (axis.position(place), place.kind) for name, place in places.items()}
    bad = _bad_scales(findings, spots)
    return Depth(
        axis=axis,
        scales=tuple(_scale_depth(group, spots, bad) for group in _groups(scales)),
        fidelity=_fidelity_depth(weights, spots) if weights else None,
    )


def _groups(scales: Sequence[ScaleStats]) -> Iterator[tuple[ScaleStats, ...]]:
    """Scales that are drawn together: weights, then activations, each label by itself; then all of the cache."""
    for kind in ("weight", "activation"):
        yield from ((stats,) for stats in scales if kind_of(stats.label) == kind)
    cache = tuple(stats for stats in scales if kind_of(stats.label) == "cache")
    if cache:
        yield cache


def _scale_depth(group: tuple[ScaleStats, ...], spots: _Spots, bad: dict[str, str]) -> ScaleDepth:
    alone = len(group) == 1
    kind = kind_of(group[0].label)
    ranges: _Values = defaultdict(lambda: defaultdict(list))
    broken: Counter[tuple[int, str]] = Counter()
    for stats in group:
        for name, limits in zip(stats.names, stats.ranges, strict=True):
            position, module = spots[name]
            if limits is not None:
                low, high = limits
                middle = math.sqrt(low) * math.sqrt(high)
                ranges[stats.label if kind == "cache" else module][position].append((low, middle, high))
            if name in bad:
                broken[position, bad[name]] += 1
    lows = [stats.minimum for stats in group if stats.minimum is not None]
    highs = [stats.maximum for stats in group if stats.maximum is not None]
    return ScaleDepth(
        kind=kind,
        labels=tuple(stats.label for stats in group),
        tensors=sum(stats.tensors for stats in group),
        values=sum(stats.values for stats in group),
        smallest=min(lows, default=None),
        median=group[0].median if alone else None,
        largest=max(highs, default=None),
        bands=_bands(ranges),
        bad=tuple(BadScales(position=at, fault=fault, tensors=n) for (at, fault), n in sorted(broken.items())),
    )


def _bad_scales(findings: Iterable[Finding], known: Container[str]) -> dict[str, str]:
    """Name the fault of every scale that has one, the gravest where it has several."""
    found = [finding for finding in findings if finding.check in _FAULTS and finding.subject is not None]
    bad: dict[str, str] = {}
    for finding in sorted(found, key=lambda finding: _FAULTS.index(finding.check)):
        for name in unfold(finding.subject or "", finding.count):
            if name in known:
                bad.setdefault(name, finding.check.removeprefix("scale."))
    return bad


def _fidelity_depth(weights: Sequence[WeightFidelity], spots: _Spots) -> FidelityDepth:
    ratios: _Values = defaultdict(lambda: defaultdict(list))
    for weight in weights:
        if math.isfinite(weight.sqnr_db):
            position, module = spots[weight.name]
            ratios[module][position].append((weight.sqnr_db,) * 3)
    ordered = sorted(weights, key=lambda weight: (weight.sqnr_db, natural_order(weight.name)))
    return FidelityDepth(
        bands=_bands(ratios),
        worst=tuple(
            Worst(position=spots[weight.name][0], name=weight.name, sqnr_db=weight.sqnr_db)
            for weight in ordered[:NAMED]
            if weight.sqnr_db < math.inf
        ),
        equal=sum(weight.sqnr_db == math.inf for weight in weights),
        unlike=sum(weight.sqnr_db == -math.inf for weight in weights),
    )


def _bands(values: _Values) -> tuple[Band, ...]:
    """Sum up (smallest, middle, largest) of the tensors at each position; bands in the order of ModuleKind."""
    order = get_args(ModuleKind)
    names = sorted(values, key=lambda name: (order.index(name) if name in order else len(order), name))
    return tuple(
        Band(name=name, spans=tuple(_span(at, values[name][at]) for at in sorted(values[name]))) for name in names
    )


def _span(position: int, members: Sequence[tuple[float, float, float]]) -> Span:
    return Span(
        position=position,
        smallest=min(low for low, _, _ in members),
        middle=median(middle for _, middle, _ in members),
        largest=max(high for _, _, high in members),
        tensors=len(members),
    )
