"""What is to become FP8, by the words of the command line: a scheme of the weights, the KV cache, or both.

--scheme FP8_DYNAMIC                       NAME-FP8-dynamic
--scheme FP8_DYNAMIC --gptq                NAME-FP8-dynamic-GPTQ
--scheme FP8 --kv-cache fp8                NAME-FP8-KV
--scheme FP8 --kv-cache fp8-head           NAME-FP8-KV-head
--scheme none --kv-cache fp8               NAME-KV
--recipe FILE                              NAME-recipe
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fp8cli.core.quantizing.modifiers import NO_MODIFIERS, Modifiers
from fp8cli.errors import UsageError
from fp8cli.schemes import SCHEMES, KvCache, Scheme

NO_SCHEME: Final = "none"
"""The word for weights that stay as they are."""

KV_CACHES: Final[Mapping[str, KvCache]] = {"fp8": "tensor", "fp8-head": "head"}
"""The words of --kv-cache."""

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,79}", re.ASCII)

_SUFFIXES: Final[Mapping[KvCache, str]] = {"tensor": "KV", "head": "KV-head"}
_SUMMARIES: Final[Mapping[KvCache, str]] = {
    "tensor": "FP8 KV cache, a scale per layer, calibrated",
    "head": "FP8 KV cache, a scale per KV head, calibrated",
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A scheme, a KV cache, or both, and how the weights come to it; or a recipe that says all of that."""

    scheme: Scheme | None
    """None: the weights stay as they are, or as a recipe says."""
    kv_cache: KvCache | None
    """None: vLLM keeps keys and values in 16 bits unless it is told otherwise."""
    modifiers: Modifiers = NO_MODIFIERS
    recipe: str | None = None
    """Name of the file of an llm-compressor recipe; then all else is left open."""

    @property
    def needs_calibration(self) -> bool:
        """Whether something needs data: scales, or a modifier. Of a recipe llm-compressor has to say."""
        static = self.scheme is not None and self.scheme.needs_calibration
        return static or self.kv_cache is not None or bool(self.modifiers.names)

    @property
    def suffix(self) -> str:
        """What the default output folder's name has after the model's."""
        if self.recipe is not None:
            return "recipe"
        cache = None if self.kv_cache is None else _SUFFIXES[self.kv_cache]
        weights = self.scheme and self.scheme.suffix
        return "-".join(part for part in (weights, *self.modifiers.suffixes, cache) if part)

    @property
    def name(self) -> str:
        """The choice in a word or two, for titles and cards."""
        cache = self.kv_cache and "FP8 KV cache"
        recipe = self.recipe and "recipe"
        parts = (recipe, self.scheme and self.scheme.name, *self.modifiers.names, cache)
        return " + ".join(part for part in parts if part)

    @property
    def summary(self) -> str:
        """The choice in a sentence."""
        cache = None if self.kv_cache is None else _SUMMARIES[self.kv_cache]
        # What is no plain name would be markup in a card.
        named = f"`{self.recipe}`" if self.recipe and _PLAIN_NAME.fullmatch(self.recipe) else "the recipe"
        recipe = self.recipe and f"as {named} has it, by llm-compressor"
        how = ("weights by " + " and ".join(self.modifiers.names)) if self.modifiers.names else None
        return "; ".join(part for part in (recipe, self.scheme and self.scheme.summary, how, cache) if part)


def choose(scheme: str, kv_cache: str | None, modifiers: Modifiers = NO_MODIFIERS) -> Choice:
    """Return what the words stand for, in any case. Raises UsageError for words that stand for nothing."""
    cache = None
    if kv_cache is not None:
        cache = KV_CACHES.get(kv_cache.lower().replace("_", "-"))
        if cache is None:
            message = f"`{kv_cache}` is no form of KV cache"
            raise UsageError(message, hint=f"--kv-cache takes {' or '.join(KV_CACHES)}")
    if scheme.lower() == NO_SCHEME:
        if cache is None:
            message = f"--scheme {NO_SCHEME} leaves the weights as they are, and nothing else is to be quantized"
            raise UsageError(message, hint="add --kv-cache fp8, or choose a scheme")
        if modifiers.names:
            message = f"{' and '.join(modifiers.words)} would have no effect: no weight is quantized"
            raise UsageError(message, hint="choose a scheme")
        return Choice(scheme=None, kv_cache=cache)
    found = SCHEMES.get(scheme.upper().replace("-", "_"))
    if found is None:
        message = f"`{scheme}` is no scheme"
        raise UsageError(message, hint=f"--scheme takes one of {', '.join(SCHEMES)}, or {NO_SCHEME} with --kv-cache")
    return Choice(scheme=found, kv_cache=cache, modifiers=modifiers)
