"""The model of a budget in any of its forms: some Linears rounded, the others not, and back again.

Without modifiers a form is simulated and taken back; with them llm-compressor has prepared a copy, see
`simulator.preparing`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fp8cli.simulator.applying import simulated
from fp8cli.simulator.finding import find_outputs
from fp8cli.simulator.observing import Observed
from fp8cli.simulator.scheme import SimulatedScheme


class Forms(Protocol):
    """What a choice needs of either."""

    @property
    def model(self) -> Any:
        """The model that is asked."""

    @property
    def noise(self) -> Mapping[str, Sequence[float]]:
        """By module that was ever rounded: the sum of squares of its weight, and of what rounding changed in it."""

    def rounded(self, modules: Collection[str], *, cache: bool = True) -> AbstractContextManager[None]:
        """Round these Linears while it lasts. cache: whether the KV cache is rounded too, if the scheme has one."""

    def layers(self, modules: Collection[str]) -> Sequence[Any]:
        """Return what puts out the outputs of these Linears, see `find_outputs`."""


@dataclass(frozen=True, kw_only=True)
class SimulatedForms:
    """Forms without modifiers."""

    model: Any
    scheme: SimulatedScheme
    observed: Observed | None
    noise: dict[str, Sequence[float]] = field(default_factory=dict)

    @contextmanager
    def rounded(self, modules: Collection[str], *, cache: bool = True) -> Iterator[None]:
        """See `Forms`."""
        scheme = self.scheme if cache else replace(self.scheme, kv_cache=None)
        with simulated(self.model, scheme, modules, self.observed) as simulation:
            self.noise.update(simulation.noise)
            yield

    def layers(self, modules: Collection[str]) -> Sequence[Any]:
        """See `Forms`."""
        return find_outputs(self.model, modules)
