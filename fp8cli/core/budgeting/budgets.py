"""The budgets of `--keep-bf16 auto`: what the user says of them, and what of it makes no sense.

--max-kl NATS       the fewest bytes in 16 bits with which KL, measured on data, is at most that
--min-sqnr DB       16 bits for every group whose outputs, measured on data, or weights, without it, have less
--target-size SIZE  the least KL, or without data the least noise of weights, in files of at most that size
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.quantizing.resources import parse_size
from fp8cli.errors import UsageError
from fp8cli.measurer.budget_protocol import GoalKind

AUTO: Final = "auto"

WORDS: Final[Mapping[GoalKind, str]] = {"kl": "--max-kl", "sqnr": "--min-sqnr", "size": "--target-size"}

_EXAMPLES: Final = "--max-kl 0.01, --min-sqnr 25 or --target-size 4.5GB"


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """What the user said; None: nothing."""

    keep: str | None = None
    max_kl: float | None = None
    """Nats."""
    min_sqnr: float | None = None
    """Decibels."""
    target_size: str | None = None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What is to be met."""

    kind: GoalKind
    value: float
    """Nats, decibels or bytes."""
    said: str
    """As the user wrote it: `--max-kl 0.01`."""


def read_budget(options: BudgetOptions, choice: Choice) -> Budget | None:
    """Return the budget that the options ask for; None for none. Raises UsageError for what makes no sense."""
    given: Mapping[GoalKind, float | str | None] = {
        "kl": options.max_kl,
        "sqnr": options.min_sqnr,
        "size": options.target_size,
    }
    named = [kind for kind, value in given.items() if value is not None]
    if options.keep is None:
        if named:
            message = f"{WORDS[named[0]]} is a budget for what stays in 16 bits, and nothing asks for that"
            raise UsageError(message, hint=f"add --keep-bf16 {AUTO}")
        return None
    if options.keep.lower() != AUTO:
        message = f"--keep-bf16 takes `{AUTO}`, not `{options.keep}`"
        raise UsageError(message, hint="modules that are to stay as they are go into --ignore, by name")
    if len(named) != 1:
        found = " and ".join(WORDS[kind] for kind in named) or "no budget"
        raise UsageError(f"--keep-bf16 {AUTO} takes one budget, and there is {found}", hint=f"give one of {_EXAMPLES}")
    if choice.recipe is not None:
        message = f"a recipe says itself what stays as it is, so --keep-bf16 {AUTO} would have no effect"
        raise UsageError(message, hint="leave it out, or write what is to stay into the recipe's ignore")
    if choice.scheme is None:
        message = f"no weight is quantized, so --keep-bf16 {AUTO} would have no effect"
        raise UsageError(message, hint="leave it out, or choose a scheme")
    kind = named[0]
    said = given[kind]
    value = float(parse_size(said, option=WORDS[kind]) if isinstance(said, str) else said or 0.0)
    written = said if isinstance(said, str) else f"{value:g}"
    if not math.isfinite(value) or (kind != "sqnr" and value < 0):
        what = "a number of nats, 0 or more" if kind == "kl" else "a number of decibels"
        raise UsageError(f"{WORDS[kind]} takes {what}, not {written}", hint=f"such as {_EXAMPLES}")
    return Budget(kind=kind, value=value, said=f"{WORDS[kind]} {written}")
