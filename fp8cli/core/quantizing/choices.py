"""What is to become FP8, by the words of the command line: a scheme of the weights, the KV cache, or both.

--scheme FP8_DYNAMIC                       NAME-FP8-dynamic
--scheme FP8 --kv-cache fp8                NAME-FP8-KV
--scheme FP8 --kv-cache fp8-head           NAME-FP8-KV-head
--scheme none --kv-cache fp8               NAME-KV
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fp8cli.errors import UsageError
from fp8cli.schemes import SCHEMES, KvCache, Scheme

NO_SCHEME: Final = "none"
"""The word for weights that stay as they are."""

KV_CACHES: Final[Mapping[str, KvCache]] = {"fp8": "tensor", "fp8-head": "head"}
"""The words of --kv-cache."""

_SUFFIXES: Final[Mapping[KvCache, str]] = {"tensor": "KV", "head": "KV-head"}
_SUMMARIES: Final[Mapping[KvCache, str]] = {
    "tensor": "FP8 KV cache, a scale per layer, calibrated",
    "head": "FP8 KV cache, a scale per KV head, calibrated",
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A scheme, a KV cache, or both."""

    scheme: Scheme | None
    """None: the weights stay as they are."""
    kv_cache: KvCache | None
    """None: vLLM keeps keys and values in 16 bits unless it is told otherwise."""

    @property
    def needs_calibration(self) -> bool:
        """Whether there are scales that only data can tell."""
        return self.kv_cache is not None or (self.scheme is not None and self.scheme.needs_calibration)

    @property
    def suffix(self) -> str:
        """What the default output folder's name has after the model's."""
        cache = None if self.kv_cache is None else _SUFFIXES[self.kv_cache]
        return "-".join(part for part in (self.scheme and self.scheme.suffix, cache) if part)

    @property
    def name(self) -> str:
        """The choice in a word or two, for titles and cards."""
        return " + ".join(part for part in (self.scheme and self.scheme.name, self.kv_cache and "FP8 KV cache") if part)

    @property
    def summary(self) -> str:
        """The choice in a sentence."""
        cache = None if self.kv_cache is None else _SUMMARIES[self.kv_cache]
        return "; ".join(part for part in (self.scheme and self.scheme.summary, cache) if part)


def choose(scheme: str, kv_cache: str | None) -> Choice:
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
        return Choice(scheme=None, kv_cache=cache)
    found = SCHEMES.get(scheme.upper().replace("-", "_"))
    if found is None:
        message = f"`{scheme}` is no scheme"
        raise UsageError(message, hint=f"--scheme takes one of {', '.join(SCHEMES)}, or {NO_SCHEME} with --kv-cache")
    return Choice(scheme=found, kv_cache=cache)
