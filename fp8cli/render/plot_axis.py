"""A straight axis in percent of its width, so that an SVG without fixed size fits a phone and a wide screen alike."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_AIR: Final = 0.06
"""Part of the range that stays free at both ends."""
_MOST_TICKS: Final = 6
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """From `low` to `high`; reversed where smaller is better, so that worse lies on the left of every axis."""

    low: float
    high: float
    reversed: bool
    ticks: tuple[float, ...]
    decimals: int
    """Of the labels of the ticks."""

    def place(self, number: float) -> float:
        """Return where a number lies, in percent from the left; what lies beyond an end is put there."""
        share = min(max((number - self.low) / (self.high - self.low), 0.0), 1.0)
        return 100 * (1 - share if self.reversed else share)


def lay_axis(numbers: Iterable[float], *, downwards: bool) -> Axis:
    """Return an axis on which all finite numbers lie, with a few round ticks."""
    finite = [number for number in numbers if math.isfinite(number)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    air = (high - low) * _AIR or max(abs(low) * _AIR, 1e-9)
    low, high = low - air, high + air
    step = _round_step((high - low) / _MOST_TICKS)
    first, last = math.ceil(low / step), math.floor(high / step)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9) + (1 if _is_half(step) else 0))
    ticks = tuple(count * step for count in range(first, last + 1))
    return Axis(low=low, high=high, reversed=downwards, ticks=ticks, decimals=decimals)


def spans(numbers: Sequence[float]) -> bool:
    """Whether all of these can be drawn."""
    return all(math.isfinite(number) for number in numbers)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * step for step in _STEPS if power * step >= least * (1 - 1e-9))


def _is_half(step: float) -> bool:
    """Whether a step such as 2.5 needs one decimal more than its power of ten."""
    mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
    return abs(mantissa - 2.5) < 1e-6
