"""What a simulation is called on the command line.

--simulate fp8_dynamic                     FP8_DYNAMIC
--simulate FP8+kv                          FP8 weights and activations, and an FP8 KV cache
--simulate mxfp8+kv-head                   a KV cache with a scale for each head
--simulate none+kv                         the KV cache alone
"""

from typing import Final

from fp8cli.errors import UsageError
from fp8cli.simulator.scheme import EVERY_SCHEME, SIMULATED, UNROUNDED, SimulatedScheme

PREFIX: Final = "sim:"
"""Before the word, where a simulation stands among checkpoints and labels."""

ALL_WORDS: Final = f"{', '.join(map(str.lower, SIMULATED))}; +kv or +kv-head after one, or after none"


def simulated_scheme(word: str) -> SimulatedScheme:
    """Return what a word stands for, in any case, `-` or `_`. Raises UsageError for one that stands for nothing."""
    name = word.strip().upper().replace("-", "_")
    if name == UNROUNDED.name:
        message = f"`{word}` rounds nothing"
        raise UsageError(message, hint="none+kv rounds the KV cache alone; without --simulate nothing is rounded")
    scheme = EVERY_SCHEME.get(name)
    if scheme is None:
        raise UsageError(f"`{word}` is nothing that can be simulated", hint=f"there are {ALL_WORDS}")
    return scheme
