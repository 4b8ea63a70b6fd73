"""Forms of a model measured one after another: each is simulated on the model that is loaded, and taken back.

What llm-compressor's modifiers prepare cannot be taken back: such a form is made of a copy of the model.

Half of the texts give the scales of what needs data, every second one; the others are what all forms are measured on,
so that no form is measured on the texts it was fitted to.
"""

import copy
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp8cli.measurer.explore_protocol import ExploreWork
from fp8cli.measurer.protocol import MeasureJob
from fp8cli.measurer.reference import Reference
from fp8cli.samples.encoding import Encoded, load_tokenizer
from fp8cli.simulator.applying import simulated
from fp8cli.simulator.finding import model_names
from fp8cli.simulator.observing import Observed, observe
from fp8cli.simulator.scheme import SimulatedScheme
from fp8cli.worker.failures import Failure, describe
from fp8cli.worker.progress import Progress

if TYPE_CHECKING:
    # lm-eval, which not everyone has, comes with them.
    from fp8cli.measurer.asking import Asking
    from fp8cli.worker.tasks import LoadedTasks

Ids = Sequence[Sequence[int]]


def explore(
    job: MeasureJob,
    work: ExploreWork,
    model: Any,
    encoded: Encoded,
    tasks: "LoadedTasks | None",
    folder: Path,
    progress: Progress,
) -> Mapping[str, object]:
    """Measure all forms; see `explore_protocol` for what is returned. tasks: those of the work, loaded.

    Raises Failure where none can be measured.
    """
    measured, calibration = encoded.ids[::2], encoded.ids[1::2]
    if not calibration:
        message = f"an exploration takes 2 texts or more, and there is {len(encoded.ids)}"
        raise Failure(kind="data", message=message, hint="half of them give scales, half are measured on")
    reference = Reference(
        model,
        measured,
        folder,
        positions=job.positions,
        budget_bytes=job.budget_bytes,
        notify=lambda done, total: progress.tell("reference", done=done, total=total),
    )
    modules = model_names(model, work.weights)
    observations = _Observations(model, modules, calibration)
    asking = None if tasks is None else _asking(work, tasks, model, folder)
    steps = len(work.schemes) + (asking is not None)
    base_answers = None
    if asking is not None:
        progress.tell("step", number=1, of=steps, name="the model as it is")
        base_answers = asking.ask(model)
    forms: list[dict[str, object]] = []
    failures: list[Failure] = []
    for number, scheme in enumerate(work.schemes, 1 + steps - len(work.schemes)):
        progress.tell("step", number=number, of=steps, name=scheme.name)
        started = time.perf_counter()
        try:
            measuring = _Measuring(model=model, modules=modules, reference=reference, asking=asking)
            if scheme.modified:
                found = measuring.of_modified(scheme, job, replace(encoded, ids=calibration))
            else:
                found = measuring.of_simulated(scheme, observations.of(scheme))
            forms.append({"name": scheme.name, "failure": None, **found, "seconds": time.perf_counter() - started})
        except Exception as error:  # noqa: BLE001 - a form that cannot be is a row of the table, not its end
            traceback.print_exc()
            failures.append(describe(error))
            why = {"message": failures[-1].message, "hint": failures[-1].hint}
            forms.append({"name": scheme.name, "failure": why})
    if len(failures) == len(forms):
        raise failures[0]
    return {
        "forms": forms,
        "lengths": reference.lengths,
        "calibrated_on": len(calibration),
        "base_answers": base_answers,
    }


def _asking(work: ExploreWork, tasks: "LoadedTasks", model: Any, folder: Path) -> "Asking":
    from fp8cli.measurer.asking import Asking

    assert work.evaluation is not None  # noqa: S101 - where there are tasks, it names them
    return Asking(work.evaluation, tasks, model, folder)


@dataclass(frozen=True, kw_only=True)
class _Measuring:
    """The model as it is, and what its forms are measured by."""

    model: Any
    modules: Sequence[str]
    reference: Reference
    asking: "Asking | None"

    def of_simulated(self, scheme: SimulatedScheme, observed: Observed | None) -> dict[str, object]:
        """Measure a form that is rounded on the model itself, and taken back."""
        modules = () if scheme.weights is None else self.modules
        with simulated(self.model, scheme, modules, observed) as simulation:
            return self._measure(self.model, simulation.noise)

    def of_modified(self, scheme: SimulatedScheme, job: MeasureJob, encoded: Encoded) -> dict[str, object]:
        """Measure a form that llm-compressor makes of a copy: what its modifiers do to a model nobody takes back."""
        from fp8cli.simulator.modifying import changes, modify

        assert job.samples is not None  # noqa: S101 - an exploration has texts
        copied = copy.deepcopy(self.model)
        seed = job.samples.seed
        modify(copied, scheme, self.modules, tokenizer=load_tokenizer(job.model), encoded=encoded, seed=seed)
        return self._measure(copied, {} if scheme.moves_channels else changes(self.model, copied, self.modules))

    def _measure(self, form: Any, noise: Mapping[str, tuple[float, float]]) -> dict[str, object]:
        divergence = self.reference.divergence(form)
        return {
            "kl": divergence.kl,
            "kl_se": divergence.kl_se,
            "same_top": divergence.same_top,
            "per_sample": divergence.per_sample,
            "noise": {name: list(sums) for name, sums in noise.items()},
            "answers": None if self.asking is None else self.asking.ask(form),
        }


class _Observations:
    """What the texts for calibration show of a model, looked at when a form first needs it."""

    def __init__(self, model: Any, modules: Sequence[str], texts: Ids) -> None:
        self._model, self._modules, self._texts = model, modules, texts
        self._inputs: Observed | None = None
        self._cache: Observed | None = None

    def of(self, scheme: SimulatedScheme) -> Observed | None:
        """Return what a scheme needs to know of; None where that is nothing."""
        if not scheme.needs_data:
            return None
        inputs = cache = Observed()
        if scheme.activations is not None and not scheme.activations.dynamic:
            self._inputs = inputs = self._inputs or observe(self._model, self._modules, None, self._texts)
        if scheme.kv_cache is not None:
            # Of each head, whatever shares a scale in the end.
            self._cache = cache = self._cache or observe(self._model, (), scheme.kv_cache, self._texts)
        return Observed(inputs=inputs.inputs, keys=cache.keys, values=cache.values)
