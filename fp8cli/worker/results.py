"""The evaluation itself: lm-eval's `simple_evaluate` on a loaded model, and its own files of results and samples.

One thing is done otherwise than by its command: no standard error is bootstrapped. lm-eval draws 100,000 times, in as
many processes as there are processors, for each metric without a closed form, and prints on the way. Means keep
lm-eval's closed form and are equal to the command's; the perplexity gets the delta method, SE(e^−m) = e^−m · SE(m);
other metrics get `N/A`. `config.bootstrap_iters` of the results says 0.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval import evaluator_utils, simple_evaluate
from lm_eval.api import metrics
from lm_eval.loggers import EvaluationTracker

from fp8cli.worker.models import CLASSES, model_args
from fp8cli.worker.protocol import Job
from fp8cli.worker.tasks import LoadedTasks

StandardError = Callable[[Sequence[Any]], float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What lm-eval found out."""

    results: Mapping[str, Any]
    """As its results file has them."""
    chat_template_sha256: str | None


class Results:
    """lm-eval's files in the folder of a job."""

    def __init__(self, job: Job, folder: Path) -> None:
        """Start lm-eval's clock: it counts loading the model too."""
        self._job = job
        self._folder = folder
        self._inside = folder / "lm-eval"
        self._tracker = EvaluationTracker(output_path=str(self._inside / "results.json"))

    def evaluate(self, lm: Any, loaded: LoadedTasks) -> Evaluation:
        """Evaluate all tasks, and lay down `samples_TASK.jsonl` for each."""
        job = self._job
        evaluator_utils.stderr_for_metric = _closed_form
        results = simple_evaluate(
            model=lm,
            model_args=model_args(job),
            tasks=list(loaded.specs),
            task_manager=loaded.manager,
            num_fewshot=job.num_fewshot,
            batch_size=job.batch_size,
            device=job.device,
            limit=job.limit,
            samples=None if loaded.samples is None else {name: list(ids) for name, ids in loaded.samples.items()},
            bootstrap_iters=1,  # 0 would leave out the closed forms too
            system_instruction=job.system_instruction,
            apply_chat_template=job.apply_chat_template,
            fewshot_as_multiturn=job.fewshot_as_multiturn,
            gen_kwargs=job.gen_kwargs,
            random_seed=job.seeds["random"],
            numpy_random_seed=job.seeds["numpy"],
            torch_random_seed=job.seeds["torch"],
            fewshot_random_seed=job.seeds["fewshot"],
            confirm_run_unsafe_code=job.confirm_unsafe_code,
        )
        # A model that is handed over has no name for lm-eval.
        results["config"].update({"model": CLASSES[job.backend], "bootstrap_iters": 0})
        self._tracker.general_config_tracker.log_experiment_args(
            model_source=CLASSES[job.backend],
            model_args=model_args(job),
            system_instruction=job.system_instruction,
            chat_template=lm.chat_template(job.apply_chat_template) if job.apply_chat_template else None,
            fewshot_as_multiturn=job.fewshot_as_multiturn,
        )
        return Evaluation(
            results=self._save(results),
            chat_template_sha256=self._tracker.general_config_tracker.chat_template_sha,
        )

    def _save(self, results: dict[str, Any]) -> Mapping[str, Any]:
        """Let lm-eval write its files, move its samples to their place, and return its results as it wrote them."""
        shutil.rmtree(self._inside, ignore_errors=True)
        samples = results.pop("samples")
        self._tracker.save_results_aggregated(results=results, samples=samples)
        for task, rows in samples.items():
            self._tracker.save_results_samples(task_name=task, samples=rows)
        # lm-eval logs that it could not write, and goes on.
        written = {path.name.partition("_")[0]: path for path in self._inside.glob("*.json")}
        if "results" not in written:
            raise OSError("lm-eval could not write its results; its log says why")
        for task in samples:
            written_samples = self._inside / f"samples_{task}_{self._tracker.date_id}.jsonl"
            written_samples.replace(self._folder / f"samples_{task}.jsonl")
        saved: Mapping[str, Any] = json.loads(written["results"].read_text(encoding="utf-8"))
        shutil.rmtree(self._inside)
        return saved


def _closed_form(metric: Callable[..., Any], bootstrap_iters: int) -> StandardError | None:  # noqa: ARG001 - lm-eval's
    """Return the standard error of a metric, as lm-eval's function of that name does, without a bootstrap."""
    if metric is metrics.perplexity:
        return lambda values: float(metrics.perplexity(values) * metrics.mean_stderr(values))
    known = {metrics.mean: metrics.mean_stderr, metrics.acc_all: metrics.acc_all_stderr}
    return known.get(metric)
