"""What a checkpoint says of the choice of what stays in 16 bits: the same facts in its card and in its recipe.

Nothing here depends on the date or on how long it took.
"""

import re
from dataclasses import dataclass
from typing import Final

from fp8cli.errors import showable

_MARKUP: Final = re.compile(r"[`|<>\[\]\\*_~]")


@dataclass(frozen=True, kw_only=True)
class BudgetNote:
    """The budget, what met it, and where that is known from."""

    said: str
    """`--max-kl 0.01`."""
    kept: int
    groups: int
    """Groups of Linears that share one fate; `kept` of them stay in 16 bits."""
    data: str | None
    """A data set of the Hub, or the name of a file without its folders; None: the weights alone were looked at."""
    positions: int | None
    kl: float | None
    """Measured, nats; so its standard error."""
    kl_se: float | None
    fitted: tuple[str, ...] = ()
    """llm-compressor's modifiers, which had the same data."""

    def sentence(self) -> str:
        """What was chosen, and what it came to."""
        stay = "stays" if self.kept == 1 else "stay"
        chosen = f"{self.said}: {self.kept:,} of {self.groups:,} groups of Linears {stay} in 16 bits"
        if self.data is None or self.kl is None:
            return f"{chosen}, chosen by the noise of their weights alone; no KL was measured"
        fitted = f", which {' and '.join(self.fitted)} had too" if self.fitted else ""
        error = 0.0 if self.kl_se is None else self.kl_se
        return (
            f"{chosen}, with a KL of {self.kl:.3g} ± {error:.1g} nats to the source, measured by simulation on "
            f"{self.positions or 0:,} tokens of {showable(self.data)}{fitted}"
        )

    def for_card(self) -> str:
        """The sentence as a cell of a Markdown table, in which no name can be markup."""
        return _MARKUP.sub(lambda sign: f"&#{ord(sign.group())};", self.sentence())

    def for_recipe(self) -> str:
        """The sentence as a comment of YAML."""
        return f"# Kept in 16 bits by {self.sentence()}\n"
