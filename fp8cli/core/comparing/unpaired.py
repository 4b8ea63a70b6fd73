"""One metric on both sides, of which only the value and its standard error are known, as in a printed table.

What is hard for one side is hard for the other too, and without the items nobody can take that out: the interval is
ten times as wide as a paired one, or more. It is given, and said to be unpaired.
"""

import math
from dataclasses import dataclass
from typing import Final

from fp8cli.core.comparing.comparison import Interval, Kind
from fp8cli.core.comparing.means import unpaired_normal
from fp8cli.core.comparing.measures import Test
from fp8cli.core.comparing.power import items_needed_unpaired, items_to_settle
from fp8cli.core.comparing.recovery import recovery_of_perplexity
from fp8cli.core.comparing.shares import agresti_caffo
from fp8cli.core.comparing.significance import unpaired_z_test
from fp8cli.formats.lm_eval_results import Score

PERPLEXITIES: Final = frozenset(("perplexity", "word_perplexity", "byte_perplexity"))
SHARES: Final = frozenset("acc acc_norm acc_bytes acc_mutual_info exact_match em pass@1".split())
"""Metrics that are right or wrong per item, told by their names."""


@dataclass(frozen=True, kw_only=True)
class Unpaired:
    """Two values with their standard errors."""

    base: Score
    other: Score
    higher_is_better: bool
    base_items: int | None
    other_items: int | None

    @property
    def kind(self) -> Kind:
        """Told by the metric's name."""
        if self.base.metric in PERPLEXITIES and min(self.base.value, self.other.value) > 0:
            return "perplexity"
        if self.base.metric in SHARES and all(0 <= score.value <= 1 for score in (self.base, self.other)):
            return "share"
        return "mean" if None not in self.stderrs() else "other"

    @property
    def items(self) -> int | None:
        """The smaller number of items."""
        known = [items for items in (self.base_items, self.other_items) if items is not None]
        return min(known, default=None)

    def stderrs(self) -> tuple[float | None, float | None]:
        """As the results have them; of a share they follow from the number of items."""
        return self._stderr(self.base, self.base_items), self._stderr(self.other, self.other_items)

    def _stderr(self, score: Score, items: int | None) -> float | None:
        if score.stderr is None and score.metric in SHARES and items is not None and items > 1:
            return math.sqrt(max(score.value * (1 - score.value), 0.0) / (items - 1))
        return score.stderr

    def interval(self, confidence: float) -> Interval | None:
        """Normal, from the standard errors; of a share of 0 or 1, which has none, Agresti–Caffo's."""
        ours, theirs = self.base.value, self.other.value
        errors = self._errors()
        if errors is None:
            return None
        interval = unpaired_normal(self._change(), *errors, confidence)
        if interval is None and self.kind == "share" and self.base_items and self.other_items:
            return agresti_caffo(ours, self.base_items, theirs, self.other_items, confidence)
        if interval is None or self.kind != "perplexity":
            return interval
        low, high = math.exp(interval.low), math.exp(interval.high)
        return Interval(low=low, high=high, confidence=confidence, method="unpaired normal of the log ratio")

    def test(self) -> Test | None:
        """The z test."""
        errors = self._errors()
        sign = 1 if self.higher_is_better else -1
        tested = None if errors is None else unpaired_z_test(sign * self._change(), *errors)
        return None if tested is None else Test("unpaired z", *tested)

    def recovery(self, confidence: float) -> Interval | None:
        """Of a perplexity, whose ratio has an interval."""
        return recovery_of_perplexity(self.interval(confidence)) if self.kind == "perplexity" else None

    def items_needed(self, margin: float) -> int | None:
        """Items that each side needs, if they are not compared one by one."""
        sign = 1 if self.higher_is_better else -1
        difference = min(sign * self._change(), 0.0)
        if self.kind == "share" and difference > -margin:
            right = self.base.value if self.higher_is_better else 1 - self.base.value
            return items_needed_unpaired(right, margin, difference)
        errors = self._errors()
        if errors is None or self.items is None or not 0 < margin <= 1:
            return None
        limit = math.log1p(margin) if self.kind == "perplexity" else margin
        return items_to_settle(math.hypot(*errors) * math.sqrt(self.items), limit, difference)

    def _change(self) -> float:
        """Other − base, of a perplexity of the logarithms."""
        ours, theirs = self.base.value, self.other.value
        return math.log(theirs / ours) if self.kind == "perplexity" else theirs - ours

    def _errors(self) -> tuple[float, float] | None:
        ours, theirs = self.stderrs()
        if ours is None or theirs is None:
            return None
        return (ours / self.base.value, theirs / self.other.value) if self.kind == "perplexity" else (ours, theirs)


def infer_items(score: Score) -> int | None:
    """Number of items, from a share and its standard error: n − 1 = p(1 − p) / SE². None for what is no share.

    Printed figures have four digits, so it is about right: 0.7120 ± 0.0287 are 250.
    """
    if score.metric not in SHARES or not score.stderr or not 0 < score.value < 1:
        return None
    return round(score.value * (1 - score.value) / score.stderr**2) + 1
