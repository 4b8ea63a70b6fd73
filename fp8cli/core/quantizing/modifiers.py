"""What may be done to weights besides rounding each to its nearest code: llm-compressor's modifiers, by their words.

SmoothQuant (arXiv 2211.10438) and AWQ (2306.00978) move the scale of channels from activations into weights; GPTQ
(2210.17323) rounds the columns of a weight one after another, and lets the later ones make up for what the earlier
ones lost. All three need data, and none of them changes what a checkpoint looks like to who loads it.
"""

from dataclasses import dataclass
from typing import Final

from fp8cli.errors import UsageError

SMOOTHING_DEFAULT: Final = 0.5
"""llm-compressor's own: half of the scale of each channel goes over."""


@dataclass(frozen=True, kw_only=True)
class Modifiers:
    """Which of them are used."""

    smoothing: float | None = None
    """SmoothQuant's strength, 0 to 1; None: without it."""
    awq: bool = False
    gptq: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called, in the order in which they act."""
        smooth = "" if self.smoothing is None else f"SmoothQuant {self.smoothing:g}"
        return tuple(name for name in (smooth, self.awq and "AWQ", self.gptq and "GPTQ") if name)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the default output folder's name has of them."""
        return tuple(name.partition(" ")[0] for name in self.names)

    @property
    def words(self) -> tuple[str, ...]:
        """The options that ask for them."""
        smooth = "" if self.smoothing is None else "--smoothquant"
        return tuple(word for word in (smooth, self.awq and "--awq", self.gptq and "--gptq") if word)

    @property
    def options(self) -> tuple[str, ...]:
        """The options with their values, as a command has them."""
        strength = self.smoothing
        told = () if strength in {None, SMOOTHING_DEFAULT} else ("--smoothing-strength", f"{strength:g}")
        return (*self.words, *told)


NO_MODIFIERS: Final = Modifiers()


def choose_modifiers(*, smoothquant: bool, strength: float | None, awq: bool, gptq: bool) -> Modifiers:
    """Return what the options ask for. Raises UsageError for what makes no sense."""
    if strength is not None and not smoothquant:
        message = f"--smoothing-strength {strength:g} would have no effect without --smoothquant"
        raise UsageError(message, hint="add --smoothquant, or leave it out")
    smoothing = (SMOOTHING_DEFAULT if strength is None else strength) if smoothquant else None
    modifiers = Modifiers(smoothing=smoothing, awq=awq, gptq=gptq)
    check_modifiers(modifiers)
    return modifiers


def check_modifiers(modifiers: Modifiers) -> None:
    """Refuse a strength that is none, and modifiers that do the same. Raises UsageError."""
    smoothing = modifiers.smoothing
    # Not a chain of comparisons turned around: NaN is refused too.
    if smoothing is not None and not 0 <= smoothing <= 1:
        message = f"--smoothing-strength {smoothing:g} is not between 0 and 1"
        raise UsageError(message, hint=f"0.5, the default, shares evenly: --smoothing-strength {SMOOTHING_DEFAULT}")
    if smoothing is not None and modifiers.awq:
        message = "--smoothquant and --awq both move the scale of channels from activations into weights"
        raise UsageError(message, hint="use one of the two; --gptq goes with either")
