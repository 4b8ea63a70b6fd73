"""The names that a pattern of `core.folding` stands for: `layers.{0..2}.mlp` is three of them again."""

import itertools
import math
import re
from typing import Final

_NUMBER: Final = "(?:0|[1-9][0-9]{0,8})"
_RUN: Final = rf"{_NUMBER}(?:\.\.{_NUMBER})?"
_SET: Final = re.compile(rf"\{{({_RUN}(?:,{_RUN})*)\}}")


def unfold(pattern: str, count: int) -> tuple[str, ...]:
    """Return the `count` names of a pattern, in the order of their numbers.

    Names may hold braces of their own: a pattern that does not stand for `count` names is taken for a name if that
    is 1, and otherwise nothing is returned.
    """
    parts = _SET.split(pattern)
    sets = [[_run(text) for text in part.split(",")] for part in parts[1::2]]
    if math.prod(sum(map(len, runs)) for runs in sets) != count:
        return (pattern,) if count == 1 else ()
    return tuple(
        "".join(itertools.chain.from_iterable(zip(parts[::2], (*map(str, numbers), ""), strict=True)))
        for numbers in itertools.product(*(itertools.chain.from_iterable(runs) for runs in sets))
    )


def _run(text: str) -> range:
    first, _, last = text.partition("..")
    return range(int(first), int(last or first) + 1)
