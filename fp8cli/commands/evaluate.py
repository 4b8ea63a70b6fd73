"""`fp8 eval`: a checkpoint and tasks in, a record and a table of values out.

The doing is core.evaluating's; here it is told what the items can settle, and the values are read for the report.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fp8cli.core.calibrating.ordering import CalibrationOptions
from fp8cli.core.comparing.outlook import ASSUMED_FLIP_RATE
from fp8cli.core.comparing.power import margin_settled
from fp8cli.core.evaluating.answers import Answer
from fp8cli.core.evaluating.eval_events import EvalEvent, Noted
from fp8cli.core.evaluating.evaluation import Evaluated, evaluate
from fp8cli.core.evaluating.request import EvaluationRequest as EvaluateRequest
from fp8cli.core.evaluating.runs import RUNS_DEFAULT
from fp8cli.core.evaluating.simulation import modules_of
from fp8cli.core.evaluating.subject import BASE_LABEL, FP8_LABEL
from fp8cli.core.evaluating.worker_events import TasksCounted
from fp8cli.core.quantizing.modifiers import choose_modifiers
from fp8cli.core.simulating.modules import TARGETS_DEFAULT, ModuleOptions
from fp8cli.errors import ExitCode
from fp8cli.formats.lm_eval_results import read_results
from fp8cli.formats.run_record import RunRecord, SimulationFacts

__all__ = [
    "TARGETS_DEFAULT",
    "CalibrationOptions",
    "EvalEvent",
    "EvaluateReport",
    "EvaluateRequest",
    "ModuleOptions",
    "ResultRow",
    "choose_modifiers",
    "run",
]


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One metric of one task, or of a group of tasks."""

    task: str
    version: str | None
    filter: str
    num_fewshot: int | None
    items: int | None
    metric: str
    higher_is_better: bool | None
    value: float
    stderr: float | None
    run: str
    """Id of the run that it comes from."""


@dataclass(frozen=True, kw_only=True)
class EvaluateReport:
    """What an evaluation came to."""

    checkpoint: str
    label: str
    answered: bool
    """Whether nothing had to be run, because records had it all."""
    folder: Path
    record: RunRecord
    record_file: Path
    results: tuple[ResultRow, ...]
    earlier: tuple[Path, ...]
    """Records of earlier runs that answered a part."""
    notes: tuple[str, ...]
    next_command: str

    @property
    def exit_code(self) -> ExitCode:
        """A value is no verdict."""
        return ExitCode.DONE


def run(request: EvaluateRequest, notify: Callable[[EvalEvent], None] = lambda _: None) -> EvaluateReport:
    """Evaluate a checkpoint, or answer from records. Raises Fp8Error with what is wrong; what is done is kept."""

    def tell(event: EvalEvent) -> None:
        notify(event)
        if isinstance(event, TasksCounted):
            notify(Noted(text=_outlook(event)))

    evaluated = evaluate(request, tell)
    return EvaluateReport(
        checkpoint=evaluated.record.model.name,
        label=evaluated.label,
        answered=evaluated.answered,
        folder=evaluated.folder,
        record=evaluated.record,
        record_file=_record_file(evaluated.answers[0]),
        results=tuple(row for answer in evaluated.answers for row in _rows(answer)),
        earlier=tuple(map(_record_file, evaluated.answers[1:])),
        notes=_notes(evaluated, request),
        next_command=_next_command(evaluated.label, request.runs),
    )


def _outlook(counted: TasksCounted) -> str:
    """Say what a comparison over these items can settle, before anyone waits for it."""
    items = sum(task.items for task in counted.tasks)
    fewest = min((task.items for task in counted.tasks), default=0)
    points = 100 * margin_settled(fewest, ASSUMED_FLIP_RATE)
    what = f"{items:,} items" if len(counted.tasks) == 1 else f"{items:,} items, the smallest task {fewest:,}"
    settles = f"a comparison with another model can settle a change of {points:.1f} pp, and nothing smaller"
    return f"{what}: if {100 * ASSUMED_FLIP_RATE:g} % of them flip, {settles}"


def _record_file(answer: Answer) -> Path:
    return answer.folder / f"run_{answer.record.id}.json"


def _rows(answer: Answer) -> Iterator[ResultRow]:
    """Yield the values of the tasks that answer, and of groups that consist of such."""
    results = read_results(answer.folder / answer.record.results)
    groups = {
        name: group
        for name, group in results.of_groups.items()
        if set(answer.record.groups.get(name, ())) <= set(answer.tasks)
    }
    tasks = {name: task for name, task in results.tasks.items() if name in answer.tasks}
    for name, task in {**groups, **tasks}.items():
        for score in task.scores:
            yield ResultRow(
                task=name,
                version=task.version,
                filter=score.filter,
                num_fewshot=task.num_fewshot,
                items=task.items,
                metric=score.metric,
                higher_is_better=score.higher_is_better,
                value=score.value,
                stderr=score.stderr,
                run=answer.record.id,
            )


def _notes(evaluated: Evaluated, request: EvaluateRequest) -> tuple[str, ...]:
    notes = list(evaluated.record.notes)
    others: Sequence[str] = [
        answer.record.label for answer in evaluated.answers if answer.record.label != evaluated.label
    ]
    if others:
        notes.append(f"answered from a run with the label `{others[0]}`: a label changes no result")
    if evaluated.answered and request.fidelity and evaluated.record.fidelity is None:
        notes.append("the record has no log-probabilities for a comparison of distributions: --rerun keeps some")
    if evaluated.record.model.fingerprint is None:
        notes.append("which weights the server has is not checked, so no later run is answered from this record")
    if evaluated.record.simulated is not None:
        notes.append(_of_simulation(evaluated.record.simulated))
    return tuple(notes)


def _of_simulation(facts: SimulationFacts) -> str:
    said = f"{facts.scheme} is simulated in the unquantized checkpoint, so speed and memory are not what it would have"
    if (words := modules_of(facts).words) and facts.weights is not None:
        said = f"{said}; rounded are {facts.weights:,} weights, with {shlex.join(words)}"
    if facts.source is None or facts.samples is None or facts.tokens is None:
        return said
    what = "scales are" if facts.llm_compressor is None else "weights and scales are"
    by = "" if facts.llm_compressor is None else f", prepared by llm-compressor {facts.llm_compressor}"
    return f"{said}; its {what} of {facts.samples:,} samples of {facts.source}, {facts.tokens:,} tokens{by}"


def _next_command(label: str, runs: Path) -> str:
    other = FP8_LABEL if label == BASE_LABEL else label
    where = [] if runs == RUNS_DEFAULT else ["--runs", str(runs)]
    return shlex.join(["fp8", "compare", BASE_LABEL, other, *where])
