"""How KL divergence spreads over positions: bars on a logarithmic axis, the noise floor as an outline over them.

Heights are shares of positions per factor of ten, so that bins of different widths, and runs over different numbers
of positions, can be set beside each other.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from fp8cli.core.comparing.comparison import FidelityComparison
from fp8cli.render.units import number, percent

STYLE: Final = """
.histogram svg.plot { display: block; width: 100%; height: 17rem; }
.histogram text { font-size: .75rem; fill: var(--soft); }
.histogram .bars { fill: var(--blue); opacity: .75; }
.histogram .floor { fill: none; stroke: var(--orange); stroke-width: 2; vector-effect: non-scaling-stroke; }
.histogram .base { stroke: var(--soft); } .histogram .tick { stroke: var(--grid); }
.histogram .at { stroke: var(--ink); stroke-dasharray: 3 3; }
.histogram .at + text { fill: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .85rem; color: var(--soft); }
.legend i { display: inline-block; width: 1.2rem; height: .7rem; margin-right: .4rem; }
.legend .a { background: var(--blue); opacity: .75; }
.legend .b { border-top: 2px solid var(--orange); height: .3rem; }
"""
_TOP, _BOTTOM, _HEIGHT = 44, 232, 272
"""Of the plot in CSS pixels: where bars may begin, where they stand, and the whole."""
_CLOSE: Final = 0.35
"""Part of the width at either end where the label of a line turns inwards."""

_Bins = tuple[tuple[float, float, float], ...]
"""Of each: log10 of both edges, and its share of positions per factor of ten."""


def draw_histogram(fidelity: FidelityComparison, floor: FidelityComparison | None, words: str) -> Iterator[str]:
    """Yield the lines of HTML; nothing where there are no bins. words: a name of the plot, safe in HTML."""
    bins = _bins(fidelity)
    if not bins:
        return
    under = () if floor is None else _bins(floor)
    low = min(each[0] for each in (*bins, *under))
    high = max(each[1] for each in (*bins, *under))
    tallest = max(each[2] for each in (*bins, *under)) or 1.0
    yield '<figure class="histogram">'
    yield f'<svg class="plot" role="img" aria-label="{words}"><title>{words}</title>'
    yield f"<desc>{_description(fidelity, floor)}</desc>"
    yield from _decades(low, high)
    yield f'<svg y="{_TOP}" width="100%" height="{_BOTTOM - _TOP}" viewBox="0 0 1000 100" preserveAspectRatio="none">'
    yield f'<path class="bars" d="{_outline(bins, low, high, tallest)}"/>'
    if under:
        yield f'<path class="floor" d="{_outline(under, low, high, tallest)}"/>'
    yield "</svg>"
    yield f'<line class="base" x1="0" x2="100%" y1="{_BOTTOM}" y2="{_BOTTOM}"/>'
    for row, (name, at) in enumerate((("median", fidelity.kl.median), ("99 %", fidelity.kl.high_99))):
        yield from _mark(name, at, row, low, high)
    yield "</svg>"
    yield '<figcaption class="legend"><span><i class="a"></i>KL divergence per position, nats</span>'
    if under:
        yield '<span><i class="b"></i>noise floor</span>'
    if any(each is not None and each.histogram_counts[0] for each in (fidelity, floor if under else None)):
        yield "<span>at the left end stands also all that is smaller</span>"
    yield "</figcaption>"
    yield "</figure>"


def _bins(fidelity: FidelityComparison) -> _Bins:
    edges, counts = fidelity.histogram_edges, fidelity.histogram_counts
    total = sum(counts)
    if not total or len(edges) != len(counts) + 1 or not all(edge > 0 and math.isfinite(edge) for edge in edges):
        return ()
    logs = [math.log10(edge) for edge in edges]
    pairs = zip(logs, logs[1:], counts, strict=False)
    bins = [(start, end, count / total / (end - start)) for start, end, count in pairs if end > start]
    filled = [place for place, each in enumerate(bins) if each[2]]
    return tuple(bins[filled[0] : filled[-1] + 1]) if filled else ()


def _outline(bins: _Bins, low: float, high: float, tallest: float) -> str:
    """Return the path of all bars, in a box 1000 wide and 100 high."""

    def across(place: float) -> str:
        return f"{1000 * (place - low) / (high - low):.2f}"

    steps = [f"M {across(bins[0][0])} 100"]
    for start, end, share in bins:
        top = f"{100 * (1 - share / tallest):.2f}"
        steps.append(f"L {across(start)} {top} L {across(end)} {top}")
    return " ".join((*steps, f"L {across(bins[-1][1])} 100"))


def _decades(low: float, high: float) -> Iterator[str]:
    """Label powers of ten, not more than fit a narrow screen."""
    step = max(1, math.ceil((high - low) / 6))
    for power in range(math.ceil(low), math.floor(high) + 1):
        if power % step:
            continue
        place = 100 * (power - low) / (high - low)
        anchor = "start" if place < 5 else "end" if place > 95 else "middle"
        yield f'<line class="tick" x1="{place:.3f}%" x2="{place:.3f}%" y1="{_TOP}" y2="{_BOTTOM + 5}"/>'
        yield f'<text class="label" x="{place:.3f}%" y="{_HEIGHT - 20}" text-anchor="{anchor}">{_power(power)}</text>'


def _power(power: int) -> str:
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return "1" if power == 0 else f"10{raised}"


def _mark(name: str, at: float, row: int, low: float, high: float) -> Iterator[str]:
    """A dashed line with its name above; the second name stands lower, so that two close lines can be told apart."""
    if not (math.isfinite(at) and at > 0):
        return
    place = 100 * min(max((math.log10(at) - low) / (high - low), 0), 1)
    top = 14 + 18 * row
    anchor = "end" if place > 100 * (1 - _CLOSE) else "start"
    side = -6 if anchor == "end" else 6
    yield f'<line class="at" x1="{place:.3f}%" x2="{place:.3f}%" y1="{top - 8}" y2="{_BOTTOM}"/>'
    yield f'<text x="{place:.3f}%" dx="{side}" y="{top}" text-anchor="{anchor}">{name} {number(at)}</text>'


def _description(fidelity: FidelityComparison, floor: FidelityComparison | None) -> str:
    shares = _over(fidelity.histogram_edges, fidelity.histogram_counts, 0.01)
    sentence = f"{percent(shares)} of {fidelity.positions:,} positions lie above 0.01 nats"
    if floor is None:
        return sentence
    return f"{sentence}; of the noise floor {percent(_over(floor.histogram_edges, floor.histogram_counts, 0.01))}"


def _over(edges: Sequence[float], counts: Sequence[int], limit: float) -> float:
    """Return the share of positions in the bins that begin at a limit or above."""
    return sum(count for edge, count in zip(edges, counts, strict=False) if edge >= limit * (1 - 1e-9)) / sum(counts)
