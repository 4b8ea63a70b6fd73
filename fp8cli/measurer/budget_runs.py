"""llm-compressor's modifiers run for a choice within a budget: once for everything, then for single sets.

A run for a set is what making the checkpoint will be, with the same texts and seed: what it comes to is what that
checkpoint does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fp8cli.measurer.budget_choosing import Kept
from fp8cli.measurer.budget_forms import Forms, SimulatedForms
from fp8cli.measurer.budget_outputs import measure_outputs
from fp8cli.measurer.protocol import MeasureJob
from fp8cli.measurer.reference import Divergence, Reference
from fp8cli.samples.encoding import Encoded, load_tokenizer
from fp8cli.simulator.observing import observe
from fp8cli.simulator.scheme import SimulatedScheme
from fp8cli.worker.progress import Progress

Sums = list[list[float]]
"""Of each layer, of a weight or of outputs: [sum of squares, that of what rounding changed]."""


def ratio_of(sums: Sequence[Sequence[float]]) -> float:
    """Return the most noise by signal of some layers; 0 where there is no signal."""
    return max((noise / signal if signal else 0.0 for signal, noise in sums), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Making:
    """The model, and what its forms are made by."""

    job: MeasureJob
    scheme: SimulatedScheme
    model: Any
    encoded: Encoded
    progress: Progress

    def forms(self, modules: Sequence[str]) -> Forms:
        """Return the model in all forms that rounding some of these Linears gives."""
        if self.scheme.modified:
            return self._prepared(modules)
        observed = None
        if self.scheme.needs_data:
            observed = observe(self.model, modules, self.scheme.kv_cache, self.encoded.ids)
        return SimulatedForms(model=self.model, scheme=self.scheme, observed=observed)

    def _prepared(self, modules: Sequence[str]) -> Forms:
        from fp8cli.simulator.preparing import prepare

        assert self.job.samples is not None  # noqa: S101 - modifiers have texts
        return prepare(
            self.model,
            self.scheme,
            modules,
            tokenizer=load_tokenizer(self.job.model),
            encoded=self.encoded,
            seed=self.job.samples.seed,
            notify=lambda done, total: self.progress.tell("modifying", done=done, total=total),
        )


@dataclass(kw_only=True)
class Runs:
    """Runs for single sets."""

    making: Making
    first: Forms
    """What the run for everything came to."""
    reference: Reference
    modules: Sequence[Sequence[str]]
    """Of each group, by the names that the model has for them."""
    found: dict[Kept, Divergence] = field(default_factory=dict)
    outputs: dict[int, Sums] = field(default_factory=dict)
    """Of each group that was in FP8 in the last run that asked for outputs."""

    def kl(self, kept: Kept) -> float:
        """Run the modifiers for all groups but these, and return the KL."""
        self._run(kept)
        return self.found[kept].kl

    def ratios(self, kept: Kept) -> Mapping[int, float]:
        """Do the same, and return of each other group the noise by signal of its outputs."""
        forms, left = self._run(kept), [number for number in range(len(self.modules)) if number not in kept]
        now = {number: measure_outputs(forms, self.modules[number], self.reference.samples) for number in left}
        self.outputs.update(now)
        return {number: ratio_of(sums) for number, sums in now.items()}

    def _run(self, kept: Kept) -> Forms:
        names = [name for number, names in enumerate(self.modules) if number not in kept for name in names]
        forms = self.making.forms(names) if kept else self.first
        with forms.rounded(names):
            self.found[kept] = self.reference.divergence(forms.model)
        return forms
