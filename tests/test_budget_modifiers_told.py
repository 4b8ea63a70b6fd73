"""Budgets with modifiers, what is said of them: refusals, the note of papers, the screen, the bar, and memory."""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fp8cli.core.budgeting.decision import _all_kept, _unmet, check_budget
from fp8cli.core.budgeting.report import BudgetReport, CurvePoint, GroupReport
from fp8cli.core.doctor.environment import gib
from fp8cli.core.measuring.measuring_events import Modifying, StepBegins, measuring_event
from fp8cli.core.quantizing.hessians import largest_hessians
from fp8cli.core.quantizing.modifiers import NO_MODIFIERS, Modifiers
from fp8cli.core.simulating.words import simulated_scheme
from fp8cli.formats.budget_note import BudgetNote
from fp8cli.measurer.budget_protocol import BudgetWork, Goal
from fp8cli.measurer.model import room_for
from fp8cli.measurer.protocol import MeasureJob, read_job, write_job
from fp8cli.render import budget
from fp8cli.render.console import Channel, Output
from fp8cli.render.progress import QuantizeBar
from tests.budgets import request_for
from tests.calibrated import MODEL
from tests.test_budget_groups import groups_of

GROUPS = groups_of()
EVERYTHING = list(range(12))


def measured(kept: list[int], kl: float, *, own_run: bool = False) -> dict[str, Any]:
    return {"kept": kept, "kl": kl, "kl_se": 0.0, "same_top": 1.0, "own_run": own_run}


@pytest.mark.parametrize(
    ("options", "sets", "message", "hint"),
    [
        (
            {"modifiers": Modifiers(smoothing=0.5, gptq=True), "max_kl": 1e-5},
            [measured(EVERYTHING, 2e-5)],
            "--max-kl 1e-05 cannot be met: with every Linear in 16 bits the KL of SmoothQuant 0.5 alone is 2e-05 nats",
            "leave out --smoothquant, or allow a higher --max-kl",
        ),
        (
            {"modifiers": Modifiers(awq=True), "kv_cache": "fp8", "max_kl": 1},
            [measured(EVERYTHING, 2)],
            "--max-kl 1 cannot be met: with every Linear in 16 bits the KL of the FP8 KV cache and AWQ alone is 2 nats",
            "leave out --kv-cache and --awq, or allow a higher --max-kl",
        ),
        (
            {"kv_cache": "fp8", "max_kl": 0.1},
            [measured(EVERYTHING, 0.2)],
            "--max-kl 0.1 cannot be met: with every Linear in 16 bits the KL of the FP8 KV cache alone is 0.2 nats",
            "leave out --kv-cache, or allow a higher --max-kl",
        ),
        (
            {"modifiers": Modifiers(gptq=True), "max_kl": 0.1},
            [measured(EVERYTHING, 0.0), measured([1], 0.12, own_run=True), measured([2], 0.11, own_run=True)],
            (
                "--max-kl 0.1 was not met by any of 2 sets that GPTQ ran for, of those that promised to meet it: the "
                "least KL was 0.11 nats"
            ),
            "allow a higher --max-kl",
        ),
        (
            {"modifiers": Modifiers(awq=True, gptq=True), "min_sqnr": 31.0},
            [measured([1], 0.1, own_run=True)],
            "--min-sqnr 31 was not met by the one set that AWQ and GPTQ ran for, of those that promised to meet it",
            "ask for less, or keep more as it is with --ignore",
        ),
    ],
)
def test_a_budget_that_is_not_met_is_refused_with_what_stands_in_its_way(
    options: dict[str, Any], sets: list[dict[str, Any]], message: str, hint: str, tmp_path: Path
) -> None:
    error = _unmet(request_for(MODEL, tmp_path / "out", **options), {"sets": sets}, GROUPS)
    assert (error.message, error.hint) == (message, hint)


def test_where_only_everything_in_16_bits_would_do_the_hint_is_what_a_run_came_to(tmp_path: Path) -> None:
    request = request_for(MODEL, tmp_path / "out", modifiers=Modifiers(gptq=True), max_kl=0.1)
    sets = [measured([1], 0.09), measured([2], 0.12, own_run=True), measured(EVERYTHING, 0.0)]
    error = _all_kept(request, {"sets": sets}, GROUPS)
    assert error.message == "--max-kl 0.1 leaves every Linear in 16 bits, so nothing would be quantized"
    assert error.hint == "allow more: the least KL with anything in FP8 was 0.12 nats"


@pytest.mark.parametrize(
    ("modifiers", "models", "rounded"),
    [
        (NO_MODIFIERS, 1, 1),
        (Modifiers(gptq=True), 3, 0),
        (Modifiers(smoothing=0.5), 3, 2),
        (Modifiers(awq=True, gptq=True), 3, 2),
    ],
)
def test_the_copies_that_modifiers_work_on_are_foreseen(
    modifiers: Modifiers, models: int, rounded: int, tmp_path: Path
) -> None:
    request = request_for(MODEL, tmp_path / "out", modifiers=modifiers, max_kl=0.1)
    # So many rows that a model shows beside the libraries.
    tensors = tuple(
        replace(each, source=replace(each.source, shape=(2000 * each.source.shape[0], *each.source.shape[1:])))
        for each in request.plan.tensors
    )
    plan = replace(request.plan, tensors=tensors)
    (check,) = check_budget(request.order, plan)
    kept = [tensor for tensor in tensors if tensor.action != "drop"]
    weights = sum(2 * math.prod(tensor.source.shape) for tensor in kept)
    quantized = sum(2 * math.prod(tensor.source.shape) for tensor in kept if tensor.action == "quantize")
    hessians = largest_hessians(plan) if models > 1 else 0
    outputs = 2048 * 1280 * 2000 * 12
    most = 10**9 + models * weights + rounded * quantized + hessians + outputs
    assert check.wanted == f"about {gib(most)} to load the model and to round it"


@pytest.mark.parametrize(
    ("name", "room"),
    [("FP8_DYNAMIC", 2.25), ("FP8_DYNAMIC+GPTQ", 3.25), ("FP8+SMOOTHQUANT_0.8+KV", 5.25), ("FP8_BLOCK+AWQ+GPTQ", 5.25)],
)
def test_a_job_with_modifiers_comes_back_as_it_was_written_and_wants_more_room(
    name: str, room: float, tmp_path: Path
) -> None:
    work = BudgetWork(scheme=simulated_scheme(name), groups=(), goal=Goal(kind="kl", value=0.1), most=90)
    job = MeasureJob(model="m", dtype="bfloat16", device="auto", samples=None, positions=1, budget_bytes=1, work=work)
    write_job(job, tmp_path)
    assert read_job(tmp_path) == job
    assert room_for(job.work) == room


def test_papers_say_that_the_modifiers_had_the_same_texts() -> None:
    note = BudgetNote(
        said="--max-kl 0.01",
        kept=1,
        groups=12,
        data="texts.jsonl",
        positions=1000,
        kl=0.005,
        kl_se=0.0001,
        fitted=("AWQ", "GPTQ"),
    )
    assert note.sentence().endswith("measured by simulation on 1,000 tokens of texts.jsonl, which AWQ and GPTQ had too")
    assert replace(note, fitted=()).sentence().endswith("tokens of texts.jsonl")


def report_of(runs: int) -> BudgetReport:
    chosen = CurvePoint(
        kept=(),
        tensor_bytes=1_000_000,
        kl=0.005,
        kl_se=0.0001,
        same_top=0.99,
        lowest_sqnr_db=30.0,
        own_run=True,
        chosen=True,
    )
    group = GroupReport(
        name="a",
        modules=("a",),
        saved_bytes=1,
        kept=False,
        kl_alone=0.1,
        kl_share=0.1,
        weight_sqnr_db=1,
        output_sqnr_db=1,
    )
    return BudgetReport(
        kind="kl",
        value=0.01,
        said="--max-kl 0.01",
        source="data",
        data="texts.jsonl",
        data_fingerprint="",
        samples=8,
        tokens=1010,
        token_ids_sha256="",
        positions=1000,
        groups=(group,),
        curve=(chosen,),
        chosen=chosen,
        kept_modules=(),
        ignore=(),
        measured=40,
        modifiers=("SmoothQuant 0.5", "GPTQ"),
        runs=runs,
        exhausted=False,
        device="cpu",
        seconds=12.0,
        known=False,
        notes=(),
    )


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (1, "the chosen one in a run for that set alone"),
        (3, "3 of them, the chosen one too, in a run for that set alone"),
    ],
)
def test_the_screen_says_what_was_measured_on_what(runs: int, said: str) -> None:
    stream = io.StringIO()
    channel = Channel.of(stream, color=False)
    budget.show(report_of(runs), Output(out=channel, err=channel))
    sets = "40 sets measured on 1,000 tokens of texts.jsonl in 12.0 s on cpu, on the model as prepared by"
    assert f"{sets} SmoothQuant 0.5 and GPTQ; {said}" in stream.getvalue()


def test_the_bar_counts_parts_and_then_sets() -> None:
    stream = io.StringIO()
    channel = Channel.of(stream, color=False)
    bar = QuantizeBar(Output(out=channel, err=channel))
    event = measuring_event({"event": "modifying", "done": 0, "total": 4})
    assert event == Modifying(done=0, total=4)
    for each in (event, StepBegins(number=1, of=90, name="a set"), event):
        bar.notify(each)
    assert stream.getvalue().splitlines() == [
        "0/4 parts prepared by llm-compressor",
        "0/90 sets of groups measured, at most",
        "0/4 parts prepared by llm-compressor",
    ]
