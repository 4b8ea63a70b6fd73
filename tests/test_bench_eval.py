"""The benchmark of evaluations: its arithmetic, its rows and its tables; how long anything takes is not asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench_eval_rows import Plan, compare_evaluations, evaluation_rows, named
from bench_report import Measurement

SCRIPT = Path(__file__).parents[1] / "scripts/bench_eval.py"
PLAN = Plan(tasks=Path("tasks"), quantized=Path("fp8"), records=Path("kept"), batch_size=16, limit=None)
TITLES = {name: name for name in evaluation_rows(PLAN)}


def run_of(seconds: float) -> Measurement:
    return Measurement(wall_seconds=seconds, cpu_seconds=1.0, peak_bytes=2**30)


def test_everything_measured_is_compared_and_each_goal_is_of_the_right_ratio() -> None:
    runs = {
        "lm-eval": [run_of(10.0), run_of(20.0), run_of(30.0)],
        "api": [run_of(5.0), run_of(5.0), run_of(5.0)],
        "eval": [run_of(10.0), run_of(22.0), run_of(60.0)],
        "fidelity": [run_of(12.0), run_of(20.0), run_of(30.0)],
        "quantized": [run_of(20.0), run_of(20.0), run_of(10.0)],
        "again": [run_of(0.5), run_of(3.0), run_of(0.7)],
        "compare": [run_of(30.0), run_of(30.0), run_of(80.0)],
    }
    assert [(one.what, one.value, one.goal and one.goal.bound) for one in compare_evaluations(runs, TITLES)] == [
        ("eval: wall time ÷ lm-eval", 1.1, 1.05),
        ("eval: wall time ÷ api", 4.4, None),
        ("fidelity: wall time ÷ lm-eval", 1.0, None),
        ("fidelity: wall time ÷ api", 4.0, None),
        ("again: wall time", 0.7, 1),
        ("compare: wall time ÷ fidelity", 2.5, 2),
        ("compare: wall time ÷ both evaluations by themselves", 0.9375, None),
    ]


def test_what_was_not_measured_is_not_compared() -> None:
    assert list(compare_evaluations({"lm-eval": [run_of(1.0)], "compare": [run_of(1.0)]}, TITLES)) == []
    only = list(compare_evaluations({"fidelity": [run_of(1.0)], "compare": [run_of(1.5)]}, TITLES))
    assert [one.value for one in only] == [1.5]


def test_every_row_evaluates_the_same_items_in_the_same_batches() -> None:
    plan = Plan(tasks=Path("tasks"), quantized=Path("fp8"), records=Path("kept"), batch_size=48, limit=96)
    for row in evaluation_rows(plan).values():
        words = row.command("base", "out")
        assert {"fp8_stories", "48", "96"} <= set(words)


def test_rows_are_in_their_own_order_whatever_order_they_are_asked_for() -> None:
    assert list(named(["compare", "lm-eval"], evaluation_rows(PLAN))) == ["lm-eval", "compare"]


@pytest.mark.parametrize("words", [["--repeats", "0"], ["--limit", "0"], ["--batch-size", "-1"], ["--only", "nothing"]])
def test_options_that_make_no_sense_are_refused(words: list[str]) -> None:
    ran = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "bench_eval.py: error: " in ran.stderr


@pytest.mark.slow
def test_a_small_benchmark_prints_its_tables_and_leaves_nothing(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    work = tmp_path / "work"
    work.mkdir()
    words = ["--limit", "4", "--repeats", "1", "--on", str(work), "--json", str(report), "--only", "api", "eval"]
    ran = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=True)
    first_cells = [line.split(" | ")[0] for line in ran.stdout.splitlines() if line.startswith("|")]
    assert first_cells == [
        "| run",
        "| ---",
        "| lm-eval's API, no task indexed, no bootstrap",
        "| `fp8 eval --no-fidelity`",
        "| ratio",
        "| ---",
        "| `fp8 eval --no-fidelity`: wall time ÷ lm-eval's API, no task indexed, no bootstrap",
    ]
    assert "not measured" not in ran.stdout
    document = json.loads(report.read_text("utf-8"))
    assert set(document["facts"]) >= {"command", "date", "processor", "cores", "versions", "items"}
    assert len(document["results"]["runs"]["eval"]) == 1
    assert list(work.iterdir()) == []
