"""A choice within a budget, measured on the model itself: which groups of Linears stay in 16 bits.

Every set is tried on the model that is loaded and compared with the model as it is (see `reference`); what is done with
the numbers is `budget_choosing`'s. What only data can tell, scales and what modifiers do, comes from the same texts, as
it will in the checkpoint. With modifiers, what is chosen on a model that they have prepared once is not yet what they
make of it: `budget_settling` has runs of its own for that.
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
    size,
)
from fp8cli.measurer.budget_forms import Forms
from fp8cli.measurer.budget_outputs import measure_outputs
from fp8cli.measurer.budget_protocol import BudgetWork
from fp8cli.measurer.budget_runs import Making, Runs, Sums, ratio_of
from fp8cli.measurer.budget_settling import Settled, settle_kl, settle_outputs
from fp8cli.measurer.protocol import MeasureJob
from fp8cli.measurer.reference import Divergence, Reference, clustered_error
from fp8cli.samples.encoding import Encoded
from fp8cli.simulator.finding import model_names
from fp8cli.worker.failures import Failure
from fp8cli.worker.progress import Progress

TEXTS: Final = 128
"""At least so many texts are measured on, if there are as many: positions of one text resemble each other."""

_GOLDEN: Final = (5**0.5 - 1) / 2
"""Multiples of it, without their whole part, are spread evenly, however many there are (Weyl)."""

_FLOAT32_BYTES: Final = 4
_WEIGHT: Final = ".weight"


def choose(
    job: MeasureJob, work: BudgetWork, model: Any, encoded: Encoded, folder: Path, progress: Progress
) -> Mapping[str, object]:
    """Measure and choose; see `budget_protocol` for what is returned. Raises Failure where nothing can be measured."""
    modules = [model_names(model, group.weights) for group in work.groups]
    if work.scheme.modified:
        _refuse_other_names(work, modules)
    reference = Reference(
        model,
        enough(encoded.ids, min(job.positions, job.budget_bytes // (_FLOAT32_BYTES * _vocabulary(model)))),
        folder,
        positions=job.positions,
        budget_bytes=job.budget_bytes,
        notify=lambda done, total: progress.tell("reference", done=done, total=total),
    )
    making = Making(job=job, scheme=work.scheme, model=model, encoded=encoded, progress=progress)
    forms = making.forms([*itertools.chain(*modules)])
    sets = _Sets(work=work, forms=forms, reference=reference, modules=modules, progress=progress)
    runs = Runs(making=making, first=forms, reference=reference, modules=modules)
    measured = Measured(measure=sets.kl, most=work.most, error=sets.error)
    numbers = range(len(work.groups))
    outputs: dict[int, Sums] = {}
    shares: list[float] | None = None
    if work.goal.kind == "sqnr":
        outputs = {number: sets.outputs(number) for number in numbers}
        settled = _loud_enough(work, outputs, measured, runs)
        outputs |= runs.outputs
    else:
        shares = costs(len(work.groups), measured)
        settled = _search(work, shares, measured, runs)
    return {
        "groups": [
            {
                "weights": sets.noise(number),
                "outputs": outputs.get(number),
                "alone": None if shares is None else alone(number, len(work.groups), measured),
                "cost": None if shares is None else shares[number],
            }
            for number in numbers
        ],
        "sets": [
            {
                "kept": sorted(kept),
                "kl": each.kl,
                "kl_se": each.kl_se,
                "same_top": each.same_top,
                "own_run": kept in runs.found,
            }
            for kept, each in {**sets.found, **runs.found}.items()
        ],
        "kept": None if settled.kept is None else sorted(settled.kept),
        "exhausted": settled.exhausted,
        "positions": reference.positions,
    }


def _refuse_other_names(work: BudgetWork, modules: Sequence[Sequence[str]]) -> None:
    """Refuse a choice that llm-compressor could not be told: what stays is named to it as the checkpoint has it."""
    for group, names in zip(work.groups, modules, strict=True):
        for weight, name in zip(group.weights, names, strict=True):
            if weight.removesuffix(_WEIGHT) != name:
                raise Failure(
                    kind="model",
                    message=f"llm-compressor knows `{weight}` as `{name}`, and would not keep what is chosen",
                    hint="choose without its modifiers, or with them leave out --keep-bf16 auto",
                )


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


def _search(work: BudgetWork, shares: Sequence[float], measured: Measured, runs: Runs) -> Settled:
    candidates = [
        Candidate(saved_bytes=group.saved_bytes, cost=cost) for group, cost in zip(work.groups, shares, strict=True)
    ]
    everything = frozenset(range(len(candidates)))
    if work.goal.kind == "kl":
        if work.scheme.modified:
            return settle_kl(
                lambda limit: fewest_bytes(candidates, limit, measured),
                work.goal.value,
                everything=everything,
                seen=measured.kl,
                run=runs.kl,
                size=lambda kept: size(kept, candidates),
            )
        return _settled(fewest_bytes(candidates, work.goal.value, measured))
    found = least_kl(candidates, int(work.goal.value), measured)
    if work.scheme.modified and found.kept != everything:
        # Any set that fits is within the budget; what it comes to is to be known all the same.
        runs.kl(found.kept)
    return _settled(found)


def _settled(found: Found | None) -> Settled:
    return Settled(kept=None if found is None else found.kept, exhausted=found is not None and found.exhausted)


def _loud_enough(work: BudgetWork, outputs: Mapping[int, Sums], measured: Measured, runs: Runs) -> Settled:
    """Keep each group whose outputs have less than the SQNR that is asked for, and measure the way there."""
    ratios = [ratio_of(outputs[number]) for number in range(len(work.groups))]
    most = 10 ** (-work.goal.value / 10)
    order = sorted(range(len(ratios)), key=lambda number: -ratios[number])
    path: list[Kept] = [frozenset(order[:length]) for length in range(len(order) + 1)]
    candidates = [Candidate(saved_bytes=group.saved_bytes, cost=0.0) for group in work.groups]
    for place in curve(path, candidates):
        measured.kl(path[place])
    kept = frozenset(number for number, ratio in enumerate(ratios) if ratio > most)
    if work.scheme.modified:
        return settle_outputs(kept, runs.ratios, most=most, everything=path[-1])
    measured.kl(kept)
    return Settled(kept=kept, exhausted=False)


@dataclass(kw_only=True)
class _Sets:
    """The sets of groups that were measured."""

    work: BudgetWork
    forms: Forms
    reference: Reference
    modules: Sequence[Sequence[str]]
    """Of each group, by the names that the model has for them."""
    progress: Progress
    found: dict[Kept, Divergence] = field(default_factory=dict)

    def kl(self, kept: Kept) -> float:
        """Measure the KL of the model with all groups in FP8 but these."""
        rounded = [name for number, names in enumerate(self.modules) if number not in kept for name in names]
        groups = len(self.modules)
        name = f"{groups - len(kept):,} of {groups:,} groups in FP8"
        self.progress.tell("step", number=min(len(self.found) + 1, self.work.most), of=self.work.most, name=name)
        with self.forms.rounded(rounded):
            self.found[kept] = self.reference.divergence(self.forms.model)
        return self.found[kept].kl

    def error(self, one: Kept, other: Kept) -> float:
        """Return the standard error of the difference in KL of two sets, paired and clustered by text."""
        lengths = self.reference.lengths
        pairs = zip(self.found[one].per_sample, self.found[other].per_sample, lengths, strict=True)
        return clustered_error([(mine - theirs) * length for mine, theirs, length in pairs], lengths)

    def outputs(self, number: int) -> Sums:
        """Measure the outputs of a group, the only one in FP8."""
        group, of = self.work.groups[number], len(self.modules)
        self.progress.tell("step", number=number + 1, of=of, name=f"outputs of {group.name}")
        return measure_outputs(self.forms, self.modules[number], self.reference.samples)

    def noise(self, number: int) -> Sums:
        """Return the sums of squares of each weight of a group and of its rounding error: of all are known by now."""
        return [list(self.forms.noise[name]) for name in self.modules[number]]
