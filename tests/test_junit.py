"""The JUnit XML of a comparison, whole, and read back by a parser."""

from xml.etree import ElementTree as ET

import pytest

from fp8cli.core.comparing.comparison import Comparison
from fp8cli.render.junit import to_junit
from tests import comparisons


def parsed(made: Comparison) -> ET.Element:
    return ET.fromstring(to_junit(made).encode("utf-8"))  # noqa: S314 - our own document


def test_a_comparison_as_junit_xml() -> None:
    assert to_junit(comparisons.several()) == (
        """\
<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="fp8 compare" tests="6" failures="1" errors="1">
  <testsuite name="fp8-dynamic against base" tests="3" failures="0" errors="0" skipped="0">
    <properties>
      <property name="verdict" value="pass" />
      <property name="reason" value="3 of 3 tasks are not worse by more than the margin" />
      <property name="judged by" value="margin 1 pp, ×1.01 for a perplexity, 95 % confidence" />
      <property name="total" value="−0.19 pp, mean over tasks" />
      <property name="total interval" value="−0.44 to +0.07" />
      <property name="fidelity: KL divergence, nats" value="0.00143" />
      <property name="fidelity: standard error" value="9e-5" />
      <property name="fidelity: median" value="0.0005" />
      <property name="fidelity: 99 %" value="0.0142" />
      <property name="fidelity: largest" value="0.0831" />
      <property name="fidelity: same top token" value="96.63 %" />
      <property name="fidelity: interval, %" value="95.76 to 97.33" />
      <property name="fidelity: Δp, next token" value="−0.012 pp" />
      <property name="fidelity: root mean square" value="1.230 pp" />
      <property name="fidelity: perplexity ratio" value="×1.0011" />
      <property name="fidelity: interval, ×" value="1.0002 to 1.0020" />
      <property name="fidelity: share compared" value="all" />
      <property name="fidelity: positions" value="2,048" />
      <property name="fidelity: texts" value="96" />
    </properties>
    <testcase classname="fp8-dynamic against base" name="lambada_openai">
      <system-out>acc ↑: 0.7656 → 0.7640, Δ −0.16 pp (−0.52 to +0.20), p 0.42
perplexity ↓: 1.810 → 1.812, Δ ×1.0011 (1.0002 to 1.0020), p &lt;0.0001
13 lost, 9 gained of 2500; 41 answers changed</system-out>
    </testcase>
    <testcase classname="fp8-dynamic against base" name="arc_challenge">
      <system-out>acc_norm ↑: 0.5520 → 0.5503, Δ −0.17 pp (−0.61 to +0.27), p 0.42
9 lost, 7 gained of 1172; 31 answers changed</system-out>
    </testcase>
    <testcase classname="fp8-dynamic against base" name="gsm8k">
      <system-out>exact_match (strict-match) ↑: 0.7710 → 0.7687, Δ −0.23 pp (−0.73 to +0.27), p 0.42
16 lost, 13 gained of 1319; 61 answers changed</system-out>
    </testcase>
  </testsuite>
  <testsuite name="fp8-block against base" tests="3" failures="1" errors="1" skipped="0">
    <properties>
      <property name="verdict" value="regression" />
      <property name="reason" value="lambada_openai is worse: −4.16 pp, at best −3.31 pp" />
      <property name="judged by" value="margin 1 pp, ×1.01 for a perplexity, 95 % confidence" />
      <property name="total" value="−1.72 pp, mean over tasks" />
      <property name="total interval" value="−2.14 to −1.30" />
      <property name="fidelity: KL divergence, nats" value="≥ 0.0286" />
      <property name="fidelity: standard error" value="0.0018" />
      <property name="fidelity: median" value="≥ 0.01" />
      <property name="fidelity: 99 %" value="≥ 0.284" />
      <property name="fidelity: largest" value="≥ 1.66" />
      <property name="fidelity: same top token" value="91.30 %" />
      <property name="fidelity: interval, %" value="90.00 to 92.45" />
      <property name="fidelity: Δp, next token" value="−0.012 pp" />
      <property name="fidelity: root mean square" value="1.230 pp" />
      <property name="fidelity: perplexity ratio" value="×1.0011" />
      <property name="fidelity: interval, ×" value="1.0002 to 1.0020" />
      <property name="fidelity: share compared" value="87.0 %" />
      <property name="fidelity: positions" value="2,048" />
      <property name="fidelity: texts" value="96" />
      <property name="differs: dtype" value="bfloat16 and float16" />
      <property name="not checked" value="tokenizer, chat template" />
    </properties>
    <testcase classname="fp8-block against base" name="lambada_openai">
      <failure type="regression" message="−4.16 pp, at best −3.31 pp, and the margin is 1 pp" />
      <system-out>acc ↑: 0.7656 → 0.7240, Δ −4.16 pp (−5.01 to −3.31), p &lt;0.0001
140 lost, 36 gained of 2500; 391 answers changed</system-out>
    </testcase>
    <testcase classname="fp8-block against base" name="arc_challenge">
      <error type="inconclusive" message="−0.76 pp, and between −1.58 and +0.06 pp nothing is ruled out: the margin is 1 pp" />
      <system-out>acc_norm ↑: 0.5520 → 0.5444, Δ −0.76 pp (−1.58 to +0.06), p 0.0755
28 lost, 19 gained of 1172; 31 answers changed</system-out>
    </testcase>
    <testcase classname="fp8-block against base" name="gsm8k">
      <system-out>exact_match (strict-match) ↑: 0.7710 → 0.7687, Δ −0.23 pp (−0.73 to +0.27), p 0.42
16 lost, 13 gained of 1319; 31 answers changed</system-out>
    </testcase>
  </testsuite>
</testsuites>
"""  # noqa: E501 - a line of the document
    )


@pytest.mark.parametrize(
    ("made", "failures", "errors"),
    [
        (comparisons.simple(), 0, 0),
        (comparisons.several(), 1, 1),
        (comparisons.open_question(), 0, 1),
        (comparisons.only_perplexity(), 0, 1),
        (comparisons.hostile(), 2, 0),
    ],
)
def test_counts_are_those_of_the_cases(made: Comparison, failures: int, errors: int) -> None:
    root = parsed(made)
    assert root.tag == "testsuites"
    assert (root.get("failures"), root.get("errors")) == (str(failures), str(errors))
    assert len(root.findall("testsuite")) == len(made.contests)
    for suite, contest in zip(root.findall("testsuite"), made.contests, strict=True):
        cases = suite.findall("testcase")
        assert suite.get("tests") == str(len(cases)) == str(len(contest.tasks))
        assert suite.get("failures") == str(len(suite.findall("testcase/failure")))
        assert suite.get("errors") == str(len(suite.findall("testcase/error")))
        # The order that JUnit's schema asks for: properties before cases.
        assert [child.tag for child in suite] == ["properties", *["testcase"] * len(cases)]


def test_why_fidelity_is_missing_is_a_property() -> None:
    properties = {each.get("name"): each.get("value") for each in parsed(comparisons.open_question()).iter("property")}
    assert properties["fidelity"] == "not measured: neither side kept log-probabilities"
    assert properties["verdict"] == "inconclusive"


def test_hostile_texts_are_text_and_bounded() -> None:
    text = to_junit(comparisons.hostile())
    assert len(text) < 60_000
    root = parsed(comparisons.hostile())
    case = root.findall("testsuite/testcase")[1]
    assert (case.get("name") or "").startswith("$x_1$ | <script>alert('&')</script> \\x1b[31m[bold]\\n\\u202e")
    assert all(ch.isprintable() or ch == "\n" for ch in text)
