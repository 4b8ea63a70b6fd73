"""Many numbered names as one pattern: `model.layers.{0..31}.mlp.down_proj.weight`.

A name is cut at its numbers into texts and indices. Names with the same texts are points in a grid, and a
pattern is a full rectangle of that grid, so every pattern stands for exactly its members: none missing, none
twice. Two missing experts split a pattern; they never hide in one.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

# No leading zero, so that `str(int(...))` gives the text back; 9 digits, because names come from strangers.
_INDEX: Final = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")
_MAX_INDICES: Final = 8
"""Further numbers in a name count as text: it bounds the recursion over a hostile name."""

_SHORTEST_RANGE: Final = 3
"""From here on a run is written `0..2`; two numbers are clearer as `0,1`."""


@dataclass(frozen=True, slots=True)
class Fold:
    """A pattern and the names it stands for, in the order of their numbers."""

    pattern: str
    names: tuple[str, ...]


def fold(names: Iterable[str]) -> tuple[Fold, ...]:
    """Fold names that differ in numbers only; return the patterns in natural order (2 before 10)."""
    grids: dict[tuple[str, ...], dict[tuple[int, ...], str]] = {}
    for name in names:
        texts, indices = _cut(name)
        grids.setdefault(texts, {})[indices] = name
    folds = [
        Fold(_pattern(texts, rectangle), tuple(points[point] for point in itertools.product(*rectangle)))
        for texts, points in grids.items()
        for rectangle in _rectangles(points)
    ]
    return tuple(sorted(folds, key=lambda fold: natural_order(fold.names[0])))


def natural_order(name: str) -> tuple[tuple[str, int], ...]:
    """Return a sort key that orders by numbers where names have numbers."""
    texts, indices = _cut(name)
    return tuple(zip(texts, (*indices, -1), strict=True))


def _cut(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    parts = _INDEX.split(name, maxsplit=_MAX_INDICES)
    return tuple(parts[::2]), tuple(int(index) for index in parts[1::2])


def _rectangles(points: Iterable[tuple[int, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    """Cover the points with disjoint rectangles, each given by its indices along every axis."""
    rests: dict[int, list[tuple[int, ...]]] = {}
    for point in sorted(points):
        if not point:
            return [()]
        rests.setdefault(point[0], []).append(point[1:])
    # First indices followed by exactly the same rests share their rectangles.
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first, rest in rests.items():
        alike.setdefault(tuple(rest), []).append(first)
    return [(tuple(firsts), *others) for rest, firsts in alike.items() for others in _rectangles(rest)]


def _pattern(texts: Sequence[str], rectangle: Sequence[Sequence[int]]) -> str:
    indices = [*map(_ranges, rectangle), ""]
    return "".join(text + index for text, index in zip(texts, indices, strict=True))


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as `{0,2..5}`, or a single one as itself."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    written = [f"{run[0]}..{run[-1]}" if len(run) >= _SHORTEST_RANGE else ",".join(map(str, run)) for run in runs]
    return "{" + ",".join(written) + "}"
