"""What a checkpoint says of the data its scales come from: the same facts in its card and in its recipe.

Nothing here depends on the machine or the date.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fp8cli.errors import showable

_TOOLS: Final = ("llmcompressor", "compressed-tensors", "transformers")
_MARKUP: Final = re.compile(r"[`|<>\[\]\\*_~]")


@dataclass(frozen=True, kw_only=True)
class CalibrationNote:
    """The data of a calibration and what read it."""

    source: str
    """A data set of the Hub, or the name of a file without its folders: where it lay is nobody's business."""
    samples: int
    tokens: int
    max_seq_length: int
    seed: int
    token_ids_sha256: str
    """Of the JSON of all token ids without blanks, `[[1,5],[1,7]]`: it tells data and tokenizer apart."""
    versions: Mapping[str, str]
    """Of the packages that found the scales."""

    @property
    def name(self) -> str:
        """The data by a name that may be shown to anyone, on one line."""
        return showable(self.source)

    @property
    def tools(self) -> Mapping[str, str]:
        """The packages whose versions belong into a card."""
        return {name: self.versions[name] for name in _TOOLS if name in self.versions}

    def sentence(self) -> str:
        """What was taken, without the digest."""
        return (
            f"{self.samples:,} samples of {self.name}: {self.tokens:,} tokens, "
            f"at most {self.max_seq_length:,} a sample, seed {self.seed}"
        )

    def for_card(self) -> str:
        """The sentence and the digest as a cell of a Markdown table, in which no name can be markup."""
        plain = _MARKUP.sub(lambda sign: f"&#{ord(sign.group())};", self.sentence())
        return f"{plain}; SHA-256 of the token ids `{self.token_ids_sha256}`"

    def for_recipe(self) -> str:
        """The same as comments of YAML, which whoever runs the recipe again does not see."""
        return f"# Calibrated on {self.sentence()}\n# SHA-256 of the token ids: {self.token_ids_sha256}\n"
