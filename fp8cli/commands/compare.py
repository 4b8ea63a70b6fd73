"""`fp8 compare`: whether the other model is as good as the base, and how sure that is.

Names → sides → what is missing is evaluated → drafts → refusals → verdicts. The doing is core.comparing's.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fp8cli.core.calibrating.ordering import CalibrationOptions
from fp8cli.core.comparing.assembly import assemble, with_command
from fp8cli.core.comparing.comparability import check_allowed
from fp8cli.core.comparing.comparison import Comparison, Verdict
from fp8cli.core.comparing.missing import noise_side, ready_sides
from fp8cli.core.comparing.sides import name_side
from fp8cli.core.comparing.verdicts import Limits
from fp8cli.core.evaluating.eval_events import EvalEvent, Noted
from fp8cli.core.evaluating.request import EvaluationRequest, check_request
from fp8cli.core.evaluating.runs import RUNS_DEFAULT
from fp8cli.core.simulating.modules import TARGETS_DEFAULT, ModuleOptions
from fp8cli.errors import ExitCode, UsageError

__all__ = [
    "TARGETS_DEFAULT",
    "CalibrationOptions",
    "CompareReport",
    "CompareRequest",
    "EvaluationRequest",
    "ModuleOptions",
    "run",
]

MARGIN: Final = 0.01
"""One percentage point."""
CONFIDENCE: Final = 0.95

_EXIT_CODES: Final[dict[Verdict, ExitCode]] = {
    "pass": ExitCode.DONE,
    "regression": ExitCode.NEGATIVE,
    "inconclusive": ExitCode.INCONCLUSIVE,
}


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """What to compare, and what may be lost."""

    sides: tuple[str, ...]
    """The base first: labels, runs, results of lm-eval, pasted tables, checkpoints."""
    allow: tuple[str, ...] = ()
    """Settings in which the sides may differ."""
    margin: float = MARGIN
    """In the metric's unit: 0.01 is one percentage point."""
    perplexity_margin: float = MARGIN
    """Of the ratio of perplexities less one."""
    confidence: float = CONFIDENCE
    noise_floor: bool = False
    """Evaluate the base in float32 too."""
    evaluation: EvaluationRequest = field(default_factory=lambda: EvaluationRequest(tasks=()))
    """What is missing is evaluated like this; also which tasks count, and where the runs are."""

    @property
    def runs(self) -> Path:
        """The runs folder."""
        return self.evaluation.runs


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """What a comparison came to."""

    comparison: Comparison
    command: str
    """That made it."""
    exit_code: ExitCode


def run(request: CompareRequest, notify: Callable[[EvalEvent], None] = lambda _: None) -> CompareReport:
    """Compare. Raises NotComparable, and Fp8Error with whatever else is in the way."""
    _check(request)
    allow = check_allowed(request.allow)
    limits = Limits(margin=request.margin, perplexity_margin=request.perplexity_margin, confidence=request.confidence)

    def complain(text: str) -> None:
        notify(Noted(text=text))

    named = tuple(name_side(name, request.runs, complain=complain) for name in request.sides)
    base, *others = ready_sides(named, request.evaluation, notify, margin=request.margin)
    noise = noise_side(base, request.evaluation, notify) if request.noise_floor else None
    notes = tuple(side.note for side in named if side.note is not None)
    command = _command(request)
    comparison = with_command(assemble(base, others, limits=limits, allow=allow, noise=noise, notes=notes), command)
    return CompareReport(comparison=comparison, command=command, exit_code=_EXIT_CODES[comparison.verdict])


def _check(request: CompareRequest) -> None:
    """Refuse what makes no sense whatever the sides are. Raises UsageError."""
    if len(request.sides) < 2:
        hint = "such as fp8 compare base fp8, or fp8 compare MODEL MODEL-FP8-dynamic --tasks fp8_stories"
        raise UsageError("a comparison needs a base and something to set beside it", hint=hint)
    for option, margin in (("--margin", request.margin), ("--margin-perplexity", request.perplexity_margin)):
        if not 0 < margin <= 1:
            hint = "0.01 is one percentage point, or one percent of a perplexity"
            raise UsageError(
                f"{option} is {margin:g}, and must be above 0 and at most 1", hint=f"{option} 0.01: {hint}"
            )
    if not 0.5 < request.confidence < 1:
        message = f"--confidence is {request.confidence:g}, and must be above 0.5 and below 1"
        raise UsageError(message, hint="--confidence 0.95")
    if request.evaluation.backend == "server":
        hint = "evaluate each with fp8 eval --server URL --label NAME, and compare the labels"
        raise UsageError("a server has one model, so it cannot evaluate two sides", hint=hint)
    # Without tasks of the user's own it is those of the base, which is not looked at yet.
    check_request(replace(request.evaluation, tasks=request.evaluation.task_names or ("those of the base",)))


def _command(request: CompareRequest) -> str:
    """The command that makes this comparison once more, with everything that decides its numbers."""
    words = ["fp8", "compare", *request.sides]
    evaluation, usual = request.evaluation, EvaluationRequest(tasks=())
    options: list[tuple[str, object, object]] = [
        ("--tasks", ",".join(evaluation.task_names), ""),
        ("--num-fewshot", evaluation.num_fewshot, None),
        ("--limit", evaluation.limit, None),
        ("--sample", evaluation.sample, None),
        ("--seed", evaluation.seed, usual.seed),
        ("--system-instruction", evaluation.system_instruction, None),
        ("--gen-kwargs", evaluation.gen_kwargs, None),
        ("--batch-size", evaluation.batch_size, None),
        ("--backend", evaluation.backend, usual.backend),
        ("--max-length", evaluation.max_length, None),
        ("--dtype", evaluation.dtype, usual.dtype),
        ("--calibration-data", evaluation.calibration.data, None),
        ("--text-column", evaluation.calibration.column, None),
        ("--num-calibration-samples", evaluation.calibration.samples, None),
        ("--max-seq-length", evaluation.calibration.max_seq_length, None),
        ("--calibration-seed", evaluation.calibration.seed, None),
        *(("--model-arg", each, "") for each in evaluation.model_args),
        *(("--include-path", each, "") for each in evaluation.include_paths),
        ("--text", evaluation.text, None),
        ("--runs", request.runs, RUNS_DEFAULT),
        ("--margin", request.margin, MARGIN),
        ("--margin-perplexity", request.perplexity_margin, MARGIN),
        ("--confidence", request.confidence, CONFIDENCE),
        ("--allow", ",".join(request.allow), ""),
    ]
    for option, value, default in options:
        if value != default:
            words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    match evaluation.chat_template:
        case str() as name:
            words += ["--chat-template", name]
        case True:
            words.append("--apply-chat-template")
    words += evaluation.modules.words
    if evaluation.fewshot_as_multiturn is not None:
        words.append(f"--{'' if evaluation.fewshot_as_multiturn else 'no-'}fewshot-as-multiturn")
    if not evaluation.fidelity:
        words.append("--no-fidelity")
    if request.noise_floor:
        words.append("--noise-floor")
    return shlex.join(words)
