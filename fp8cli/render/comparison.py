"""A comparison of evaluations in words and tables: the verdict first, then the numbers, then what they rest on."""

import shlex
from collections.abc import Iterator
from typing import Final

from fp8cli.commands.compare import CompareReport
from fp8cli.core.comparing.comparison import Comparison, Contest, Flips, Total
from fp8cli.render import measures
from fp8cli.render.comparison_tables import (
    cost_table,
    differences_table,
    evidence_table,
    fidelity_table,
    flips_table,
    other_metrics_table,
    quality_table,
)
from fp8cli.render.console import Output
from fp8cli.render.names import shorten
from fp8cli.render.sections import Command, Judged, Part, Section, show_sections
from fp8cli.render.units import count

_TITLE: Final = 48
"""Characters of a label that the title of its section shows: columns below have room for less."""
_MODEL: Final = 72
"""Characters of a model's name that a command shows."""


def show(report: CompareReport, output: Output, *, flips: int = 0) -> None:
    """Print a report; with `output.json` as one document, with `flips` so many changed items of every contest."""
    if output.json:
        output.document("compare", report, exit_code=report.exit_code)
    else:
        show_sections(sections(report.comparison, flips=flips), output)


def sections(comparison: Comparison, *, flips: int) -> Iterator[Section]:
    """Cut a comparison into sections."""
    yield Section(title=None, parts=(_headline(comparison), *map(measures.sentence, comparison.notes)))
    for contest in comparison.contests:
        yield from _contest(comparison, contest, several=len(comparison.contests) > 1)
        if flips:
            yield _flips(comparison, contest, flips)
    yield _fidelity(comparison)
    costs = cost_table(comparison)
    if costs is not None:
        yield Section(title="costs", parts=(costs,))
    for contest in comparison.contests:
        yield from _settings(comparison, contest)
    yield Section(title="next", parts=tuple(next_steps(comparison)))


def _headline(comparison: Comparison) -> Judged:
    base, others = measures.titles_of(comparison)
    if len(comparison.contests) == 1:
        text = f"{others} against {base}: {measures.sentence(comparison.contests[0].reason)}"
    else:
        each = ", ".join(f"{measures.label_of(contest)} {contest.verdict}" for contest in comparison.contests)
        text = f"{count(len(comparison.contests))} against {base}: {each}"
    return Judged(
        status=measures.STATUS[comparison.verdict],
        word=comparison.verdict.upper(),
        text=text,
        more=(("judged by", judged_by(comparison)),),
    )


def judged_by(comparison: Comparison) -> str:
    """Say the rule: the margins and the confidence."""
    return f"{measures.margins(comparison)}, {measures.confidence_of(comparison)} confidence"


def _contest(comparison: Comparison, contest: Contest, *, several: bool) -> Iterator[Section]:
    base = shorten(comparison.base.label, measures.LABEL)
    parts: list[Part] = [quality_table(comparison, contest)]
    if contest.total is not None and contest.total.tasks > 1:
        parts.extend(total_lines(contest.total))
    parts.extend(task_verdicts(contest))
    if several:
        word = contest.verdict.upper()
        parts.insert(
            0, Judged(status=measures.STATUS[contest.verdict], word=word, text=measures.sentence(contest.reason))
        )
    parts.extend(map(measures.sentence, contest.notes))
    yield Section(title=f"{shorten(contest.other.label, _TITLE)} against {base}", parts=tuple(parts))
    others = other_metrics_table(comparison, contest)
    yield Section(title="evidence", parts=(evidence_table(contest), *(() if others is None else (others,))))


def total_lines(total: Total) -> Iterator[str]:
    """Yield what the row of the mean does not say: every item alike, what was kept, all flips."""
    micro = f"{measures.points(total.micro_difference)} pp ({measures.between(total.micro_interval)})"
    yield f"every item alike: {micro} over {measures.items_words(total.items)}"
    kept = () if total.recovery is None else (f"recovery of the mean {measures.kept(total.recovery)}",)
    flips = () if total.flips is None else (f"{count(total.flips.lost)} lost, {count(total.flips.gained)} gained",)
    if kept or flips:
        yield " · ".join((*kept, *flips))


def task_verdicts(contest: Contest) -> Iterator[Judged | str]:
    """Yield a sentence on every task that did not pass, and the notes on all."""
    for task in contest.tasks:
        metric = measures.main_metric(task)
        if task.verdict != "pass" and len(contest.tasks) > 1:
            reason = metric.reason if metric is not None and metric.reason else "no metric of it can be judged"
            text = f"{shorten(task.task, 60)}: {measures.sentence(reason)}"
            yield Judged(status=measures.STATUS[task.verdict], word=task.verdict, text=text)
        if task.note is not None:
            yield f"{shorten(task.task, 60)}: {measures.sentence(task.note)}"


def _flips(comparison: Comparison, contest: Contest, most: int) -> Section:
    title = f"changed items of {measures.label_of(contest)}"
    if not contest.changed:
        return Section(title=title, parts=("none, or not known: plain results without samples name no items",))
    more = len(contest.changed) - most
    rest = (f"{count(more)} more; --show-flips {len(contest.changed)} lists them",) if more > 0 else ()
    return Section(title=title, parts=(flips_table(comparison, contest, most), *rest))


def _fidelity(comparison: Comparison) -> Section:
    table = fidelity_table(comparison)
    parts: list[Part] = [] if table is None else [table]
    parts.extend(fidelity_lines(comparison))
    return Section(title="fidelity", parts=tuple(parts))


def fidelity_lines(comparison: Comparison) -> Iterator[str]:
    """Yield what the numbers mean and why some are missing."""
    for contest in comparison.contests:
        if contest.fidelity is None:
            why = measures.sentence(contest.fidelity_missing or "no reason is given")
            yield f"{measures.label_of(contest)}: not measured, for {why}"
        elif not contest.fidelity.exact:
            label = measures.label_of(contest)
            yield f"{label}: ≥ marks a lower bound, from the most likely tokens of both sides only"
    measured = any(contest.fidelity is not None for contest in comparison.contests)
    if comparison.noise is not None and comparison.noise.fidelity is not None and measured:
        base = shorten(comparison.base.label, measures.LABEL)
        yield f"noise floor: {base} against itself in other arithmetic, without any quantization"
        known = [task.flips for task in comparison.noise.tasks if task.flips is not None]
        if known:
            lost, gained, changed = (sum(each) for each in zip(*map(_three, known), strict=True))
            items = measures.items_words(sum(flips.items for flips in known))
            yield f"it alone: {count(lost)} lost, {count(gained)} gained, {count(changed)} answers changed of {items}"
    elif measured:
        yield "without a noise floor: --noise-floor shows what arithmetic alone changes"


def _three(flips: Flips) -> tuple[int, int, int]:
    return flips.lost, flips.gained, flips.answers_changed


def _settings(comparison: Comparison, contest: Contest) -> Iterator[Section]:
    table = differences_table(comparison, contest)
    lines = tuple(unchecked_lines(contest))
    if table is not None or lines:
        label = measures.label_of(contest)
        title = "what differs, or is not known" if len(comparison.contests) == 1 else f"what differs: {label}"
        yield Section(title=title, parts=(*(() if table is None else (table,)), *lines))


def unchecked_lines(contest: Contest) -> Iterator[str]:
    """Yield what could not be compared, if anything."""
    if contest.not_checked:
        names = ", ".join(shorten(name, 60) for name in contest.not_checked)
        yield f"not checked, for one of the two does not say it: {names}"


def next_steps(comparison: Comparison) -> Iterator[str | Command]:
    """Yield what to do now: settle what is open, find what is damaged, or show what passed."""
    command = comparison.command or "fp8 compare"
    match comparison.verdict:
        case "pass":
            yield "the same as a page to send to others:"
            yield Command(text=f"{command} --html compare.html")
        case "inconclusive":
            most = max((found for contest in comparison.contests if (found := measures.needed(contest))), default=None)
            if most is None:
                yield "how many items would settle it is not known"
            else:
                about = f"about {measures.items_words(most)} of each open task would settle it, at the rate seen here"
                # A file of results cannot be run again.
                runnable = all(side.model for side in (comparison.base, *(each.other for each in comparison.contests)))
                yield f"{about}:" if runnable else about
                if runnable:
                    yield Command(text=f"{_without_sample(command)} --sample {most}")
        case "regression":
            worst = next(contest for contest in comparison.contests if contest.verdict == "regression")
            other, base = worst.other.model, comparison.base.model
            if other is not None and base is not None:
                yield "which weights are to blame:"
                yield Command(text=f"fp8 inspect {shorten(other, _MODEL)} --against {shorten(base, _MODEL)}")
            yield "which items changed:"
            yield Command(text=f"{command} --show-flips 20")


def _without_sample(command: str) -> str:
    """Leave out what chose the items of the run that was too short."""
    words = iter(shlex.split(command))
    kept = []
    for word in words:
        if word in {"--sample", "--limit"}:
            next(words, None)
        elif not word.startswith(("--sample=", "--limit=")):
            kept.append(word)
    return shlex.join(kept)
