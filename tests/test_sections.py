"""Sections of a report: findings worst first and not too many of one kind, the same for a screen and for Markdown."""

from io import StringIO

from fp8cli.core.findings import Finding, Status
from fp8cli.render.console import Channel, Output
from fp8cli.render.sections import (
    SHOWN_PER_CHECK,
    Command,
    Findings,
    Judged,
    Part,
    Section,
    show_sections,
    to_markdown,
)
from fp8cli.render.table import Column, Table


def shown(*parts: Part, width: int | None = None, unicode: bool = True) -> str:
    paper = StringIO()
    channel = Channel(stream=paper, terminal=width is not None, width=width or 80, color=False, unicode=unicode)
    show_sections([Section(title=None, parts=parts)], Output(out=channel, err=channel))
    return "".join(f"{line.rstrip()}\n" for line in paper.getvalue().splitlines())


def finding(check: str, status: Status, found: str = "it is so", **more: object) -> Finding:
    return Finding(**{"check": check, "status": status, "subject": None, "found": found, **more})  # type: ignore[arg-type]


MIXED = (
    finding("a", "passed"),
    finding("b", "not checked", "nobody looked", consequence="never shown", remedy="nor this"),
    finding("c", "warning", "odd", consequence="may matter", remedy="look at it"),
    finding("d", "failed", "wrong", consequence="it breaks"),
    finding("e", "passed"),
)


def test_the_worst_comes_first_and_what_passed_is_counted() -> None:
    assert shown(Findings(findings=MIXED, all_passed=False)) == (
        """\
✗ failed       d  wrong
               so: it breaks
! warning      c  odd
               so: may matter
               fix: look at it
- not checked  b  nobody looked
2 checks passed; --details lists them
"""
    )


def test_with_details_what_passed_is_listed_too() -> None:
    assert shown(Findings(findings=MIXED, all_passed=True)).splitlines()[-2:] == [
        "✓ passed       a  it is so",
        "✓ passed       e  it is so",
    ]


def test_one_check_that_passed_is_one_check() -> None:
    one = Findings(findings=[finding("a", "passed")], all_passed=False)
    assert shown(one) == "1 check passed; --details lists them\n"


def test_without_findings_there_is_nothing_to_say() -> None:
    for all_passed in (False, True):
        assert shown(Findings(findings=(), all_passed=all_passed)) == ""


def test_of_one_check_a_dozen_are_listed_and_the_rest_is_counted() -> None:
    many = [finding("a", "failed", f"number {number}") for number in range(1000)]
    others = [finding("a", "warning", "another status"), finding("b", "failed", "another check")]
    lines = shown(Findings(findings=[*many, *others], all_passed=False)).splitlines()
    assert lines == [
        *(f"✗ failed       a  number {number}" for number in range(SHOWN_PER_CHECK)),
        "✗ failed       b  another check",
        "! warning      a  another status",
        "988 more `a` failed; --json has them all",
    ]


def test_the_subject_is_named_once_with_how_many_it_stands_for() -> None:
    findings = (
        finding("a", "failed", "`x.weight` has no scale", subject="x.weight"),
        finding("b", "failed", "1 of 9 values is NaN", subject="y.{0..2}.weight", count=3),
        finding("c", "failed", "it is odd", subject="z"),
    )
    assert shown(Findings(findings=findings, all_passed=False)) == (
        """\
✗ failed       a  `x.weight` has no scale
✗ failed       b  y.{0..2}.weight ×3: 1 of 9 values is NaN
✗ failed       c  z: it is odd
"""
    )


def test_without_the_signs_there_are_words() -> None:
    lines = shown(Findings(findings=MIXED, all_passed=True), unicode=False).splitlines()
    assert [line[:17] for line in lines if "so:" not in line and "fix:" not in line] == [
        "FAIL failed      ",
        "!    warning     ",
        "-    not checked ",
        "ok   passed      ",
        "ok   passed      ",
    ]


def test_a_sentence_goes_on_below_itself_and_a_command_stays_whole() -> None:
    long = "one two three four five six seven eight nine ten eleven twelve"
    command = f"vllm serve {'x' * 90}"
    assert shown(
        Findings(findings=[finding("a", "failed", long)], all_passed=False), Command(text=command), width=60
    ) == (
        f"""\
✗ failed       a  one two three four five six seven eight
                  nine ten eleven twelve
  {command}
"""
    )


def test_markdown_has_headings_tables_and_code() -> None:
    table = Table(
        columns=(Column(title="name"), Column(title="bytes", right=True)),
        rows=(("a_b", "1"), ("c|d", "2")),
        total=("total", ""),
    )
    sections = [
        Section(title=None, parts=("model_x · FP8", "a line")),
        Section(title="by name", parts=(table, Command(text="vllm serve a_b"))),
        Section(title="checks", parts=(Findings(findings=MIXED, all_passed=False),)),
    ]
    assert "\n".join(to_markdown(sections)) == (
        r"""# model\_x · FP8

a line

## by name

| name | bytes |
| --- | ---: |
| a\_b | 1 |
| c\|d | 2 |
| **total** |  |

```bash
vllm serve a_b
```

## checks

|  | check | what | consequence | remedy |
| --- | --- | --- | --- | --- |
| ✗ failed | d | wrong | it breaks |  |
| ! warning | c | odd | may matter | look at it |
| - not checked | b | nobody looked |  |  |

2 checks passed; --details lists them
"""
    )


JUDGED = Judged(
    status="failed", word="REGRESSION", text="`a_b` lost more than it may, and not by chance", more=(("rule", "1 pp"),)
)


def test_a_verdict_leads_its_sentence_and_what_belongs_to_it_follows() -> None:
    assert shown(JUDGED, width=48) == (
        """\
✗ REGRESSION  `a_b` lost more than it may, and
              not by chance
  rule: 1 pp
"""
    )
    assert shown(JUDGED, unicode=False).startswith("FAIL REGRESSION  `a_b` lost")


def test_a_verdict_in_markdown_is_bold_and_names_are_text() -> None:
    assert list(to_markdown([Section(title="t", parts=(JUDGED,))])) == [
        "## t",
        "",
        "**✗ REGRESSION** a\\_b lost more than it may, and not by chance",
        "",
        "rule: 1 pp",
        "",
    ]
