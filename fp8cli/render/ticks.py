"""Where an axis gets its marks: layers in round steps, scales on a logarithmic axis, labels that keep a distance."""

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Final

from fp8cli.core.inspection.depth_axis import Axis
from fp8cli.render.units import number

Ticks = tuple[tuple[float, str], ...]
"""Places along an axis, each with its label."""

_MOST_LAYERS: Final = 18
_MOST_SCALES: Final = 7
_FEWEST_SCALES: Final = 3
_MANTISSAS: Final = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), (1, 2, 3, 4, 5, 6, 7, 8, 9))
_RANGE: Final = (-307.0, 307.0)
"""Powers of ten that a float can hold in full; beyond them an axis ends."""


def layer_ticks(axis: Axis) -> Ticks:
    """Number the layers of every stack in steps of 1, 2 or 5 times a power of ten; a mark for what is in none."""
    step = _round_step((axis.end + 1) / _MOST_LAYERS)
    ticks = [
        (float(layer - stack.first + stack.begin), str(layer))
        for stack in axis.stacks
        for layer in range(-(-stack.first // step) * step, stack.last + 1, step)
    ]
    outside = () if axis.outside is None else ((float(axis.outside), ""),)
    return (*ticks, *outside)


def _round_step(least: float) -> int:
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= least:
                return digit * power
        power *= 10


def scale_limits(smallest: float, largest: float) -> tuple[float, float]:
    """Return the ends of a logarithmic axis, as powers of ten, with some room around the values."""
    low, high = log10(smallest), log10(largest)
    room = max((high - low) * 0.08, 0.06)
    least, most = _RANGE
    return min(max(low - room, least), most - 1), max(min(high + room, most), least + 1)


def scale_ticks(low: float, high: float) -> Ticks:
    """Return marks between two powers of ten: whole powers if there are enough, else round numbers between them."""
    decades = range(floor(low), ceil(high) + 1)
    step = max(1, ceil((high - low) / _MOST_SCALES))
    marks: list[float] = []
    for digits in _MANTISSAS:
        exact = (log10(digit) + decade for decade in decades if decade % step == 0 for digit in digits)
        marks = [mark for mark in exact if low <= mark <= high]
        if len(marks) >= _FEWEST_SCALES:
            break
    if len(marks) < _FEWEST_SCALES:
        marks = [low + (high - low) * part for part in (0.1, 0.5, 0.9)]
    return tuple((mark, number(10.0**mark)) for mark in marks)


def spread(wanted: Sequence[float], distance: float) -> tuple[float, ...]:
    """Move ascending places up just enough that each keeps `distance` from the one below."""
    moved: list[float] = []
    for place in wanted:
        moved.append(max(place, moved[-1] + distance) if moved else place)
    return tuple(moved)
