"""The form to take, by a rule that the report states, and the reason in numbers.

1. Of the forms that were measured, those count that `fp8 quantize` writes and that quantize weights; where a GPU
   is at hand, those of them that it computes in FP8; and where there are any, those that leave the KV cache in 16
   bits, since what a cache in FP8 saves is not in the checkpoint.
2. The one with the lowest KL is the best, and those whose KL cannot be told from it are as good: the interval of
   the difference, paired by text, reaches down to 0.
3. Of the good ones the smallest is taken; of equal ones that which needs no data, then that with the lowest KL.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.core.comparing.means import perplexity_ratio
from fp8cli.core.serving.modes import Capability

CONFIDENCE: Final = 0.95
ALIKE: Final = 0.01
"""Sizes that differ by no more of the smallest are alike."""


_NEVER: Final[Capability] = (99, 0)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A form that was measured."""

    name: str
    file_bytes: int
    kl: float
    """Nats."""
    per_sample: tuple[float, ...]
    """Mean KL of each text."""
    written: bool
    """Whether `fp8 quantize` writes it."""
    has_weights: bool
    has_cache: bool
    needs_data: bool
    native_from: Capability | None
    """Lowest compute capability that computes it in FP8."""
    native: bool | None
    """Whether the GPU at hand computes it in FP8; None without one."""


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The form to take."""

    name: str
    best: str
    """The one with the lowest KL of those that count."""
    as_good: tuple[str, ...]
    """Those whose KL cannot be told from that, itself among them."""
    counted: tuple[str, ...]
    """All that count."""
    rule: str
    """What counted, and what decided, in words."""


def pick(candidates: Sequence[Candidate], lengths: Sequence[int], *, weights_wanted: bool) -> Pick | None:
    """Choose by the rule above; None if nothing that was measured can be written.

    lengths: positions of each text. weights_wanted: whether any form quantizes weights, be it one that could not be
    measured; if none does, the KV cache alone counts.
    """
    counted, words = _counted(candidates, weights_wanted=weights_wanted)
    if not counted:
        return None
    best = min(counted, key=lambda each: each.kl)
    as_good = [each for each in counted if each is best or not is_worse(each, best, lengths)]
    smallest = min(each.file_bytes for each in as_good)
    small = [each for each in as_good if each.file_bytes <= smallest * (1 + ALIKE)]
    taken = min(small, key=lambda each: (each.native_from or _NEVER, each.needs_data, each.kl))
    rule = (
        f"of the forms {words}, the smallest of those whose KL cannot be told from the lowest "
        f"({100 * CONFIDENCE:g} %, paired by text); within {100 * ALIKE:g} % of its size the one that older GPUs "
        "compute in FP8 too, then one that needs no data, then the lowest KL"
    )
    return Pick(
        name=taken.name,
        best=best.name,
        as_good=tuple(each.name for each in as_good),
        counted=tuple(each.name for each in counted),
        rule=rule,
    )


def is_worse(other: Candidate, best: Candidate, lengths: Sequence[int]) -> bool:
    """Whether the KL of one form is higher than that of another, and not by chance.

    With one text alone nothing is known of chance, and whatever is higher counts as worse.
    """
    difference = other.kl - best.kl
    sums = [[mean * length for mean, length in zip(each.per_sample, lengths, strict=True)] for each in (best, other)]
    # The change of an average loss per position, and KL is one: exp takes it to a ratio, and the logarithm back.
    _, interval = perplexity_ratio(sums[0], sums[1], lengths, CONFIDENCE)
    return difference > 0 if interval is None else math.log(interval.low) > 0


def _counted(candidates: Sequence[Candidate], *, weights_wanted: bool) -> tuple[list[Candidate], str]:
    """Return the candidates that count, and what they have in common, in words."""
    counted = [each for each in candidates if each.written and each.has_weights is weights_wanted]
    words = "that fp8 quantize writes"
    native = [each for each in counted if each.native]
    if native:
        counted, words = native, f"{words} and the GPU here computes in FP8"
    uncached = [each for each in counted if not each.has_cache]
    if uncached:
        counted, words = uncached, f"{words}, the KV cache in 16 bits"
    return counted, words
