"""A comparison as JUnit XML, which every CI reads: a suite for each contest, a case for each task.

A regression is a failure. What is inconclusive is an error: the test could not decide, and a dashboard must not take
that for passed. Fidelity and the total stand among the properties of the suite.
"""

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from fp8cli.core.comparing.comparison import Comparison, Contest, TaskComparison
from fp8cli.errors import printable
from fp8cli.render import measures
from fp8cli.render.comparison import judged_by
from fp8cli.render.comparison_tables import fidelity_figures
from fp8cli.render.names import shorten

_LONGEST = 1_000


def to_junit(comparison: Comparison) -> str:
    """Return the document; no clock is in it, so the same comparison gives the same bytes."""
    suites = ET.Element("testsuites", {"name": "fp8 compare"})
    for contest in comparison.contests:
        suites.append(_suite(comparison, contest))
    for name in ("tests", "failures", "errors"):
        suites.set(name, str(sum(int(suite.get(name, "0")) for suite in suites)))
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _suite(comparison: Comparison, contest: Contest) -> ET.Element:
    name = f"{_text(contest.other.label)} against {_text(comparison.base.label)}"
    verdicts = [task.verdict for task in contest.tasks]
    numbers = {
        "tests": str(len(verdicts)),
        "failures": str(verdicts.count("regression")),
        "errors": str(verdicts.count("inconclusive")),
        "skipped": "0",
    }
    suite = ET.Element("testsuite", {"name": name, **numbers})
    properties = ET.SubElement(suite, "properties")
    for key, text in _properties(comparison, contest):
        ET.SubElement(properties, "property", {"name": key, "value": _text(text)})
    for task in contest.tasks:
        suite.append(_case(name, task))
    return suite


def _properties(comparison: Comparison, contest: Contest) -> Iterator[tuple[str, str]]:
    yield "verdict", contest.verdict
    yield "reason", contest.reason
    yield "judged by", judged_by(comparison)
    if contest.total is not None:
        yield "total", f"{measures.points(contest.total.macro_difference)} pp, mean over tasks"
        yield "total interval", measures.between(contest.total.macro_interval)
    if contest.fidelity is not None:
        yield from ((f"fidelity: {name.strip()}", text) for name, text in fidelity_figures(contest.fidelity))
    elif contest.fidelity_missing is not None:
        yield "fidelity", f"not measured: {contest.fidelity_missing}"
    for difference in contest.differences:
        yield f"differs: {_text(difference.key)}", f"{difference.base} and {difference.other}"
    if contest.not_checked:
        yield "not checked", ", ".join(contest.not_checked)


def _case(suite: str, task: TaskComparison) -> ET.Element:
    case = ET.Element("testcase", {"classname": suite, "name": _text(task.task)})
    metric = measures.main_metric(task)
    reason = _text(metric.reason if metric is not None and metric.reason else task.note or task.verdict)
    if task.verdict == "regression":
        ET.SubElement(case, "failure", {"type": "regression", "message": reason})
    elif task.verdict == "inconclusive":
        ET.SubElement(case, "error", {"type": "inconclusive", "message": reason})
    lines = [
        f"{measures.name_of(each)}: {measures.value(each, each.base)} → {measures.value(each, each.other)}, "
        f"Δ {measures.change(each)} ({measures.spread(each)}), p {measures.probability(each.p_value)}"
        for each in task.metrics
    ]
    flips = task.flips
    if flips is not None:
        lines.append(
            f"{flips.lost} lost, {flips.gained} gained of {flips.items}; {flips.answers_changed} answers changed"
        )
    ET.SubElement(case, "system-out").text = "\n".join(printable(line) for line in lines)
    return case


def _text(text: str) -> str:
    return shorten(text, _LONGEST)
