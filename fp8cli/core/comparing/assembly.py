"""The comparison of some sides with the first of them: drafts of all tasks, refusals, and then the verdicts.

sides → tasks in common → drafts (settings, items, metrics) → refused? → verdicts, totals, fidelity → Comparison
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fp8cli.core.comparing.comparability import Findings, joined, refuse
from fp8cli.core.comparing.comparison import Comparison, Contest, FidelityComparison
from fp8cli.core.comparing.costs import describe_side
from fp8cli.core.comparing.drafts import TaskDraft, draft_task
from fp8cli.core.comparing.sides import ReadySide
from fp8cli.core.comparing.verdicts import Limits, add_up, judge_contest, judge_tasks, worst
from fp8cli.core.evaluating.simulation import modules_of
from fp8cli.errors import NotComparable
from fp8cli.formats.run_record import RunRecord, SimulationFacts


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """One contest before its verdict."""

    side: ReadySide
    tasks: tuple[TaskDraft, ...]
    findings: Findings
    notes: tuple[str, ...]


def assemble(
    base: ReadySide,
    others: Sequence[ReadySide],
    *,
    limits: Limits,
    allow: frozenset[str],
    noise: ReadySide | None = None,
    notes: tuple[str, ...] = (),
) -> Comparison:
    """Compare every other side with the base.

    noise: the base again, in other arithmetic, whose dtype may differ. Raises NotComparable where sides differ in
    more than the model, BadInput where results are broken.
    """
    drafts = [_draft(base, other, allow) for other in others]
    refuse([(draft.side.label, draft.findings) for draft in drafts], base.label)
    noise_draft = None if noise is None else _draft(base, noise, allow | {"dtype"})
    if noise_draft is not None:
        refuse([(noise_draft.side.label, noise_draft.findings)], base.label)
    contests = tuple(_contest(base, draft, limits) for draft in drafts)
    return Comparison(
        base=describe_side(base),
        contests=contests,
        noise=None if noise_draft is None else _contest(base, noise_draft, limits),
        margin=limits.margin,
        perplexity_margin=limits.perplexity_margin,
        confidence=limits.confidence,
        verdict=worst([contest.verdict for contest in contests]),
        notes=notes,
    )


def _draft(base: ReadySide, other: ReadySide, allow: frozenset[str]) -> _Draft:
    common = [task for task in base.tasks if task in other.tasks]
    if not common:
        ours, theirs = (", ".join(f"`{task}`" for task in list(side.tasks)[:5]) for side in (base, other))
        message = f"`{base.label}` and `{other.label}` have no task in common: {ours or 'none'} / {theirs or 'none'}"
        raise NotComparable(message, hint="evaluate both on the same tasks: fp8 compare BASE OTHER --tasks NAMES")
    tasks = tuple(draft_task(task, base.tasks[task], other.tasks[task], allow) for task in common)
    return _Draft(
        side=other,
        tasks=tasks,
        findings=joined(task.findings for task in tasks),
        notes=tuple(_notes(base, other)),
    )


def _notes(base: ReadySide, other: ReadySide) -> Iterable[str]:
    for side, against in ((base, other), (other, base)):
        left_out = [task for task in side.tasks if task not in against.tasks]
        if left_out:
            names = ", ".join(f"`{task}`" for task in left_out[:5]) + (", …" if len(left_out) > 5 else "")
            yield f"only `{side.label}` has {names}, so that is left out"
    if base.evidence == other.evidence:
        yield f"`{base.label}` and `{other.label}` are the same evaluation, so this compares a thing with itself"
    elif _fingerprints(base) & _fingerprints(other):
        yield f"`{base.label}` and `{other.label}` are the same checkpoint, so this compares a thing with itself"


def _fingerprints(side: ReadySide) -> set[str]:
    return {
        # What was rounded in a checkpoint is another model.
        f"{fingerprint} {'' if record.simulated is None else _form(record.simulated)}"
        for record in side.records
        if (fingerprint := record.model.fingerprint) is not None
    }


def _form(simulated: SimulationFacts) -> str:
    return " ".join((simulated.scheme, *modules_of(simulated).words))


def _contest(base: ReadySide, draft: _Draft, limits: Limits) -> Contest:
    tasks = judge_tasks(draft.tasks, limits)
    verdict, reason = judge_contest(tasks)
    fidelity, missing = compare_fidelity(base, draft.side, limits.confidence)
    return Contest(
        other=describe_side(draft.side),
        tasks=tasks,
        total=add_up(tasks),
        fidelity=fidelity,
        fidelity_missing=missing,
        differences=draft.findings.differences,
        changed=tuple(item for task in draft.tasks for item in task.changed),
        verdict=verdict,
        reason=reason,
        not_checked=draft.findings.not_checked,
        notes=draft.notes,
    )


def compare_fidelity(
    base: ReadySide, other: ReadySide, confidence: float
) -> tuple[FidelityComparison | None, str | None]:
    """Compare the log-probabilities that two sides kept over the same tokens, or say in one sentence why not."""
    ours, theirs = _kept(base), _kept(other)
    for side, kept in ((base, ours), (other, theirs)):
        if not side.records:
            return None, f"`{side.label}` was not evaluated by this tool, and plain lm-eval keeps no log-probabilities"
        if not kept:
            return None, f"the evaluation of `{side.label}` kept no log-probabilities"
    pairs = [(mine, yours) for mine in ours for yours in theirs]
    same = [pair for pair in pairs if _tokens(pair[0][1]) == _tokens(pair[1][1])]
    # numpy, which takes a tenth of a second to load, is needed from here on.
    from fp8cli.core.comparing.divergence import compare_distributions  # noqa: PLC0415

    (our_folder, _), (their_folder, _) = (same or pairs)[0]
    try:
        return compare_distributions(our_folder, their_folder, confidence), None
    except ValueError as problem:
        return None, str(problem)


def _kept(side: ReadySide) -> list[tuple[Path, RunRecord]]:
    """Folders with log-probabilities, each with its record, newest first."""
    found = [
        (each.results.path.parent / each.record.fidelity.folder, each.record)
        for each in side.evidence
        if each.record is not None and each.record.fidelity is not None
    ]
    return sorted(found, key=lambda pair: pair[1].created, reverse=True)


def _tokens(record: RunRecord) -> str | None:
    return None if record.fidelity is None else record.fidelity.tokens_sha256


def with_command(comparison: Comparison, command: str) -> Comparison:
    """Return a comparison that says by which command it was made."""
    return replace(comparison, command=command)
