"""The rows of the benchmark of evaluations: lm-eval by itself, `fp8 eval`, the same again, and `fp8 compare`.

All have the same settings, written out for lm-eval as `fp8 eval` chooses them: BF16, log-probabilities in float32, BOS,
the context of the bundled model, the same batches.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from bench_report import Comparison, Goal, Runs, paired_ratio, wall
from bench_rows import Row, fp8_command

from fp8cli.errors import ExitCode

TASK: Final = "fp8_stories"
YARDSTICK: Final = "lm-eval"
OVERHEAD: Final = Goal(relation="≤", bound=1.05)
SECONDS_OF_A_REPEAT: Final = Goal(relation="≤", bound=1)
RUNS_OF_A_COMPARISON: Final = Goal(relation="≤", bound=2)

_SETTINGS: Final = {"dtype": "bfloat16", "softmax_dtype": "float32", "max_length": 512, "add_bos_token": True}

_API: Final = """
import sys
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

model, out, settings, folder, task, batch, limit = sys.argv[1:]
tracker = EvaluationTracker(output_path=out)
results = simple_evaluate(
    model="hf",
    model_args=f"pretrained={model},{settings}",
    tasks=[task],
    task_manager=TaskManager(include_path=folder, include_defaults=False),
    batch_size=int(batch),
    limit=int(limit) or None,
    device="cpu",
    bootstrap_iters=0,
    evaluation_tracker=tracker,
)
samples = results.pop("samples")
tracker.save_results_aggregated(results=results, samples=samples)
tracker.save_results_samples(task_name=task, samples=samples[task])
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every row evaluates."""

    tasks: Path
    """Folder with the YAML file of the task."""
    quantized: Path
    records: Path
    """Runs folder that already has the evaluation which `again` asks for."""
    batch_size: int
    limit: int | None
    """First documents of the task; None: all."""


def evaluation_rows(plan: Plan) -> Mapping[str, Row]:
    """Return every row; their source is the unquantized checkpoint, their output a folder that is removed again."""
    limit = [] if plan.limit is None else ["--limit", str(plan.limit)]
    settings = ",".join(f"{name}={value}" for name, value in _SETTINGS.items())
    batch = str(plan.batch_size)

    def lm_eval(source: str, out: str) -> list[str]:
        words = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", batch]
        words += ["--model_args", f"pretrained={source},{settings}", "--tasks", TASK, "--include_path", str(plan.tasks)]
        return [*words, "--output_path", out, "--log_samples", *limit]

    def api(source: str, out: str) -> list[str]:
        settled = [settings, str(plan.tasks), TASK, batch, str(plan.limit or 0)]
        return [sys.executable, "-c", _API, source, out, *settled]

    def fp8(verb: str, *models: str, runs: str) -> list[str]:
        words = [*fp8_command(), verb, *models, "--tasks", TASK, "--backend", "hf", "--device", "cpu"]
        return [*words, "--batch-size", batch, "--runs", runs, *limit]

    return {
        YARDSTICK: Row(title="`lm_eval`", command=lm_eval, needs="lm_eval"),
        "api": Row(title="lm-eval's API, no task indexed, no bootstrap", command=api, needs="lm_eval"),
        "eval": Row(
            title="`fp8 eval --no-fidelity`",
            command=lambda source, out: [*fp8("eval", source, runs=out), "--no-fidelity"],
        ),
        "fidelity": Row(title="`fp8 eval`", command=lambda source, out: fp8("eval", source, runs=out)),
        "quantized": Row(
            title="`fp8 eval` of the FP8 checkpoint",
            command=lambda _, out: fp8("eval", str(plan.quantized), runs=out),
        ),
        "again": Row(
            title="`fp8 eval`, the same again",
            command=lambda source, _: fp8("eval", source, runs=str(plan.records)),
        ),
        "compare": Row(
            title="`fp8 compare BASE FP8`",
            command=lambda source, out: fp8("compare", source, str(plan.quantized), runs=out),
            exit_codes=(ExitCode.DONE, ExitCode.NEGATIVE, ExitCode.INCONCLUSIVE),
        ),
    }


def compare_evaluations(runs: Runs, titles: Mapping[str, str]) -> Iterator[Comparison]:
    """Set `fp8` beside lm-eval by itself, a repeat beside a second, and a comparison beside its two evaluations.

    runs: measured rows only; what is missing is left out.
    """
    for ours, goal in (("eval", OVERHEAD), ("fidelity", None)):
        for bare, bound in ((YARDSTICK, goal), ("api", None)):
            if ours in runs and bare in runs:
                ratio = paired_ratio(wall, runs[ours], runs[bare])
                yield Comparison(what=f"{titles[ours]}: wall time ÷ {titles[bare]}", value=ratio, goal=bound)
    if "again" in runs:
        seconds = median(wall(run) for run in runs["again"])
        yield Comparison(what=f"{titles['again']}: wall time", value=seconds, unit=" s", goal=SECONDS_OF_A_REPEAT)
    if "compare" in runs and "fidelity" in runs:
        ratio = paired_ratio(wall, runs["compare"], runs["fidelity"])
        what = f"{titles['compare']}: wall time ÷ {titles['fidelity']}"
        yield Comparison(what=what, value=ratio, goal=RUNS_OF_A_COMPARISON)
        if "quantized" in runs:
            both = [wall(one) + wall(other) for one, other in zip(runs["fidelity"], runs["quantized"], strict=True)]
            share = median(wall(run) / seconds for run, seconds in zip(runs["compare"], both, strict=True))
            yield Comparison(what=f"{titles['compare']}: wall time ÷ both evaluations by themselves", value=share)


def named(names: Sequence[str], rows: Mapping[str, Row]) -> Mapping[str, Row]:
    """Return the rows of these names, in the order of all rows."""
    return {name: row for name, row in rows.items() if name in names}
