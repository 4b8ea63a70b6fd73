"""One metric on both sides, item by item: shares, means and perplexities, each with the statistics that fit it.

Four questions are asked of each: where the difference lies, whether it is chance, what part of the base's score is
kept, and how many items would settle a margin. Differences are other − base in the metric's own unit; `worse` is
meant as the metric means it, whichever direction that is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import NamedTuple, Protocol

from fp8cli.core.comparing.comparison import Interval, Kind
from fp8cli.core.comparing.means import paired_t, perplexity_ratio
from fp8cli.core.comparing.power import deviation_of, items_needed_paired, items_to_settle
from fp8cli.core.comparing.recovery import recovery_of_means, recovery_of_perplexity, recovery_of_shares
from fp8cli.core.comparing.shares import paired_score
from fp8cli.core.comparing.significance import mcnemar_exact, mcnemar_worse, paired_t_test


class Test(NamedTuple):
    """A test of a difference."""

    name: str
    p_value: float
    """Two-sided."""
    p_worse: float
    """One-sided, that the other is worse."""


class Measure(Protocol):
    """What can be said of one metric on both sides."""

    @property
    def kind(self) -> Kind:
        """What kind of number it is."""

    @property
    def items(self) -> int | None:
        """Items it rests on."""

    def interval(self, confidence: float) -> Interval | None:
        """Interval of the difference, or of a perplexity's ratio."""

    def test(self) -> Test | None:
        """Whether the difference may be chance."""

    def recovery(self, confidence: float) -> Interval | None:
        """Interval of the recovery, in percent."""

    def items_needed(self, margin: float) -> int | None:
        """Items that would settle the margin if the difference is what was seen, or none where the other was better."""

    def stderrs(self) -> tuple[float | None, float | None]:
        """Standard errors of both sides' own values."""


@dataclass(frozen=True, kw_only=True)
class PairedShares:
    """Right or wrong per item: only flips matter."""

    count: int
    base_right: int
    lost: int
    """Right on the base and wrong on the other; for a metric where lower is better, 0 is right."""
    gained: int
    higher_is_better: bool
    kind: Kind = "share"

    @property
    def items(self) -> int:
        """Items on both sides."""
        return self.count

    def interval(self, confidence: float) -> Interval:
        """Tango's score interval."""
        better = paired_score(self.count, self.lost, self.gained, confidence)
        return better if self.higher_is_better else _negated(better)

    def test(self) -> Test:
        """McNemar's exact test."""
        return Test("exact McNemar", mcnemar_exact(self.lost, self.gained), mcnemar_worse(self.lost, self.gained))

    def recovery(self, confidence: float) -> Interval | None:
        """Interval of the ratio of the shares; there is none where lower is better."""
        if not self.higher_is_better:
            return None
        return recovery_of_shares(self.count, self.base_right, self.lost, self.gained, confidence)

    def items_needed(self, margin: float) -> int | None:
        """Items at the rate of flips that was seen."""
        flips, seen = (self.lost + self.gained) / self.count, (self.gained - self.lost) / self.count
        difference = min(seen, 0.0)
        if difference > -margin:
            return items_needed_paired(flips, margin, difference)
        return items_to_settle(math.sqrt(flips - seen**2), margin, difference)

    def stderrs(self) -> tuple[float | None, float | None]:
        """As lm-eval has them: of the mean of a sample."""
        other_right = self.base_right - self.lost + self.gained
        return _stderr_of_share(self.base_right, self.count), _stderr_of_share(other_right, self.count)


@dataclass(frozen=True, kw_only=True)
class PairedMeans:
    """A number per item."""

    base: Sequence[float]
    other: Sequence[float]
    higher_is_better: bool
    kind: Kind = "mean"

    @property
    def items(self) -> int:
        """Items on both sides."""
        return len(self.base)

    @property
    def _span(self) -> float | None:
        """1 for a metric that never leaves [0, 1]."""
        inside = all(0 <= value <= 1 for values in (self.base, self.other) for value in values)
        return 1.0 if inside else None

    def _differences(self) -> list[float]:
        return [other - base for base, other in zip(self.base, self.other, strict=True)]

    def interval(self, confidence: float) -> Interval | None:
        """Student's t over the differences."""
        return paired_t(self._differences(), confidence, span=self._span)

    def test(self) -> Test:
        """The paired t test."""
        sign = 1 if self.higher_is_better else -1
        return Test("paired t", *paired_t_test([sign * value for value in self._differences()]))

    def recovery(self, confidence: float) -> Interval | None:
        """Interval of the ratio of the means."""
        higher = self.higher_is_better
        return recovery_of_means(self.base, self.other, confidence, higher_is_better=higher, span=self._span)

    def items_needed(self, margin: float) -> int | None:
        """Items at the spread that was seen."""
        interval = self.interval(0.95)
        if interval is None or not 0 < margin <= 1:
            return None
        sign = 1 if self.higher_is_better else -1
        mean = sign * math.fsum(self._differences()) / self.items
        return items_to_settle(deviation_of(interval, self.items), margin, min(mean, 0.0))

    def stderrs(self) -> tuple[float | None, float | None]:
        """Of the mean of a sample."""
        if self.items < 2:
            return None, None
        root = math.sqrt(self.items)
        return stdev(self.base) / root, stdev(self.other) / root


@dataclass(frozen=True, kw_only=True)
class PairedPerplexities:
    """Exp of an average loss: `losses` in nats per item, each over so many words, bytes, or 1 for the item itself."""

    base_losses: Sequence[float]
    other_losses: Sequence[float]
    tokens: Sequence[float]
    kind: Kind = "perplexity"

    @property
    def items(self) -> int:
        """Items on both sides."""
        return len(self.tokens)

    def interval(self, confidence: float) -> Interval | None:
        """Of the ratio other / base."""
        return perplexity_ratio(self.base_losses, self.other_losses, self.tokens, confidence)[1]

    def test(self) -> Test:
        """The paired t test of the losses."""
        gains = [base - other for base, other in zip(self.base_losses, self.other_losses, strict=True)]
        return Test("paired t", *paired_t_test(gains))

    def recovery(self, confidence: float) -> Interval | None:
        """Interval of base / other."""
        return recovery_of_perplexity(self.interval(confidence))

    def items_needed(self, margin: float) -> int | None:
        """Items at the spread of the losses that was seen; `margin` of the ratio less one."""
        ratio, interval = perplexity_ratio(self.base_losses, self.other_losses, self.tokens)
        if interval is None:
            return None
        deviation = deviation_of(interval, self.items, log_scale=True)
        return items_to_settle(deviation, math.log1p(margin), min(-math.log(ratio), 0.0))

    def stderrs(self) -> tuple[float | None, float | None]:
        """Delta method, as for the ratio: of the base and of the other perplexity itself."""
        return self._stderr(self.base_losses), self._stderr(self.other_losses)

    def _stderr(self, losses: Sequence[float]) -> float | None:
        interval = perplexity_ratio([0.0] * self.items, losses, self.tokens, 0.6826894921370859)[1]
        if interval is None:
            return None
        middle = math.sqrt(interval.low * interval.high)
        return middle * math.log(interval.high / middle)


@dataclass(frozen=True, kw_only=True)
class PairedBits:
    """Bits per byte: the logarithm of a perplexity, so its difference is the logarithm of the ratio."""

    perplexities: PairedPerplexities
    kind: Kind = "mean"

    @property
    def items(self) -> int:
        """Items on both sides."""
        return self.perplexities.items

    def interval(self, confidence: float) -> Interval | None:
        """Of the difference in bits."""
        ratio = self.perplexities.interval(confidence)
        if ratio is None:
            return None
        low, high = math.log2(ratio.low), math.log2(ratio.high)
        return Interval(low=low, high=high, confidence=ratio.confidence, method=ratio.method)

    def test(self) -> Test:
        """That of the losses."""
        return self.perplexities.test()

    def recovery(self, confidence: float) -> None:
        """None: bits per byte have no zero that all is lost at."""
        del confidence

    def items_needed(self, margin: float) -> int | None:
        """Those of the perplexity's ratio at 2^margin."""
        return self.perplexities.items_needed(2**margin - 1)

    def stderrs(self) -> tuple[float | None, float | None]:
        """None: lm-eval has none either."""
        return None, None


def shares_of(base: Sequence[float], other: Sequence[float], *, higher_is_better: bool) -> PairedShares:
    """Count the flips of a metric that is 0 or 1 for each item."""
    right = 1.0 if higher_is_better else 0.0
    pairs = [(ours == right, theirs == right) for ours, theirs in zip(base, other, strict=True)]
    return PairedShares(
        count=len(pairs),
        base_right=sum(ours for ours, _ in pairs),
        lost=sum(ours and not theirs for ours, theirs in pairs),
        gained=sum(theirs and not ours for ours, theirs in pairs),
        higher_is_better=higher_is_better,
    )


def _stderr_of_share(right: int, items: int) -> float | None:
    return math.sqrt(right * (items - right) / items**2 / (items - 1)) if items > 1 else None


def _negated(interval: Interval) -> Interval:
    return Interval(low=-interval.high, high=-interval.low, confidence=interval.confidence, method=interval.method)
