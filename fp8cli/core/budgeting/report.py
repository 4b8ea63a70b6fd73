"""What a choice within a budget says: every group with how fragile it is, the curve, and the set that was chosen."""

from dataclasses import dataclass
from typing import Literal

from fp8cli.measurer.budget_protocol import GoalKind


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """One group of Linears that share one fate."""

    name: str
    modules: tuple[str, ...]
    saved_bytes: int
    """What quantizing it saves; not above 0 for a head that is tied to the embedding, which stays without asking."""
    kept: bool
    """Whether it stays in 16 bits."""
    kl_alone: float | None
    """KL with this group alone in FP8, nats. None: not measured."""
    kl_share: float | None
    """Its share of the KL of everything in FP8, nats, see `measurer.budget_choosing`."""
    weight_sqnr_db: float | None
    """Of the worst of its weights; infinite where nothing changes. None: not measured."""
    output_sqnr_db: float | None
    """Of the worst of its outputs, for its own inputs."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One set of groups in 16 bits, all others in FP8."""

    kept: tuple[int, ...]
    """Places in `BudgetReport.groups`."""
    tensor_bytes: int
    """Of the whole checkpoint."""
    kl: float | None
    """Measured, nats; None without data."""
    kl_se: float | None
    """Its standard error."""
    same_top: float | None
    """Share of the positions where the likeliest token is that of the model as it is."""
    lowest_sqnr_db: float | None
    """Of the groups that are in FP8, as far as it is known: of their outputs if those were measured, else of their
    weights. None where no group is left."""
    own_run: bool
    """Whether modifiers ran for this set alone, as for the checkpoint; else, if there are any, it was measured on the
    model as they leave it with every group in FP8."""
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class BudgetReport:
    """What was asked for, what was measured, and what was chosen."""

    kind: GoalKind
    value: float
    """Nats, decibels or bytes."""
    said: str
    """`--max-kl 0.01`."""
    source: Literal["data", "weights"]
    """What sensitivities come from."""
    data: str | None
    """The texts, as they were named."""
    data_fingerprint: str | None
    samples: int | None
    tokens: int | None
    token_ids_sha256: str | None
    positions: int | None
    """Next-token distributions that each KL is the mean of."""
    groups: tuple[GroupReport, ...]
    """Most fragile first."""
    curve: tuple[CurvePoint, ...]
    """By bytes: measured sets that no other beats in bytes and KL, and the chosen one; without data, some sets that the
    ranking of groups gives."""
    chosen: CurvePoint
    kept_modules: tuple[str, ...]
    ignore: tuple[str, ...]
    """The same as `ignore` of a recipe has it."""
    measured: int
    """Sets whose KL was measured."""
    modifiers: tuple[str, ...]
    """`GPTQ`, `SmoothQuant 0.5`, `AWQ`: what llm-compressor did to the weights that were measured."""
    runs: int
    """Of the sets, those that modifiers ran for alone; the chosen one is among them."""
    exhausted: bool
    """Whether measurements, or runs of modifiers, ran out before all neighbours of the chosen set were tried."""
    device: str | None
    """That it was measured on."""
    seconds: float
    known: bool
    """Whether an unfinished run had measured it already."""
    notes: tuple[str, ...]
