"""What `fp8 explore` prints, whole: on a terminal of 80 columns, into a pipe, as Markdown, and what its bar says."""

import json
from dataclasses import replace
from io import StringIO

import pytest

from fp8cli.core.comparing.comparison import Interval, MetricComparison
from fp8cli.core.exploring.measured import Why
from fp8cli.core.exploring.picking import Pick
from fp8cli.core.exploring.report import ExploreReport, FormRow, Module, Texts
from fp8cli.core.exploring.task_changes import TaskChange
from fp8cli.core.measuring.measuring_events import (
    ModelLoaded,
    ModelLoading,
    ReferenceProgress,
    StepBegins,
    TextsRead,
    measuring_event,
)
from fp8cli.core.simulating.modules import ModuleOptions
from fp8cli.render.console import Channel, Output
from fp8cli.render.exploration import decibels, show, thousandths
from fp8cli.render.progress import MeasureBar

DYNAMIC = FormRow(
    name="FP8_DYNAMIC",
    summary="E4M3 weights per channel, activations per token at run time",
    written=True,
    command="fp8 quantize ./model --scheme FP8_DYNAMIC",
    needs_data=False,
    native_from=(8, 9),
    native_here=True,
    file_bytes=9_081_272_345,
    bits_per_parameter=9.0489,
    sqnr_db=31.5449,
    worst=Module(name="model.layers.0.mlp.down_proj", sqnr_db=30.1),
    kl=0.0123,
    kl_se=0.0004,
    same_top=0.9512,
    seconds=4.0,
)
CACHED = replace(
    DYNAMIC,
    name="FP8_DYNAMIC+KV",
    command="fp8 quantize ./model --scheme FP8_DYNAMIC --kv-cache fp8 --calibration-data texts.jsonl",
    needs_data=True,
    kl=0.0157,
)
NUMBER = replace(
    DYNAMIC, name="MXFP8", written=False, command=None, native_from=(10, 0), native_here=False, sqnr_db=30.0, kl=2.3
)
FAILED = FormRow(
    name="FP8+KV_HEAD",
    summary="",
    written=True,
    command="fp8 quantize ./model --scheme FP8 --kv-cache fp8-head",
    needs_data=True,
    native_from=(9, 0),
    native_here=False,
    failure=Why(message="config.json does not say how many KV heads there are", hint="use one scale per layer"),
)
REPORT = ExploreReport(
    model="./model",
    revision=None,
    dtype="bfloat16",
    device="cuda",
    gpu="NVIDIA H100 80GB HBM3",
    bytes_now=16_060_556_376,
    texts=Texts(
        source="texts.jsonl",
        fingerprint="ab",
        samples=256,
        tokens=60_000,
        max_seq_length=512,
        seed=1234,
        calibrated_on=128,
        measured_on=128,
        positions=8192,
        token_ids_sha256="cd",
    ),
    rows=(DYNAMIC, CACHED, NUMBER, FAILED),
    pick=Pick(
        name="FP8_DYNAMIC", best="FP8_DYNAMIC", as_good=("FP8_DYNAMIC",), counted=("FP8_DYNAMIC",), rule="of all, it"
    ),
    next_command=DYNAMIC.command,
    memory_bytes=17 * 2**30,
    peak_memory_bytes=16 * 2**30,
    peak_gpu_memory_bytes=None,
    seconds=61.5,
    versions={"torch": "2.13.0"},
    notes=("no form has an FP8 KV cache: a note",),
)
CHANGE = TaskChange(
    task="fp8_stories",
    metrics=(
        MetricComparison(
            metric="acc",
            filter="none",
            kind="share",
            higher_is_better=True,
            items=2500,
            paired=True,
            base=0.7656,
            other=0.764,
            base_stderr=0.008,
            other_stderr=0.008,
            difference=-0.0016,
            interval=Interval(low=-0.0052, high=0.002, confidence=0.95, method="paired score (Tango)"),
            ratio=None,
            test=None,
            p_value=None,
            p_worse=None,
            p_worse_holm=None,
            recovery=None,
            recovery_interval=None,
            chance=None,
            recovery_above_chance=None,
            decides=False,
            verdict=None,
            reason=None,
            items_needed=None,
        ),
    ),
)


def printed(
    report: ExploreReport, width: int | None = None, *, unicode: bool = True, json: bool = False, markdown: bool = False
) -> tuple[str, str]:
    """Print a report on a terminal `width` cells wide, or into a pipe; return what went where."""
    out, err = StringIO(), StringIO()
    channels = [
        Channel(stream=paper, terminal=width is not None, width=width or 80, color=False, unicode=unicode)
        for paper in (out, err)
    ]
    show(report, Output(out=channels[0], err=channels[1], json=json), markdown=markdown)
    # A line broken between words keeps the space at its end.
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().split("\n")[:-1]), err.getvalue()


def test_the_screen_of_80_columns() -> None:
    out, err = printed(REPORT, 80)
    assert out == (
        """\
./model · 16.06 GB in bfloat16

Forms
╭───┬────────────────┬──────┬─────────┬──────┬──────┬───────┬────────┬──────╮
│   │ form           │ made │    size │   dB │   KL │     ± │    top │ from │
├───┼────────────────┼──────┼─────────┼──────┼──────┼───────┼────────┼──────┤
│ → │ FP8_DYNAMIC    │ yes  │ 9.08 GB │ 31.5 │ 12.3 │ 0.400 │ 95.1 % │  8.9 │
│   │ FP8_DYNAMIC+KV │ data │ 9.08 GB │ 31.5 │ 15.7 │ 0.400 │ 95.1 % │  8.9 │
│   │ MXFP8          │ no   │ 9.08 GB │ 30.0 │ 2300 │ 0.400 │ 95.1 % │ 10.0 │
│   │ FP8+KV_HEAD    │ data │       – │    – │    – │     – │      – │  9.0 │
╰───┴────────────────┴──────┴─────────┴──────┴──────┴───────┴────────┴──────╯
made: by fp8 quantize; data: with calibration data; no: it was simulated, and
nothing writes it
size: of all shards, computed; bits: of the checkpoint for each parameter; dB:
SQNR of the rounded weights
KL: from the model as it is, thousandths of a nat, ± standard error; top:
positions with the same likeliest token
from: compute capability from which vLLM computes all of it in FP8

Not measured
FP8+KV_HEAD: config.json does not say how many KV heads there are; use one scale
per layer

To take
✓ FP8_DYNAMIC  KL 12.3 thousandths of a nat
rule: of all, it
an FP8 KV cache, of half the size, takes KL from 12.3 to 15.7
native here was judged by NVIDIA H100 80GB HBM3
  fp8 quantize ./model --scheme FP8_DYNAMIC

How it was measured
128 texts of texts.jsonl at 8,192 positions, of up to 512 tokens; scales that
need data come from 128 other texts, seed 1234
forms were simulated: weights, activations, keys and values rounded as the
written checkpoint has them, multiplied in bfloat16; what FP8 kernels round
besides is not in it
one loading on cuda, 61.5 s, at most 16.00 GiB of memory (17.00 GiB were
estimated)
"""
    )
    assert err == "no form has an FP8 KV cache: a note\n"


def test_a_pipe_without_unicode_gets_the_same_table_bare() -> None:
    out, _ = printed(replace(REPORT, rows=(DYNAMIC, NUMBER)), unicode=False)
    table = out.split("\n\n")[1].splitlines()
    assert table[1:4] == [
        "    form         made     size  bits    dB    KL     +-     top  from",
        "->  FP8_DYNAMIC  yes   9.08 GB  9.05  31.5  12.3  0.400  95.1 %   8.9",
        "    MXFP8        no    9.08 GB  9.05  30.0  2300  0.400  95.1 %  10.0",
    ]
    assert "Not measured" not in out
    assert "KV cache" not in out


def test_tasks_have_a_table_of_their_own_with_the_interval_of_the_change() -> None:
    out, _ = printed(replace(REPORT, rows=(replace(DYNAMIC, tasks=(CHANGE,)), CACHED)))
    section = next(part for part in out.split("\n\n") if part.startswith("Tasks\n"))
    assert section.splitlines()[1:3] == [
        "form         task               items  as it is  form's         Δ   95 % interval",
        "FP8_DYNAMIC  fp8_stories acc ↑  2,500    0.7656  0.7640  −0.16 pp  −0.52 to +0.20",
    ]


def test_a_report_in_which_nothing_can_be_written_says_so() -> None:
    out, _ = printed(replace(REPORT, rows=(NUMBER,), pick=None, next_command=None, gpu=None))
    assert "To take\nnone: nothing that was measured can be written\n" in out


def test_what_was_rounded_and_who_prepared_it_is_said() -> None:
    modules = ModuleOptions(ignore=("*.down_proj",))
    versions = {**REPORT.versions, "llmcompressor": "0.14.0.1"}
    screen, _ = printed(replace(REPORT, modules=modules, versions=versions))
    words = " ".join(screen.split())
    assert "rounded was what --ignore '*.down_proj' leaves" in words
    assert "llm-compressor's own (0.14.0.1), on a copy of the model" in words
    plain, _ = printed(REPORT)
    assert "rounded was" not in plain
    assert "llm-compressor" not in plain


def test_older_gpus_are_named_beside_the_form_that_is_theirs() -> None:
    out, _ = printed(replace(REPORT, rows=(DYNAMIC, replace(NUMBER, name="FP8_W8A16", native_from=None))))
    assert "FP8_W8A16 is what vLLM makes of FP8_DYNAMIC on GPUs from 7.5 to 8.8" in out


def test_the_markdown_is_a_table_and_a_command_to_copy() -> None:
    out, _ = printed(REPORT, markdown=True)
    assert out.startswith("# ./model · 16.06 GB in bfloat16\n\n## Forms\n\n|  | form | made | size | bits |")
    assert "| → | FP8\\_DYNAMIC | yes | 9.08 GB | 9.05 | 31.5 | 12.3 | 0.400 | 95.1 % | 8.9 |" in out
    assert "```bash\nfp8 quantize ./model --scheme FP8_DYNAMIC\n```" in out


def test_json_has_all_the_screen_has() -> None:
    out, _ = printed(REPORT, json=True)
    document = json.loads(out)
    assert (document["command"], document["ok"], document["schema_version"]) == ("explore", True, 1)
    result = document["result"]
    assert [row["name"] for row in result["rows"]] == ["FP8_DYNAMIC", "FP8_DYNAMIC+KV", "MXFP8", "FP8+KV_HEAD"]
    assert result["rows"][3]["failure"]["message"] == "config.json does not say how many KV heads there are"
    assert result["rows"][0]["native_from"] == [8, 9]
    assert result["pick"]["rule"] == "of all, it"
    assert result["notes"] == ["no form has an FP8 KV cache: a note"]


def test_hostile_names_change_nothing_on_the_screen() -> None:
    evil = "\x1b[31m[red]" + "x" * 10_000
    failed = replace(FAILED, failure=Why(message="a \x1b[2J sentence", hint=None))
    report = replace(
        REPORT, model=evil, rows=(DYNAMIC, failed), texts=replace(REPORT.texts, source=evil), notes=(evil,)
    )
    out, err = printed(report, 80)
    markdown, _ = printed(report, markdown=True)
    for text in (out, err, markdown):
        assert "\x1b" not in text
    assert "\\x1b[31m[red]" in out
    assert len(out) < 4_000


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.0005012, "0.501"), (0.00219, "2.19"), (0.0123, "12.3"), (2.3, "2300")],
)
def test_nats_are_told_in_thousandths(value: float, text: str) -> None:
    assert thousandths(value) == text


def test_decibels_beyond_all_numbers_are_words() -> None:
    assert [decibels(each) for each in (31.54, float("inf"), float("-inf"), -0.01)] == ["31.5", "exact", "none", "0.0"]


def test_into_a_pipe_the_bar_is_a_line_now_and_then() -> None:
    paper = StringIO()
    channel = Channel(stream=paper, terminal=False, width=80, color=False, unicode=True)
    with MeasureBar(Output(out=channel, err=channel)).running() as bar:
        for event in (
            TextsRead(samples=4, tokens=1200),
            ModelLoading(),
            ModelLoaded(device="cpu", seconds=1.25),
            ReferenceProgress(done=5, total=10),
            ReferenceProgress(done=10, total=10),
            StepBegins(number=1, of=2, name="FP8_DYNAMIC"),
            StepBegins(number=2, of=2, name="MXFP8"),
        ):
            bar.notify(event)
    assert paper.getvalue().splitlines() == [
        "texts: 4 samples, 1,200 tokens",
        "loading the model",
        "the model was loaded onto cpu in 1.2 s",
        "0/10 positions of the model as it is",
        "0/2 measured",
    ]


def test_on_a_terminal_the_bar_names_what_is_measured_and_a_hostile_name_is_harmless() -> None:
    paper = StringIO()
    channel = Channel(stream=paper, terminal=True, width=80, color=False, unicode=True)
    with MeasureBar(Output(out=channel, err=channel)).running() as bar:
        bar.notify(StepBegins(number=1, of=2, name="[red]\x1b[2Jx"))
    assert "\x1b[2Jx" not in paper.getvalue()


def test_a_line_that_is_no_event_says_nothing() -> None:
    assert measuring_event({"event": "step", "number": "1", "of": 2, "name": "x"}) is None
    assert measuring_event({"event": "news"}) is None
    assert measuring_event([]) is None
