"""What `fp8 eval` prints, whole: on a terminal of 80 columns, into a pipe, as JSON, and while it runs."""

import dataclasses
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from fp8cli.commands.evaluate import EvaluateReport, ResultRow
from fp8cli.core.evaluating.eval_events import Noted, Prepared
from fp8cli.core.evaluating.worker_events import (
    Answered,
    CountedTask,
    FidelityProgress,
    ModelLoaded,
    ModelLoading,
    Running,
    TasksCounted,
)
from fp8cli.render.console import Channel, Output
from fp8cli.render.evaluation import EXECUTION_WORDS, show
from fp8cli.render.progress import EvalBar
from tests.hand_made_records import a_record
from tests.starting import fp8


def a_row(**changes: Any) -> ResultRow:
    fields: dict[str, Any] = {
        "task": "fp8_stories",
        "version": "1.0",
        "filter": "none",
        "num_fewshot": 0,
        "items": 2500,
        "metric": "acc",
        "higher_is_better": True,
        "value": 0.7656,
        "stderr": 0.00847,
        "run": "2026-11-24T10-00-00.000000",
    }
    return ResultRow(**fields | changes)


def a_report(**changes: Any) -> EvaluateReport:
    fields: dict[str, Any] = {
        "checkpoint": "./stories",
        "label": "base",
        "answered": False,
        "folder": Path("fp8-runs/base"),
        "record": a_record(),
        "record_file": Path("fp8-runs/base/run_2026-11-24T10-00-00.000000.json"),
        "results": (a_row(), a_row(metric="perplexity", higher_is_better=False, value=1.8097, stderr=None)),
        "earlier": (),
        "notes": (),
        "next_command": "fp8 compare base fp8",
    }
    return EvaluateReport(**fields | changes)


def printed(report: EvaluateReport, *, width: int | None = None, unicode: bool = True, as_json: bool = False) -> str:
    paper = StringIO()
    channel = Channel(stream=paper, terminal=width is not None, width=width or 80, color=False, unicode=unicode)
    show(report, Output(out=channel, err=channel, json=as_json))
    return "".join(f"{line.rstrip()}\n" for line in paper.getvalue().split("\n")[:-1])


def test_into_a_pipe() -> None:
    assert printed(a_report()) == (
        """\
./stories · unquantized

task         version  filter  n-shot  items  metric         value    stderr
fp8_stories  1.0      none         0  2,500  acc ↑         0.7656  ± 0.0085
fp8_stories  1.0      none         0  2,500  perplexity ↓  1.8097         -

weights 0.00164 GB · 12.5 s, 4.0 s of it loading · 1,981 tokens, 990 a second · memory 0.500 GiB
executed on transformers 5.17.0, unquantized: there is no FP8 in it

chosen for you, recorded with the run:
  softmax_dtype  float32: rounding to bfloat16 moves log-probabilities more than FP8 does

record: fp8-runs/base/run_2026-11-24T10-00-00.000000.json
next:   fp8 compare base fp8
"""
    )


def test_on_80_columns() -> None:
    report = a_report(
        answered=True,
        notes=("memory ran out, so this run has batches of 8 and not of the sixteen that it would have had",),
        earlier=(Path("fp8-runs/base/run_2026-11-23T10-00-00.000000.json"),),
        record=a_record(executed_as="fp8-kernel", executed_by="CutlassFP8ScaledMMLinearKernel"),
    )
    assert printed(report, width=80) == (
        """\
./stories · unquantized

╭─────────────┬────────┬────────┬───────┬──────────────┬────────┬──────────╮
│ task        │ filter │ n-shot │ items │ metric       │  value │   stderr │
├─────────────┼────────┼────────┼───────┼──────────────┼────────┼──────────┤
│ fp8_stories │ none   │      0 │ 2,500 │ acc ↑        │ 0.7656 │ ± 0.0085 │
│ fp8_stories │ none   │      0 │ 2,500 │ perplexity ↓ │ 1.8097 │        - │
╰─────────────┴────────┴────────┴───────┴──────────────┴────────┴──────────╯

weights 0.00164 GB · 12.5 s, 4.0 s of it loading · 1,981 tokens, 990 a second ·
memory 0.500 GiB
executed on transformers 5.17.0, FP8 kernel: weights and activations multiplied
in FP8 (CutlassFP8ScaledMMLinearKernel)

chosen for you, recorded with the run:
  softmax_dtype  float32: rounding to bfloat16 moves log-probabilities more than
                 FP8 does

note: memory ran out, so this run has batches of 8 and not of the sixteen that
      it would have had

answered from its record, nothing was run; --rerun runs it again
record: fp8-runs/base/run_2026-11-24T10-00-00.000000.json
and:    fp8-runs/base/run_2026-11-23T10-00-00.000000.json
next:   fp8 compare base fp8
"""
    )


def test_json_has_all_of_it() -> None:
    report = a_report()
    document = json.loads(printed(report, as_json=True))
    assert (document["command"], document["exit_code"], document["ok"]) == ("eval", 0, True)
    assert document["result"]["results"][0] == dataclasses.asdict(a_row())
    assert document["result"]["record"]["settings"]["safe"] == dict(a_record().settings.safe)
    assert document["result"]["next_command"] == "fp8 compare base fp8"


def test_hostile_texts_are_harmless() -> None:
    evil = "\x1b[31m[bold]evil\u202e\n" + "x" * 10_000
    record = a_record(executed_by=evil)
    report = a_report(
        checkpoint=evil, results=(a_row(task=evil, metric=evil, filter=evil),), notes=(evil,), record=record
    )
    for width in (None, 80):
        text = printed(report, width=width)
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "[bold]evil" in text
    assert json.loads(printed(report, as_json=True))["result"]["checkpoint"] == evil


def test_a_stream_without_unicode_gets_words_for_arrows() -> None:
    text = printed(a_report(), unicode=False)
    assert "acc (up)" in text
    assert "perplexity (down)" in text
    assert "+- 0.0085" in text


@pytest.mark.parametrize(
    ("words", "code"), [(("--help",), 0), (("--limit", "0", "--tasks", "x"), 2), (("--no-such-option",), 2), ((), 2)]
)
def test_help_and_a_mistyped_option_load_no_heavy_library(tmp_path: Path, words: tuple[str, ...], code: int) -> None:
    run = fp8(tmp_path, "eval", *words)
    assert run.code == code
    assert run.loaded == []


def test_every_way_of_executing_has_its_words() -> None:
    from typing import get_args

    from fp8cli.formats.run_record import Execution

    assert set(EXECUTION_WORDS) == set(get_args(Execution))


EVENTS = (
    Prepared(
        checkpoint="./stories",
        label="base",
        backend="hf",
        why="there is no GPU",
        tasks=("piqa",),
        known=("fp8_stories",),
    ),
    TasksCounted(tasks=(CountedTask(name="piqa", items=1838, requests=3676),)),
    Noted(text="a note"),
    ModelLoading(),
    ModelLoaded(seconds=4.04, executed="unquantized"),
    Running(requests=3676, known=1000),
    Answered(count=2676),
    FidelityProgress(done=10, total=2048),
    FidelityProgress(done=2048, total=2048),
)


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_in_a_pipe_is_a_few_lines_and_none_when_quiet(quiet: bool) -> None:
    paper = StringIO()
    channel = Channel(stream=paper, terminal=False, width=80, color=False, unicode=True)
    with EvalBar(Output(out=channel, err=channel, quiet=quiet)).running() as bar:
        for event in EVENTS:
            bar.notify(event)
    expected = """\
./stories (base): piqa on transformers, because there is no GPU; records answer fp8_stories
looking up the tasks and their data
piqa: 1,838 items
a note
loading the model
the model was loaded in 4.0 s
1,000/3,676 requests
0/2,048 positions
"""
    assert paper.getvalue() == ("" if quiet else expected)


def test_progress_on_a_terminal_counts_requests_and_leaves_nothing_behind() -> None:
    paper = StringIO()
    channel = Channel(stream=paper, terminal=True, width=80, color=False, unicode=True)
    with EvalBar(Output(out=channel, err=channel)).running() as bar:
        for event in EVENTS:
            bar.notify(event)
        bar._bar.refresh()  # type: ignore[union-attr]
    assert "1000/3676" in paper.getvalue()
    assert "2048/2048" in paper.getvalue()
    assert bar._bar is None
