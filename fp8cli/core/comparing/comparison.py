"""What a comparison of evaluations says, as data: `assembly` makes it, and `render` shows it.

The first side is the base; every other one is set beside it in a contest of its own. All differences are other − base,
in the metric's own unit (0.01 of an accuracy is one percentage point, pp).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["pass", "regression", "inconclusive"]
"""Not worse than the margin allows; worse, and not by chance; or too few items to say either."""

Kind = Literal["share", "mean", "perplexity", "other"]
"""Of a metric: right or wrong per item; a number per item, averaged; exp of an average loss, compared as a ratio; a
number of the whole task, of which nothing per item is known."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where a number lies, with the confidence that the method promises."""

    low: float
    high: float
    confidence: float
    """Two-sided, such as 0.95."""
    method: str
    """Such as `paired score (Tango)`, `paired t`, `unpaired normal`."""


@dataclass(frozen=True, kw_only=True)
class MetricComparison:
    """One metric of one task on both sides."""

    metric: str
    filter: str
    kind: Kind
    higher_is_better: bool
    items: int
    paired: bool
    """Whether it rests on the same items, one by one."""
    base: float
    other: float
    base_stderr: float | None
    other_stderr: float | None
    difference: float
    interval: Interval | None
    """Of the difference; of the ratio for a perplexity."""
    ratio: float | None
    """other / base, for a perplexity."""
    test: str | None
    """Such as `exact McNemar`."""
    p_value: float | None
    """Two-sided."""
    p_worse: float | None
    """One-sided, that the other is worse."""
    p_worse_holm: float | None
    """The same, adjusted for all tasks of the contest (Holm); of the deciding metric only."""
    recovery: float | None
    """Percent of the base's value that the other keeps; from lower-is-better metrics the inverse."""
    recovery_interval: Interval | None
    chance: float | None
    """What guessing gets, where it is known: one over the number of choices."""
    recovery_above_chance: float | None
    decides: bool
    """Whether the verdict on the task rests on it."""
    verdict: Verdict | None
    """Of the deciding metric."""
    reason: str | None
    """One sentence why."""
    items_needed: int | None
    """Items that would settle it, at the rate of flips, or the spread, that was seen; None where it is settled."""


@dataclass(frozen=True, kw_only=True)
class Flips:
    """How many items changed sides."""

    items: int
    lost: int
    """Right on the base, wrong on the other."""
    gained: int
    answers: int
    """Items whose answer (choice or text) is known on both sides."""
    answers_changed: int
    """Also from one wrong answer to another."""


@dataclass(frozen=True, kw_only=True)
class ChangedItem:
    """One item whose outcome or answer differs."""

    task: str
    doc_id: int
    change: Literal["lost", "gained", "answer"]
    prompt: str
    target: str
    base_answer: str
    other_answer: str


@dataclass(frozen=True, kw_only=True)
class TaskComparison:
    """One task on both sides."""

    task: str
    version: str | None
    num_fewshot: int | None
    items: int
    metrics: tuple[MetricComparison, ...]
    """The deciding one first."""
    flips: Flips | None
    verdict: Verdict
    note: str | None
    """Such as that samples are missing, so that nothing is paired."""


@dataclass(frozen=True, kw_only=True)
class Total:
    """All tasks of a contest whose deciding metric is a share or a mean of shares."""

    tasks: int
    items: int
    base: float
    """Mean over tasks."""
    other: float
    macro_difference: float
    macro_interval: Interval | None
    """Every task weighs the same."""
    micro_difference: float
    micro_interval: Interval | None
    """Every item weighs the same."""
    recovery: float | None
    """Ratio of the two means over tasks, in percent."""
    flips: Flips | None


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Of a quantity over positions."""

    low_1: float
    """1 %."""
    median: float
    high_90: float
    high_95: float
    high_99: float
    high_999: float
    """99.9 %."""
    largest: float


@dataclass(frozen=True, kw_only=True)
class FidelityComparison:
    """How far apart the next-token distributions are, over the same tokens on both sides."""

    exact: bool
    """False: a lower bound, from the most likely tokens of both."""
    of: str
    positions: int
    documents: int
    kl_mean: float
    """Nats, of base against other: Σ p ln(p/q)."""
    kl_stderr: float
    """Clustered by document."""
    kl: Quantiles
    captured: float
    """Mean probability of the base on the tokens that were compared; 1 where all were."""
    same_top: float
    """Share of positions with the same most likely token."""
    same_top_interval: Interval
    delta_p_mean: float
    """Change of the probability of the token that comes next."""
    delta_p_rms: float
    delta_p: Quantiles
    perplexity_base: float
    perplexity_other: float
    perplexity_ratio: float
    perplexity_ratio_interval: Interval
    histogram_edges: tuple[float, ...]
    """Of KL in nats, logarithmic; one more than counts."""
    histogram_counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting in which two runs differ."""

    key: str
    """What `--allow` takes."""
    what: str
    base: str
    other: str
    allowed: bool


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the things compared."""

    label: str
    model: str | None
    sources: tuple[str, ...]
    """Files that its numbers come from."""
    quantization: str | None
    executed_as: str | None
    backend: str | None
    hardware: str | None
    created: str | None
    bytes_on_disk: int | None
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None
    tokens_per_second: float | None
    seconds: float | None
    settings: Mapping[str, str]
    """What to show of how it was run."""
    notes: tuple[str, ...]
    simulated: str | None = None
    """The scheme that was simulated: no such checkpoint exists, so nobody knows its speed or memory."""
    predicted_bytes: int | None = None
    """Of the weights that it would have on disk."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Another side against the base."""

    other: Side
    tasks: tuple[TaskComparison, ...]
    total: Total | None
    fidelity: FidelityComparison | None
    fidelity_missing: str | None
    """Why there is none, in one sentence."""
    differences: tuple[Difference, ...]
    """All allowed; what is not allowed is refused before."""
    changed: tuple[ChangedItem, ...]
    """Every item that flipped, then other answers that changed."""
    verdict: Verdict
    reason: str
    """One sentence."""
    not_checked: tuple[str, ...] = ()
    """What could not be compared because one of the two does not say it, such as `tokenizer`."""
    notes: tuple[str, ...] = ()
    """What else a reader must know, such as tasks that only one side has. One sentence each."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The whole."""

    base: Side
    contests: tuple[Contest, ...]
    noise: Contest | None
    """The base against itself in other arithmetic: what changes without any quantization."""
    margin: float
    """In the metric's unit: 0.01 is one percentage point."""
    perplexity_margin: float
    """Of the ratio less one."""
    confidence: float
    verdict: Verdict
    """The worst of the contests."""
    command: str = ""
    """That made this comparison, to be typed again."""
    notes: tuple[str, ...] = ()
    """About the whole, such as which of two things a name was taken to mean."""
