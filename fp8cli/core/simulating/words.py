"""What a simulation is called on the command line.

--simulate fp8_dynamic                     FP8_DYNAMIC
--simulate FP8+kv                          FP8 weights and activations, and an FP8 KV cache
--simulate mxfp8+kv-head                   a KV cache with a scale for each head
--simulate none+kv                         the KV cache alone
--simulate fp8_dynamic+gptq                weights as llm-compressor's GPTQ rounds them
--simulate fp8+smoothquant-0.8+gptq+kv     SmoothQuant with a strength of its own, then GPTQ, and a KV cache
"""

from typing import Final

from fp8cli.core.quantizing.modifiers import NO_MODIFIERS, Modifiers, check_modifiers
from fp8cli.errors import UsageError
from fp8cli.schemes import SCHEMES
from fp8cli.simulator.scheme import (
    SIMULATED,
    SMOOTHING_DECIMALS,
    UNROUNDED,
    SimulatedScheme,
    scheme_named,
    with_kv_cache,
    with_modifiers,
)

PREFIX: Final = "sim:"
"""Before the word, where a simulation stands among checkpoints and labels."""

ALL_WORDS: Final = (
    f"{', '.join(map(str.lower, SIMULATED))}; +kv or +kv-head after one, or after none; +gptq, +awq, +smoothquant or "
    f"+smoothquant-0.8 after {', '.join(map(str.lower, SCHEMES))}"
)


def simulated_scheme(word: str, modifiers: Modifiers = NO_MODIFIERS) -> SimulatedScheme:
    """Return what a word stands for, in any case, `-` or `_`.

    modifiers: those that options ask for. Raises UsageError for a word that stands for nothing, and for modifiers of
    what llm-compressor does not write.
    """
    name = word.strip().upper().replace("-", "_")
    if name == UNROUNDED.name:
        message = f"`{word}` rounds nothing"
        raise UsageError(message, hint="none+kv rounds the KV cache alone; without --simulate nothing is rounded")
    scheme = scheme_named(name)
    if scheme is None:
        raise UsageError(f"`{word}` is nothing that can be simulated", hint=f"there are {ALL_WORDS}")
    if modifiers.names and scheme.modified:
        message = f"`{word}` says itself what {' and '.join(modifiers.words)} would say"
        raise UsageError(message, hint="say it once, in the word or as an option")
    if modifiers.names:
        scheme = modified(scheme, modifiers)
    _check(scheme)
    return scheme


def modified(scheme: SimulatedScheme, modifiers: Modifiers) -> SimulatedScheme:
    """Return a scheme without modifiers with these."""
    plain = SIMULATED.get(scheme.base, UNROUNDED)
    with_them = with_modifiers(plain, smoothing=modifiers.smoothing, awq=modifiers.awq, gptq=modifiers.gptq)
    return with_kv_cache(with_them, scheme.kv_cache)


def modifiers_of(scheme: SimulatedScheme) -> Modifiers:
    """Return the modifiers of a scheme as `fp8 quantize` knows them."""
    return Modifiers(smoothing=scheme.smoothing, awq=scheme.awq, gptq=scheme.gptq)


def _check(scheme: SimulatedScheme) -> None:
    modifiers = modifiers_of(scheme)
    if not modifiers.names:
        return
    if scheme.base not in SCHEMES:
        what = "no weight is rounded" if scheme.weights is None else f"fp8 quantize does not write {scheme.base}"
        message = f"{' and '.join(modifiers.names)} cannot be simulated for `{scheme.name}`: {what}"
        raise UsageError(message, hint=f"choose one of {', '.join(map(str.lower, SCHEMES))}")
    check_modifiers(modifiers)
    if modifiers.smoothing is not None and round(modifiers.smoothing, SMOOTHING_DECIMALS) != modifiers.smoothing:
        message = f"a smoothing strength of {modifiers.smoothing!r} has more than {SMOOTHING_DECIMALS} decimals"
        raise UsageError(message, hint="round it, such as --smoothing-strength 0.8")
