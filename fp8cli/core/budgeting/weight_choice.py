"""A choice within a budget from the weights alone: no text is read, and nothing is known of the model's answers.

A group is as fragile as its noisiest weight. For an SQNR, every group with less stays in 16 bits. For a size, those
stay that take away the most noise, summed over groups as noise by signal: exact, since it adds up by definition, but
it says nothing about which group matters to the model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fp8cli.core.budgeting.groups import Group
from fp8cli.core.budgeting.weight_noise import Noise
from fp8cli.measurer.budget_choosing import Candidate, Kept, curve, nondominated, size
from fp8cli.measurer.budget_protocol import Goal


@dataclass(frozen=True, kw_only=True)
class WeightChoice:
    """What the weights say."""

    kept: Kept
    path: tuple[Kept, ...]
    """Some sets from nothing kept to everything kept."""


def choose_by_weights(groups: Sequence[Group], noise: Mapping[str, Noise], goal: Goal) -> WeightChoice:
    """Choose among groups; noise: of each tensor. goal: an SQNR, or bytes that what is kept may cost."""
    ratios = [worst_ratio([noise[name] for name in group.tensors]) for group in groups]
    candidates = [
        Candidate(saved_bytes=group.saved_bytes, cost=ratio) for group, ratio in zip(groups, ratios, strict=True)
    ]
    path: list[Kept]
    if goal.kind == "sqnr":
        kept = frozenset(number for number, ratio in enumerate(ratios) if decibels(ratio) < goal.value)
        order = sorted(range(len(ratios)), key=lambda number: -ratios[number])
        path = [frozenset(order[:length]) for length in range(len(order) + 1)]
    else:
        path = nondominated(candidates)
        kept = [each for each in path if size(each, candidates) <= goal.value][-1]
    return WeightChoice(kept=kept, path=tuple(path[place] for place in curve(path, candidates)))


def worst_ratio(sums: Sequence[Sequence[float]]) -> float:
    """Return the largest noise by signal of some [signal, noise]; 0 where there is no signal."""
    return max((noise / signal if signal else 0.0 for signal, noise in sums), default=0.0)


def decibels(ratio: float) -> float:
    """Return noise by signal as an SQNR."""
    return math.inf if ratio == 0 else -10 * math.log10(ratio)
