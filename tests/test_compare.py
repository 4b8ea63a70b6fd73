"""`fp8 compare`: every kind of side, the numbers against scipy and by hand, verdicts, and a real pair of models."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from fp8cli.commands.compare import CompareReport, CompareRequest, run
from fp8cli.core.comparing.comparison import Contest, TaskComparison
from fp8cli.core.comparing.missing import ready_sides
from fp8cli.core.comparing.sides import name_side
from fp8cli.core.evaluating.request import EvaluationRequest
from fp8cli.errors import BadInput, Fp8Error, UsageError
from tests.lm_eval_files import (
    DATE,
    choice_sample,
    likelihood_sample,
    page_sample,
    text_sample,
    write_results,
)
from tests.planting import STORIES, Tensors, change, quantize_stories
from tests.run_records import write_run

Rows = Sequence[dict[str, Any]]


def likelihoods(right: Sequence[bool], losses: Sequence[float] | None = None) -> Rows:
    losses = losses or [1.0] * len(right)
    return [likelihood_sample(n, right=each, loss=losses[n]) for n, each in enumerate(right)]


def compare(folder: Path, *sides: object, evaluation: EvaluationRequest | None = None, **options: Any) -> CompareReport:
    evaluation = evaluation or EvaluationRequest(tasks=(), runs=folder / "runs")
    return run(CompareRequest(sides=tuple(map(str, sides)), evaluation=evaluation, **options))


def contest_of(folder: Path, base: Rows, other: Rows, **options: Any) -> Contest:
    ours, theirs = (write_results(folder / name, {"t": rows}) for name, rows in (("b", base), ("o", other)))
    (contest,) = compare(folder, ours, theirs, **options).comparison.contests
    return contest


def task_of(folder: Path, base: Rows, other: Rows, **options: Any) -> TaskComparison:
    (task,) = contest_of(folder, base, other, **options).tasks
    return task


# Numbers


def test_flips_are_tested_by_mcnemar_and_nothing_else(tmp_path: Path) -> None:
    # 1,319 items, 60 lost and 35 gained: unpaired p = 0.267 hides what the exact paired test finds.
    base = [True] * 800 + [False] * 519
    other = [False] * 60 + [True] * 740 + [True] * 35 + [False] * 484
    task = task_of(tmp_path, likelihoods(base), likelihoods(other))
    metric = task.metrics[0]
    assert (metric.metric, metric.kind, metric.paired, metric.items) == ("acc", "share", True, 1319)
    assert (metric.base, metric.other) == (800 / 1319, 775 / 1319)
    assert metric.difference == pytest.approx(-25 / 1319)
    assert task.flips is not None
    assert (task.flips.lost, task.flips.gained) == (60, 35)
    assert metric.test == "exact McNemar"
    assert metric.p_value == pytest.approx(stats.binomtest(35, 95).pvalue)
    assert metric.p_worse == pytest.approx(stats.binomtest(60, 95, alternative="greater").pvalue)
    assert metric.base_stderr == pytest.approx(stats.sem(base))
    assert metric.recovery == pytest.approx(100 * 775 / 800)
    assert metric.interval is not None
    assert metric.interval.low < -25 / 1319 < metric.interval.high < 0
    assert task.verdict == "regression"


def test_a_perplexity_is_compared_as_a_ratio_over_the_same_items(tmp_path: Path) -> None:
    ours = [1.0 + 0.1 * (n % 7) for n in range(60)]
    theirs = [loss + 0.02 * ((n % 5) - 1) for n, loss in enumerate(ours)]
    right = [True] * 60
    task = task_of(tmp_path, likelihoods(right, ours), likelihoods(right, theirs))
    metric = next(each for each in task.metrics if each.metric == "perplexity")
    differences = [b - a for a, b in zip(ours, theirs, strict=True)]
    mean = sum(differences) / 60
    assert (metric.kind, metric.decides, metric.higher_is_better) == ("perplexity", False, False)
    assert metric.ratio == pytest.approx(math.exp(mean))
    low, high = stats.t.interval(0.95, 59, loc=mean, scale=stats.sem(differences))
    assert metric.interval is not None
    assert (metric.interval.low, metric.interval.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert metric.p_value == pytest.approx(stats.ttest_rel(theirs, ours).pvalue)
    assert metric.p_worse == pytest.approx(stats.ttest_rel(theirs, ours, alternative="greater").pvalue)


def test_pages_are_weighed_by_their_words_and_bits_follow_from_the_ratio(tmp_path: Path) -> None:
    words = [10, 20, 30, 40, 50]
    ours = [2.0 * count for count in words]
    theirs = [loss + 0.001 * count**1.5 for loss, count in zip(ours, words, strict=True)]
    base, other = ([page_sample(n, each[n], words[n]) for n in range(5)] for each in (ours, theirs))
    task = task_of(tmp_path, base, other)
    metrics = {metric.metric: metric for metric in task.metrics}
    log_ratio = (sum(theirs) - sum(ours)) / sum(words)
    assert task.metrics[0].metric == "word_perplexity"
    assert metrics["word_perplexity"].ratio == pytest.approx(math.exp(log_ratio))
    assert metrics["byte_perplexity"].ratio == pytest.approx(math.exp(log_ratio / 5))
    bits = metrics["bits_per_byte"]
    assert (bits.kind, bits.ratio) == ("mean", None)
    assert bits.difference == pytest.approx(log_ratio / 5 / math.log(2))
    assert bits.interval is not None
    assert bits.interval.low < bits.difference < bits.interval.high


def test_a_number_per_item_is_compared_by_the_paired_t_test(tmp_path: Path) -> None:
    ours = [0.1 * (n % 10) for n in range(50)]
    theirs = [0.1 * ((3 * n) % 10) for n in range(50)]
    base, other = ([text_sample(n, f"x{n}", "x", score=each[n]) for n in range(50)] for each in (ours, theirs))
    metric = task_of(tmp_path, base, other).metrics[0]
    assert (metric.kind, metric.test) == ("mean", "paired t")
    assert metric.p_value == pytest.approx(stats.ttest_rel(theirs, ours).pvalue)
    differences = [b - a for a, b in zip(ours, theirs, strict=True)]
    assert metric.interval is not None
    assert (metric.interval.low, metric.interval.high) == pytest.approx(
        stats.t.interval(0.95, 49, loc=metric.difference, scale=stats.sem(differences))
    )


def test_items_that_do_not_add_up_to_the_score_do_not_count(tmp_path: Path) -> None:
    rows = likelihoods([True, False] * 20)
    ours = write_results(tmp_path / "b", {"t": rows})
    raw = json.loads(ours.read_text())
    raw["results"]["t"]["acc,none"] = 0.75
    raw["results"]["t"]["acc_stderr,none"] = 0.05
    ours.write_text(json.dumps(raw))
    theirs = write_results(tmp_path / "o", {"t": rows})
    (contest,) = compare(tmp_path, ours, theirs).comparison.contests
    metric = next(each for each in contest.tasks[0].metrics if each.metric == "acc")
    assert (metric.paired, metric.base, metric.test) == (False, 0.75, "unpaired z")
    assert contest.tasks[0].note == "the items do not add up to acc, or none are common, so nothing is paired"


def test_pairs_of_labels_are_no_likelihoods(tmp_path: Path) -> None:
    rows = [{**each, "metrics": ["f1"], "f1": [n % 2, 1]} for n, each in enumerate(likelihoods([True] * 10))]
    for name in ("b", "o"):
        path = write_results(tmp_path / name, {"t": [{**row, "f1": 0.5} for row in rows]})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / f"samples_t_{DATE}.jsonl").write_text(text)
    (contest,) = compare(tmp_path, path.parent.parent / "b", path).comparison.contests
    (metric,) = contest.tasks[0].metrics
    assert (metric.kind, metric.paired, metric.interval, metric.verdict) == ("other", False, None, "inconclusive")


def test_chance_is_one_over_the_number_of_choices(tmp_path: Path) -> None:
    base = [choice_sample(n, [-1.0, -2.0, -3.0, -4.0] if n % 4 else [-2.0, -1.0]) for n in range(40)]
    other = [choice_sample(n, [-1.0, -2.0, -3.0, -4.0] if n % 4 > 1 else [-2.0, -1.0]) for n in range(40)]
    metrics = {metric.metric: metric for metric in task_of(tmp_path, base, other).metrics}
    chance = (30 / 4 + 10 / 2) / 40
    assert metrics["acc"].chance == pytest.approx(chance)
    assert metrics["acc"].recovery == pytest.approx(100 * 0.5 / 0.75)
    assert metrics["acc"].recovery_above_chance == pytest.approx(100 * (0.5 - chance) / (0.75 - chance))


def test_guessing_gets_nothing_where_a_text_must_be_the_most_likely(tmp_path: Path) -> None:
    rows = likelihoods([True, False] * 10)
    assert task_of(tmp_path, rows, rows).metrics[0].chance is None


@pytest.mark.parametrize(
    ("rows", "deciding"),
    [
        (likelihoods([True] * 3), "acc"),
        ([choice_sample(n, [-1.0, -4.0]) for n in range(3)], "acc_norm"),
        ([text_sample(n, "a", "a", score=1.0) for n in range(3)], "exact_match"),
        ([page_sample(n, 3.0 + n, 5) for n in range(3)], "word_perplexity"),
    ],
)
def test_the_metric_that_decides_is_the_leaderboards(tmp_path: Path, rows: Rows, deciding: str) -> None:
    task = task_of(tmp_path, rows, rows)
    assert [metric.decides for metric in task.metrics] == [True] + [False] * (len(task.metrics) - 1)
    assert task.metrics[0].metric == deciding


# Changed items


def test_flips_come_first_and_then_other_answers(tmp_path: Path) -> None:
    texts = [("so 1", "1", 1.0), ("so 2", "2", 0.0), ("so 3", "3", 1.0), ("so 4", "4", 0.0), ("so 5", "5", 1.0)]
    others = [("so 1", "1", 1.0), ("thus 2", "2", 0.0), ("so 9", "9", 0.0), ("so 8", "8", 1.0), ("so 5", "5", 1.0)]
    base, other = (
        [text_sample(n, whole, taken, score=score) for n, (whole, taken, score) in enumerate(each)]
        for each in (texts, others)
    )
    contest = contest_of(tmp_path, base, other)
    flips = contest.tasks[0].flips
    assert flips is not None
    assert (flips.lost, flips.gained, flips.answers, flips.answers_changed) == (1, 1, 5, 3)
    assert [(item.change, item.doc_id, item.base_answer, item.other_answer) for item in contest.changed] == [
        ("lost", 2, "3", "9"),
        ("gained", 3, "4", "8"),
        ("answer", 1, "so 2", "thus 2"),
    ]
    assert (contest.changed[0].prompt, contest.changed[0].target) == ("prompt 2", "gold")


def test_texts_that_differ_after_what_is_shown_are_said_to(tmp_path: Path) -> None:
    base, other = ([text_sample(0, "x" * 400 + end, "x", score=1.0)] for end in "ab")
    (item,) = contest_of(tmp_path, base, other).changed
    assert item.base_answer == item.other_answer
    assert item.base_answer.endswith("… (differs after 300 characters)")


def test_a_wrong_choice_that_became_another_is_a_changed_answer_and_no_flip(tmp_path: Path) -> None:
    contest = contest_of(
        tmp_path,
        [choice_sample(0, [-9.0, -1.0, -8.0]), choice_sample(1, [-1.0, -9.0, -9.0])],
        [choice_sample(0, [-9.0, -8.0, -1.0]), choice_sample(1, [-1.0, -9.0, -9.0])],
    )
    assert contest.tasks[0].flips is not None
    assert (contest.tasks[0].flips.lost, contest.tasks[0].flips.answers_changed) == (0, 1)
    assert [(item.base_answer, item.other_answer) for item in contest.changed] == [("bb", "ccc")]


# Verdicts


def test_no_flip_in_few_items_proves_nothing_and_in_many_passes(tmp_path: Path) -> None:
    few = task_of(tmp_path, likelihoods([True] * 100), likelihoods([True] * 100))
    many = task_of(tmp_path, likelihoods([True] * 400), likelihoods([True] * 400))
    assert (few.verdict, many.verdict) == ("inconclusive", "pass")
    assert few.metrics[0].items_needed == 268
    assert many.metrics[0].items_needed is None
    assert few.metrics[0].reason is not None


@pytest.mark.parametrize(
    ("lost", "gained", "margin", "code"),
    [(60, 0, 0.01, 1), (60, 0, 0.05, 0), (10, 0, 0.01, 0), (25, 15, 0.01, 4), (25, 15, 0.02, 0), (0, 0, 0.01, 0)],
)
def test_the_exit_code_is_the_verdict(tmp_path: Path, lost: int, gained: int, margin: float, code: int) -> None:
    base, other = [True] * (2000 - gained) + [False] * gained, [False] * lost + [True] * (2000 - lost)
    ours, theirs = (write_results(tmp_path / n, {"t": likelihoods(r)}) for n, r in (("b", base), ("o", other)))
    assert int(compare(tmp_path, ours, theirs, margin=margin).exit_code) == code


def test_one_of_many_tasks_regresses_only_if_holm_agrees(tmp_path: Path) -> None:
    # 7 of 7 flips lost: p = 1/128, which 19 tasks without any flip make 20/128.
    worse = [False] * 7 + [True] * 93
    names = [f"t{n}" for n in range(20)]
    ours = write_results(tmp_path / "b", {name: likelihoods([True] * 100) for name in names})
    theirs = write_results(
        tmp_path / "o", {name: likelihoods(worse if name == "t0" else [True] * 100) for name in names}
    )
    (contest,) = compare(tmp_path, ours, theirs).comparison.contests
    first = contest.tasks[0]
    assert first.metrics[0].p_worse == pytest.approx(1 / 128)
    assert first.metrics[0].p_worse_holm == pytest.approx(20 / 128)
    assert (first.verdict, contest.verdict) == ("inconclusive", "inconclusive")
    assert task_of(tmp_path, likelihoods([True] * 100), likelihoods(worse)).verdict == "regression"


def test_totals_are_over_tasks_and_over_items(tmp_path: Path) -> None:
    big, small = [True] * 300 + [False] * 100, [True] * 50 + [False] * 50
    ours = write_results(tmp_path / "b", {"big": likelihoods(big), "small": likelihoods(small)})
    big, small = [False] * 8 + big[8:], small[:-4] + [True] * 4
    theirs = write_results(tmp_path / "o", {"big": likelihoods(big), "small": likelihoods(small)})
    (contest,) = compare(tmp_path, ours, theirs).comparison.contests
    total = contest.total
    assert total is not None
    assert (total.tasks, total.items) == (2, 500)
    assert (total.base, total.other) == pytest.approx(((0.75 + 0.5) / 2, (0.73 + 0.54) / 2))
    assert total.macro_difference == pytest.approx((-0.02 + 0.04) / 2)
    assert total.micro_difference == pytest.approx((-8 + 4) / 500)
    assert total.flips is not None
    assert (total.flips.lost, total.flips.gained) == (8, 4)
    assert total.macro_interval is not None
    assert total.macro_interval.low < total.macro_difference < total.macro_interval.high


def test_the_worst_contest_is_the_verdict_of_the_whole(tmp_path: Path) -> None:
    rows = {"good": [True] * 400, "bad": [False] * 60 + [True] * 340}
    base = write_results(tmp_path / "base", {"t": likelihoods([True] * 400)})
    sides = [write_results(tmp_path / name, {"t": likelihoods(right)}).parent for name, right in rows.items()]
    report = compare(tmp_path, base, *sides)
    assert [(c.other.label, c.verdict) for c in report.comparison.contests] == [("good", "pass"), ("bad", "regression")]
    assert (report.comparison.verdict, int(report.exit_code)) == ("regression", 1)


# The seed's tables

HEAD = """
|    Tasks     |Version|Filter|n-shot|  Metric  |   |Value |   |Stderr|
|--------------|------:|------|-----:|----------|---|-----:|---|-----:|
"""
BF16 = """|lambada_openai|      1|none  |     5|acc       |↑  |0.7120|±  |0.0287|
|              |       |none  |     5|perplexity|↓  |3.8683|±  |0.3716|
"""
FP8 = """|lambada_openai|      1|none  |     5|acc       |↑  |0.7160|±  |0.0286|
|              |       |none  |     5|perplexity|↓  |3.8915|±  |0.3727|
"""


def test_the_seeds_two_tables_get_the_honest_verdict(tmp_path: Path) -> None:
    for name, table in (("bf16", BF16), ("fp8", FP8)):
        (tmp_path / f"{name}.md").write_text(HEAD + table, encoding="utf-8")
    report = compare(tmp_path, tmp_path / "bf16.md", tmp_path / "fp8.md")
    (contest,) = report.comparison.contests
    (task,) = contest.tasks
    acc, perplexity = task.metrics
    assert (acc.base, acc.other, acc.items, acc.paired) == (0.712, 0.716, 250, False)
    assert acc.difference == pytest.approx(0.004)
    error = math.hypot(0.0287, 0.0286)
    assert acc.interval is not None
    assert (acc.interval.low, acc.interval.high) == pytest.approx(stats.norm.interval(0.95, 0.004, error))
    assert acc.p_value == pytest.approx(2 * stats.norm.sf(0.004 / error))
    # Two shares of 0.712 without pairs: (1.645 + 0.842)² · 2 · 0.712 · 0.288 / 0.01².
    assert acc.items_needed == pytest.approx(
        (stats.norm.ppf(0.95) + stats.norm.ppf(0.8)) ** 2 * 2 * 0.712 * 0.288 / 1e-4, abs=1
    )
    assert perplexity.ratio == pytest.approx(3.8915 / 3.8683)
    assert (contest.verdict, int(report.exit_code)) == ("inconclusive", 4)
    assert task.note is not None
    assert "nothing is paired" in task.note
    assert "about 250 items, inferred from value and standard error" in task.note
    assert contest.fidelity is None
    assert contest.fidelity_missing is not None


# Sides


def test_every_kind_of_side_means_the_same_run(tmp_path: Path) -> None:
    runs, rows = tmp_path / "runs", likelihoods([True] * 9 + [False])
    write_run(runs, "base", {"t": rows})
    folder = runs / "base"
    names = {
        "base": "label",
        f"base@{DATE}": "run",
        str(folder / f"run_{DATE}.json"): "run",
        str(folder / f"results_{DATE}.json"): "results",
        str(folder): "label",
    }
    for name, kind in names.items():
        side = name_side(name, runs)
        assert side.kind == kind, name
        assert list(side.tasks()) == ["t"]
        assert (side.evidence[0].record is None) == (kind == "results")
    (tmp_path / "out/org__model").mkdir(parents=True)
    shutil.copytree(folder, tmp_path / "out/org__model", dirs_exist_ok=True)
    (tmp_path / f"out/org__model/run_{DATE}.json").unlink()
    side = name_side(str(tmp_path / "out"), runs)
    assert (side.kind, side.label, list(side.tasks())) == ("results", "out", ["t"])


def test_a_label_has_the_newest_results_of_each_task(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs, "base", {"old": likelihoods([True]), "both": likelihoods([True])})
    for file in (runs / "base").iterdir():
        text = file.read_text().replace(DATE, "2025-01-01T00-00-00").replace("2026-01-02T", "2025-01-01T")
        file.rename(file.with_name(file.name.replace(DATE, "2025-01-01T00-00-00"))).write_text(text)
    write_run(runs, "base", {"new": likelihoods([True]), "both": likelihoods([False])})
    tasks = name_side("base", runs).tasks()
    assert {task: each.results.date for task, each in tasks.items()} == {
        "new": DATE,
        "both": DATE,
        "old": "2025-01-01T00-00-00",
    }


def test_a_name_that_is_two_things_is_settled_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs"), "base", {"t": likelihoods([True] * 400)})
    write_results(Path("base"), {"other": likelihoods([True])})
    side = name_side("base", Path("runs"))
    assert (side.kind, list(side.tasks())) == ("label", ["t"])
    assert side.note == "`base` is a label in `runs` and a path here: the label is meant, ./base is the other"
    assert (name_side("./base", Path("runs")).kind, list(name_side("./base", Path("runs")).tasks())) == (
        "results",
        ["other"],
    )
    notes = compare(
        tmp_path, "base", "base", evaluation=EvaluationRequest(tasks=(), runs=Path("runs"))
    ).comparison.notes
    assert notes == (side.note, side.note)


def test_a_checkpoint_folder_and_a_hub_id_are_checkpoints(tmp_path: Path) -> None:
    assert name_side(str(STORIES), tmp_path).kind == "checkpoint"
    side = name_side("org/model", tmp_path)
    assert (side.kind, side.checkpoint) == ("checkpoint", "org/model")


def test_a_side_that_nobody_knows_is_refused_with_the_labels_that_are_there(tmp_path: Path) -> None:
    write_run(tmp_path, "base", {"t": likelihoods([True])})
    with pytest.raises(UsageError, match="`bas` is no label") as caught:
        name_side("bas", tmp_path)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("labels there: base;")
    with pytest.raises(UsageError, match="`bas` is no label") as caught:
        name_side("bas", tmp_path / "none")
    assert caught.value.hint is not None
    assert "there are no runs yet" in caught.value.hint


@pytest.mark.parametrize("name", ["weights.bin", "run_x.json", "results.json", "empty", "several", "../base", "\0"])
def test_what_is_no_side_is_refused_and_never_guessed(tmp_path: Path, name: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0")
    (tmp_path / "run_x.json").write_text("{}")
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for model in ("a", "b"):
        write_results(tmp_path / "several" / model, {"t": likelihoods([True])})
    with pytest.raises(Fp8Error):
        name_side(name if name == "\0" else str(tmp_path / name), tmp_path / "runs")


def test_samples_that_break_off_are_an_error_and_not_a_smaller_task(tmp_path: Path) -> None:
    ours = write_results(tmp_path / "b", {"t": likelihoods([True] * 5)})
    theirs = write_results(tmp_path / "o", {"t": likelihoods([True] * 5)})
    samples = tmp_path / "o" / f"samples_t_{DATE}.jsonl"
    samples.write_bytes(samples.read_bytes()[:-40])
    with pytest.raises(BadInput, match="breaks off in line 5"):
        compare(tmp_path, ours, theirs)


def test_two_evaluations_in_one_file_are_refused_and_repeated_lines_count_once(tmp_path: Path) -> None:
    ours = write_results(tmp_path / "b", {"t": likelihoods([True] * 5)})
    theirs = write_results(tmp_path / "o", {"t": likelihoods([True] * 5)})
    samples = tmp_path / "o" / f"samples_t_{DATE}.jsonl"
    samples.write_bytes(2 * samples.read_bytes())
    assert compare(tmp_path, ours, theirs).comparison.contests[0].tasks[0].items == 5
    with samples.open("a") as file:
        file.write(json.dumps(likelihood_sample(3, right=False)) + "\n")
    with pytest.raises(BadInput, match="answers document 3 in two ways"):
        compare(tmp_path, ours, theirs)


def test_groups_and_patterns_choose_tasks(tmp_path: Path) -> None:
    runs, rows = tmp_path / "runs", likelihoods([True] * 5)
    names = ("arc_easy", "arc_challenge", "lambada")
    for label in ("base", "fp8"):
        groups = {"results": {"group_subtasks": {"arc": ["arc_easy", "arc_challenge"]}}}
        write_run(runs, label, dict.fromkeys(names, rows), **groups)
    for asked, found in (("arc", names[:2]), ("*_easy", names[:1]), ("lambada,arc_easy", ("lambada", "arc_easy"))):
        evaluation = EvaluationRequest(tasks=(asked,), runs=runs)
        (contest,) = compare(tmp_path, "base", "fp8", evaluation=evaluation).comparison.contests
        assert tuple(task.task for task in contest.tasks) == found


def test_a_task_that_results_lack_is_refused_where_nothing_can_be_run(tmp_path: Path) -> None:
    path = write_results(tmp_path / "b", {"t": likelihoods([True])})
    evaluation = EvaluationRequest(tasks=("gsm8k",), runs=tmp_path)
    with pytest.raises(UsageError, match="has nothing for `gsm8k`"):
        compare(tmp_path, path, path, evaluation=evaluation)
    evaluation = EvaluationRequest(tasks=(), sample=5, runs=tmp_path)
    with pytest.raises(UsageError, match="is there as it is, and --sample asks for a new evaluation"):
        compare(tmp_path, path, path, evaluation=evaluation)


def test_checkpoints_need_tasks(tmp_path: Path) -> None:
    named = [name_side("org/a", tmp_path), name_side("org/b", tmp_path)]
    with pytest.raises(UsageError, match="no task is named, and no side has results yet"):
        ready_sides(named, EvaluationRequest(tasks=()), margin=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": ("base",)}, "a comparison needs a base"),
        ({"margin": 0.0}, "--margin is 0"),
        ({"perplexity_margin": 2.0}, "--margin-perplexity is 2"),
        ({"margin": math.nan}, "--margin is nan"),
        ({"confidence": 1.0}, "--confidence is 1"),
        ({"allow": ("everything",)}, "--allow everything"),
        ({"evaluation": EvaluationRequest(tasks=(), backend="server")}, "a server has one model"),
        ({"evaluation": EvaluationRequest(tasks=(), limit=-1)}, "--limit is -1"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_anything_is_read(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        run(CompareRequest(**{"sides": ("a", "b"), **options}))
    assert caught.value.message.startswith(message)


def test_hostile_samples_and_names_harm_no_output(tmp_path: Path) -> None:
    evil = "\x1b[31m[bold]<script>alert(1)</script>" + "x" * 10_000
    base = [text_sample(0, evil, evil, score=1.0), text_sample(1, "a", "a", score=1.0)]
    other = [text_sample(0, evil + "!", "no", score=0.0), text_sample(1, "a", "a", score=1.0)]
    task = "\x1b]0;title\x07<b>"
    ours, theirs = (write_results(tmp_path / n, {task: rows}) for n, rows in (("b", base), ("o", other)))
    for options in ((), ("--show-flips", "5"), ("--markdown",)):
        done = fp8(tmp_path, "compare", str(ours), str(theirs), *options)
        assert done.returncode == 4, done.stderr
        assert "\x1b" not in done.stdout
        assert "\x07" not in done.stdout
    html, junit = tmp_path / "c.html", tmp_path / "c.xml"
    done = fp8(tmp_path, "compare", str(ours), str(theirs), "--html", str(html), "--junit", str(junit), "--json")
    assert done.returncode == 4, done.stderr
    assert "<script>alert" not in html.read_text("utf-8")
    assert "\x1b" not in junit.read_text("utf-8")
    (item,) = json.loads(done.stdout)["result"]["comparison"]["contests"][0]["changed"]
    assert len(item["base_answer"]) <= 300


# The program itself


def fp8(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-m", "fp8cli", *words]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def test_the_command_says_why_and_leaves_with_the_code_of_its_verdict(tmp_path: Path) -> None:
    runs = tmp_path / "fp8-runs"
    write_run(runs, "base", {"t": likelihoods([True] * 400)})
    write_run(runs, "fp8", {"t": likelihoods([True] * 400)})
    write_run(runs, "bad", {"t": likelihoods([False] * 60 + [True] * 340)})
    write_run(runs, "half", {"t": likelihoods([True] * 400)}, settings={"dtype": "float16"})
    assert fp8(tmp_path, "compare", "base", "fp8").returncode == 0
    assert fp8(tmp_path, "compare", "base", "bad").returncode == 1
    refused = fp8(tmp_path, "compare", "base", "half")
    assert (refused.returncode, refused.stdout) == (5, "")
    assert refused.stderr == (
        "error: `base` and `half` cannot be compared; they differ in: dtype (bfloat16 / float16)\n\n"
        "hint: evaluate them alike, or say that it does not matter: --allow dtype\n"
    )
    assert fp8(tmp_path, "compare", "base", "half", "--allow", "dtype").returncode == 0
    document = json.loads(fp8(tmp_path, "compare", "base", "half", "--json").stdout)
    assert (document["exit_code"], document["result"]) == (5, None)
    assert fp8(tmp_path, "compare", "base", "fp8", "--margin", "0").returncode == 2


def test_the_command_in_a_report_makes_the_same_comparison(tmp_path: Path) -> None:
    write_run(tmp_path / "r u n s", "base", {"t": likelihoods([True] * 400)})
    write_run(tmp_path / "r u n s", "fp8", {"t": likelihoods([True] * 380 + [False] * 20)})
    words = ["compare", "base", "fp8", "--runs", "r u n s", "--margin", "0.1", "--allow", "dtype,bos", "--tasks", "t"]
    first = json.loads(fp8(tmp_path, *words, "--json").stdout)["result"]
    assert first["command"] == "fp8 compare base fp8 --tasks t --runs 'r u n s' --margin 0.1 --allow dtype,bos"
    again = fp8(tmp_path, *shlex.split(first["command"])[1:], "--json")
    assert json.loads(again.stdout)["result"] == first


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the bundled model and its FP8 copy were compared, on few items, with one command."""
    folder = tmp_path_factory.mktemp("compared")
    quantize_stories(folder / "stories-FP8")
    words = (str(STORIES), "stories-FP8", "--tasks", "fp8_stories", "--sample", "40", "--fidelity-positions", "256")
    done = fp8(folder, "compare", *words, "--json")
    assert done.returncode == 4, done.stderr
    (folder / "first.json").write_text(done.stdout)
    (folder / "first.txt").write_text(done.stderr)
    return folder


@pytest.mark.slow
def test_two_checkpoints_are_evaluated_alike_and_compared(compared: Path) -> None:
    comparison = json.loads((compared / "first.json").read_text())["result"]["comparison"]
    (contest,) = comparison["contests"]
    (task,) = contest["tasks"]
    assert (comparison["base"]["label"], contest["other"]["label"]) == ("base", "fp8")
    assert (comparison["base"]["executed_as"], contest["other"]["executed_as"]) == ("unquantized", "fake-quant")
    assert comparison["base"]["settings"] == {
        key: value for key, value in contest["other"]["settings"].items() if key != "executed by"
    } | {key: value for key, value in comparison["base"]["settings"].items() if key == "executed by"}
    assert (task["task"], task["items"], task["metrics"][0]["paired"]) == ("fp8_stories", 40, True)
    assert contest["differences"] == []
    assert contest["not_checked"] == []
    assert contest["fidelity"]["exact"]
    assert 0 < contest["fidelity"]["kl_mean"] < 0.01
    assert contest["fidelity"]["positions"] == 256
    said = (compared / "first.txt").read_text()
    assert said.index("a margin of 1 pp takes about 1,855 items") < said.index("loading the model")
    assert said.index("`fp8_stories` has 40 items") < said.index("loading the model")


@pytest.mark.slow
def test_the_numbers_are_those_of_the_samples(compared: Path) -> None:
    (task,) = json.loads((compared / "first.json").read_text())["result"]["comparison"]["contests"][0]["tasks"]
    rows = []
    for label in ("base", "fp8"):
        (file,) = (compared / "fp8-runs" / label).glob("samples_*.jsonl")
        rows.append({(row := json.loads(line))["doc_id"]: row for line in file.read_text("utf-8").splitlines()})
    base, other = rows
    assert base.keys() == other.keys()
    assert task["flips"]["lost"] == sum(base[n]["acc"] > other[n]["acc"] for n in base)
    assert task["flips"]["gained"] == sum(base[n]["acc"] < other[n]["acc"] for n in base)
    perplexity = next(metric for metric in task["metrics"] if metric["metric"] == "perplexity")
    losses = [base[n]["perplexity"] - other[n]["perplexity"] for n in base]
    assert perplexity["ratio"] == pytest.approx(math.exp(sum(losses) / 40))


@pytest.mark.slow
def test_labels_and_checkpoints_are_answered_from_the_records_without_a_heavy_library(compared: Path) -> None:
    first = json.loads((compared / "first.json").read_text())["result"]["comparison"]
    program = (
        "import json, sys\nfrom fp8cli.cli.app import command_line\n"
        "try:\n    command_line()\nexcept SystemExit as left:\n    code = left.code\n"
        "heavy = {'torch', 'lm_eval', 'transformers', 'pandas', 'datasets'} & set(sys.modules)\n"
        "sys.exit(99 if heavy else code)\n"
    )
    for words in (
        ("base", "fp8"),
        ("base", "stories-FP8"),
        (str(STORIES), "stories-FP8", "--tasks", "fp8_stories", "--sample", "40"),
    ):
        command = [sys.executable, "-c", program, "compare", *words, "--json"]
        done = subprocess.run(command, cwd=compared, capture_output=True, text=True, check=False)
        assert done.returncode == 4, done.stderr
        assert "loading the model" not in done.stderr
        again = json.loads(done.stdout)["result"]["comparison"]
        assert again["contests"][0]["tasks"] == first["contests"][0]["tasks"]
        assert again["contests"][0]["fidelity"] == first["contests"][0]["fidelity"]


@pytest.mark.slow
def test_the_noise_floor_is_the_base_in_other_arithmetic(compared: Path) -> None:
    done = fp8(compared, "compare", "base", "fp8", "--noise-floor", "--json")
    assert done.returncode == 4, done.stderr
    comparison = json.loads(done.stdout)["result"]["comparison"]
    noise, contest = comparison["noise"], comparison["contests"][0]
    assert noise["other"]["label"] == "base~float32"
    assert [(each["key"], each["base"], each["other"]) for each in noise["differences"]] == [
        ("dtype", "bfloat16", "float32")
    ]
    assert 0 < noise["fidelity"]["kl_mean"] < contest["fidelity"]["kl_mean"]


@pytest.mark.slow
def test_a_label_is_evaluated_again_where_more_items_are_asked_for(compared: Path) -> None:
    done = fp8(compared, "compare", "base", "fp8", "--sample", "60", "--no-fidelity", "--json")
    assert done.returncode == 4, done.stderr
    comparison = json.loads(done.stdout)["result"]["comparison"]
    assert comparison["contests"][0]["tasks"][0]["items"] == 60
    assert comparison["base"]["settings"]["items"] == "60 of each task, drawn with seed 1234"
    assert comparison["contests"][0]["fidelity_missing"] == "the evaluation of `base` kept no log-probabilities"


@pytest.mark.slow
def test_one_scale_four_times_too_large_is_a_regression(compared: Path) -> None:
    def plant(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.v_proj.weight_scale"] *= 4

    change(compared / "stories-FP8", compared / "damaged", plant)
    done = fp8(compared, "compare", "base", "damaged", "--sample", "300", "--no-fidelity", "--json")
    assert done.returncode == 1, done.stderr
    (contest,) = json.loads(done.stdout)["result"]["comparison"]["contests"]
    assert contest["verdict"] == "regression"
    assert contest["tasks"][0]["flips"]["lost"] > contest["tasks"][0]["flips"]["gained"]
