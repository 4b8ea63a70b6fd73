"""A choice within a budget, measured on the model itself: which groups of Linears stay in 16 bits.

Every set is simulated on the model that is loaded and compared with the model as it is (see `reference`); what is done
with the numbers is `budget_choosing`'s. Scales that only data can tell come from the same texts, as they will in the
checkpoint.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fp8cli.measurer.budget_choosing import (
    Candidate,
    Found,
    Kept,
    Measured,
    alone,
    costs,
    curve,
    fewest_bytes,
    least_kl,
)
from fp8cli.measurer.budget_outputs import measure_outputs
from fp8cli.measurer.budget_protocol import BudgetWork, Goal
from fp8cli.measurer.protocol import MeasureJob
from fp8cli.measurer.reference import Divergence, Reference, clustered_error
from fp8cli.samples.encoding import Encoded
from fp8cli.simulator.applying import simulated
from fp8cli.simulator.finding import model_names
from fp8cli.simulator.observing import Observed, observe
from fp8cli.worker.progress import Progress

TEXTS: Final = 128
"""At least so many texts are measured on, if there are as many: positions of one text resemble each other."""

_GOLDEN: Final = (5**0.5 - 1) / 2
"""Multiples of it, without their whole part, are spread evenly, however many there are (Weyl)."""

_FLOAT32_BYTES: Final = 4

Sums = list[list[float]]


def choose(
    job: MeasureJob, work: BudgetWork, model: Any, encoded: Encoded, folder: Path, progress: Progress
) -> Mapping[str, object]:
    """Measure and choose; see `budget_protocol` for what is returned. Raises Failure where nothing can be measured."""
    reference = Reference(
        model,
        enough(encoded.ids, min(job.positions, job.budget_bytes // (_FLOAT32_BYTES * _vocabulary(model)))),
        folder,
        positions=job.positions,
        budget_bytes=job.budget_bytes,
        notify=lambda done, total: progress.tell("reference", done=done, total=total),
    )
    modules = [model_names(model, group.weights) for group in work.groups]
    observed = None
    if work.scheme.needs_data:
        observed = observe(model, [*itertools.chain(*modules)], work.scheme.kv_cache, encoded.ids)
    sets = _Sets(work=work, model=model, reference=reference, modules=modules, observed=observed, progress=progress)
    measured = Measured(measure=sets.kl, most=work.most, error=sets.error)
    outputs: list[Sums] | None = None
    numbers = range(len(work.groups))
    shares: list[float] | None = None
    found: Found | None
    if work.goal.kind == "sqnr":
        outputs = []
        for number, group in enumerate(work.groups):
            progress.tell("step", number=number + 1, of=len(work.groups), name=f"outputs of {group.name}")
            outputs.append(measure_outputs(model, work.scheme, modules[number], observed, reference.samples))
        found = _loud_enough(work, outputs, measured)
    else:
        shares = costs(len(work.groups), measured)
        found = _search(work.goal, work, shares, measured)
    return {
        "groups": [
            {
                "weights": sets.noise(number),
                "outputs": None if outputs is None else outputs[number],
                "alone": None if shares is None else alone(number, len(work.groups), measured),
                "cost": None if shares is None else shares[number],
            }
            for number in numbers
        ],
        "sets": [
            {"kept": sorted(kept), "kl": each.kl, "kl_se": each.kl_se, "same_top": each.same_top}
            for kept, each in sets.found.items()
        ],
        "kept": None if found is None else sorted(found.kept),
        "exhausted": found is not None and found.exhausted,
        "positions": reference.positions,
    }


def enough(ids: Sequence[Sequence[int]], positions: int) -> Sequence[Sequence[int]]:
    """Return as few of the texts as give so many positions, none more than its share of `TEXTS`, evenly from all.

    A pass over many short beginnings takes far longer than one over fewer longer texts.
    """
    share = -(-positions // TEXTS)
    order = sorted(range(len(ids)), key=lambda place: (place * _GOLDEN) % 1)
    left, taken = positions, []
    for place in order:
        if left <= 0:
            break
        taken.append(place)
        left -= min(max(len(ids[place]) - 1, 0), share)
    return [ids[place] for place in sorted(taken)]


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _search(goal: Goal, work: BudgetWork, shares: Sequence[float], measured: Measured) -> Found | None:
    candidates = [
        Candidate(saved_bytes=group.saved_bytes, cost=cost) for group, cost in zip(work.groups, shares, strict=True)
    ]
    if goal.kind == "kl":
        return fewest_bytes(candidates, goal.value, measured)
    return least_kl(candidates, int(goal.value), measured)


def _loud_enough(work: BudgetWork, outputs: Sequence[Sums], measured: Measured) -> Found:
    """Keep each group whose outputs have less than the SQNR that is asked for, and measure the way there."""
    ratios = [max(noise / signal if signal else 0.0 for signal, noise in sums) for sums in outputs]
    most = 10 ** (-work.goal.value / 10)
    order = sorted(range(len(ratios)), key=lambda number: -ratios[number])
    path: list[Kept] = [frozenset(order[:length]) for length in range(len(order) + 1)]
    candidates = [Candidate(saved_bytes=group.saved_bytes, cost=0.0) for group in work.groups]
    for place in curve(path, candidates):
        measured.kl(path[place])
    kept = frozenset(number for number, ratio in enumerate(ratios) if ratio > most)
    measured.kl(kept)
    return Found(kept=kept, exhausted=False)


@dataclass(kw_only=True)
class _Sets:
    """The sets of groups that were measured."""

    work: BudgetWork
    model: Any
    reference: Reference
    modules: Sequence[Sequence[str]]
    """Of each group, by the names that the model has for them."""
    observed: Observed | None
    progress: Progress
    found: dict[Kept, Divergence] = field(default_factory=dict)
    _noise: dict[str, tuple[float, float]] = field(default_factory=dict)

    def kl(self, kept: Kept) -> float:
        """Measure the KL of the model with all groups in FP8 but these."""
        rounded = [name for number, names in enumerate(self.modules) if number not in kept for name in names]
        groups = len(self.modules)
        name = f"{groups - len(kept):,} of {groups:,} groups in FP8"
        self.progress.tell("step", number=min(len(self.found) + 1, self.work.most), of=self.work.most, name=name)
        with simulated(self.model, self.work.scheme, rounded, self.observed) as simulation:
            self.found[kept] = self.reference.divergence(self.model)
            self._noise.update(simulation.noise)
        return self.found[kept].kl

    def error(self, one: Kept, other: Kept) -> float:
        """Return the standard error of the difference in KL of two sets, paired and clustered by text."""
        lengths = self.reference.lengths
        pairs = zip(self.found[one].per_sample, self.found[other].per_sample, lengths, strict=True)
        return clustered_error([(mine - theirs) * length for mine, theirs, length in pairs], lengths)

    def noise(self, number: int) -> Sums:
        """Return the sums of squares of each weight of a group and of its rounding error: of all are known by now."""
        return [list(self._noise[name]) for name in self.modules[number]]
