"""Tests of whether two sides differ, and their correction for many tasks.

Each gives two p-values: two-sided, that they differ at all, and one-sided, that the other side is worse. A small one
is evidence of a difference; a large one is no evidence of equality, which only an interval within a margin is.
Differences are other − base, oriented so that higher is better.
"""

import math
from collections.abc import Sequence

from fp8cli.core.comparing.distributions import binomial_upper_tail, normal_upper_tail, t_upper_tail


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided exact p-value of McNemar's test: flips are losses and gains with equal probability.

    1 where nothing flipped. Source: McNemar, Psychometrika 12 (1947) 153–157, with the binomial distribution.
    """
    return min(1.0, 2 * binomial_upper_tail(max(lost, gained), lost + gained, 0.5))


def mcnemar_worse(lost: int, gained: int) -> float:
    """One-sided exact p-value of McNemar's test, that more items are lost than gained."""
    return binomial_upper_tail(lost, lost + gained, 0.5)


def paired_t_test(differences: Sequence[float]) -> tuple[float, float]:
    """Two-sided p-value of the paired t test, and the one-sided one that the mean difference is below 0.

    Differences that are all equal leave t without a scale; the sign test takes over, and says 1 and 1 if they are 0.
    """
    items = len(differences)
    if items == 0:
        return 1.0, 1.0
    mean = math.fsum(differences) / items
    squares = math.fsum((value - mean) ** 2 for value in differences)
    if not math.isfinite(squares):
        raise ValueError("a difference is not a finite number")
    if squares == 0 or min(differences) == max(differences):
        lost, gained = (sum(sign * value > 0 for value in differences) for sign in (-1, 1))
        return mcnemar_exact(lost, gained), mcnemar_worse(lost, gained)
    t = mean / math.sqrt(squares / (items * (items - 1)))
    return 2 * t_upper_tail(abs(t), items - 1), t_upper_tail(-t, items - 1)


def unpaired_z_test(difference: float, base_stderr: float, other_stderr: float) -> tuple[float, float] | None:
    """Two-sided p-value of the z test of two unrelated means, and the one-sided one that the difference is below 0.

    None where both standard errors are 0: a score of 0 or 1 says nothing of its spread.
    """
    error = math.hypot(base_stderr, other_stderr)
    if not math.isfinite(error) or not math.isfinite(difference) or min(base_stderr, other_stderr) < 0:
        raise ValueError(f"{difference} with standard errors {base_stderr} and {other_stderr} cannot be tested")
    if error == 0:
        return None
    z = difference / error
    return 2 * normal_upper_tail(abs(z)), normal_upper_tail(-z)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values of several tests, so that any false claim among all of them is as rare as one p-value says.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65–70.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values lie between 0 and 1, not at {sorted(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return tuple(adjusted)
