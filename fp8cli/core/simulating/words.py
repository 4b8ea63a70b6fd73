"""What a simulation is called on the command line.

--simulate fp8_dynamic                     FP8_DYNAMIC
--simulate FP8+kv                          FP8 weights and activations, and an FP8 KV cache
--simulate mxfp8+kv-head                   a KV cache with a scale for each head
--simulate none+kv                         the KV cache alone
"""

from collections.abc import Mapping
from typing import Final

from fp8cli.errors import UsageError
from fp8cli.simulator.scheme import SIMULATED, UNROUNDED, KvRounding, SimulatedScheme, with_kv_cache

PREFIX: Final = "sim:"
"""Before the word, where a simulation stands among checkpoints and labels."""

_KV_WORDS: Final[Mapping[str, KvRounding]] = {"KV": "tensor", "KV_HEAD": "head"}

ALL_WORDS: Final = f"{', '.join(map(str.lower, SIMULATED))}; +kv or +kv-head after one, or after none"


def simulated_scheme(word: str) -> SimulatedScheme:
    """Return what a word stands for, in any case, `-` or `_`. Raises UsageError for one that stands for nothing."""
    name, plus, cache = word.strip().upper().replace("-", "_").partition("+")
    kv = _KV_WORDS.get(cache) if plus else None
    scheme = UNROUNDED if name == UNROUNDED.name else SIMULATED.get(name)
    if scheme is None or (plus and kv is None):
        raise UsageError(f"`{word}` is nothing that can be simulated", hint=f"there are {ALL_WORDS}")
    if scheme is UNROUNDED and kv is None:
        raise UsageError(f"`{word}` rounds nothing", hint="none+kv rounds the KV cache alone; fp8 eval needs no word")
    return with_kv_cache(scheme, kv)
