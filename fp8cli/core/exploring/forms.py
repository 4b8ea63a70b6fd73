"""The forms of FP8 that an exploration sets side by side: what each is, whether it can be written, where it is native.

A form is a scheme as the simulator knows it. Those of `fp8cli.schemes`, with a KV cache or without, `fp8 quantize`
writes; the others can only be simulated, and stand in the table for what they would be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.core.quantizing.choices import KV_CACHES, NO_SCHEME, Choice
from fp8cli.core.quantizing.modifiers import Modifiers
from fp8cli.core.serving.modes import KV_CACHE_FROM, NATIVE_FROM, Capability, takes_head_scales
from fp8cli.core.simulating.words import modified, modifiers_of, simulated_scheme
from fp8cli.errors import UsageError
from fp8cli.schemes import SCHEMES, KvCache
from fp8cli.simulator.scheme import SIMULATED, UNROUNDED, SimulatedScheme, with_kv_cache

_WORDS: Final = {cache: word for word, cache in KV_CACHES.items()}
_MX: Final = "MXFP8"


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of a model."""

    scheme: SimulatedScheme
    choice: Choice | None
    """How `fp8 quantize` makes it; None: it does not."""

    @property
    def name(self) -> str:
        """`FP8_DYNAMIC+KV`."""
        return self.scheme.name

    @property
    def words(self) -> tuple[str, ...]:
        """What makes it, behind `fp8 quantize MODEL`; nothing where nothing does."""
        if self.choice is None:
            return ()
        scheme = NO_SCHEME if self.choice.scheme is None else self.choice.scheme.name
        cache = () if self.choice.kv_cache is None else ("--kv-cache", _WORDS[self.choice.kv_cache])
        return ("--scheme", scheme, *self.choice.modifiers.options, *cache)

    @property
    def native_from(self) -> Capability | None:
        """Lowest CUDA compute capability on which vLLM computes all of it in FP8; None: on none, or not in FP8."""
        cache = None if self.scheme.kv_cache is None else KV_CACHE_FROM
        if self.scheme.weights is None:
            return cache
        if self.choice is not None and self.choice.scheme is not None:
            return max(self.choice.scheme.native_capability, cache or (0, 0))
        mx = NATIVE_FROM["mx"]
        return mx if self.scheme.name.startswith(_MX) else None

    def is_native_on(self, capability: Capability) -> bool:
        """Whether vLLM computes all of it in FP8 on an NVIDIA GPU of that capability."""
        heads = self.scheme.kv_cache != "head" or takes_head_scales(capability)
        return heads and self.native_from is not None and capability >= self.native_from


def default_forms() -> tuple[Form, ...]:
    """Return every form that can be written, with and without an FP8 KV cache, and then those that cannot."""
    written = [SIMULATED[name] for name in SCHEMES]
    others = [scheme for name, scheme in SIMULATED.items() if name not in SCHEMES]
    cached = [with_kv_cache(scheme, "tensor") for scheme in (*written, UNROUNDED)]
    return tuple(map(form_of, (*written, *cached, *others)))


def named_forms(words: Sequence[str]) -> tuple[Form, ...]:
    """Return the forms of some words, several of which may be joined by commas, each once.

    Raises UsageError for a word that stands for nothing, and where there is none.
    """
    each = [word.strip() for joined in words for word in joined.split(",")]
    schemes = {scheme.name: scheme for word in each if word for scheme in [simulated_scheme(word)]}
    if not schemes:
        raise UsageError("--scheme names no scheme", hint="leave it out to explore all of them")
    return tuple(map(form_of, schemes.values()))


def modified_forms(forms: Sequence[Form], modifiers: Modifiers) -> tuple[Form, ...]:
    """Return forms with these modifiers, one for each that can be written, has none, and leaves the KV cache alone.

    Raises UsageError where modifiers are asked for and there is no such form.
    """
    if not modifiers.names:
        return ()
    plain = [each.scheme for each in forms if each.scheme.base in SCHEMES and not each.scheme.modified]
    there = {form.name for form in forms}
    found = [modified(scheme, modifiers) for scheme in plain if scheme.kv_cache is None]
    new = tuple(form_of(simulated_scheme(scheme.name)) for scheme in found if scheme.name not in there)
    if not new:
        message = f"{' and '.join(modifiers.words)} would have no effect: there is no form to add that to"
        raise UsageError(message, hint=f"add a scheme without +kv: --scheme {', '.join(map(str.lower, SCHEMES))}")
    return new


def form_of(scheme: SimulatedScheme) -> Form:
    """Return a scheme as a form, with the choice of `fp8 quantize` that makes it, if there is one."""
    base = scheme.base
    cache: KvCache | None = scheme.kv_cache
    if scheme.weights is None:
        return Form(scheme=scheme, choice=Choice(scheme=None, kv_cache=cache))
    if base in SCHEMES:
        choice = Choice(scheme=SCHEMES[base], kv_cache=cache, modifiers=modifiers_of(scheme))
        return Form(scheme=scheme, choice=choice)
    return Form(scheme=scheme, choice=None)
