"""Damaged checkpoints are regressions at the default margin, and the undamaged ones pass.

With the real lm-eval, on all 2,500 stories, so that 1 percentage point can be told from none. The scales of the bundled
model are so alike that exchanging those of two Linears of one layer moves its accuracy by no more than about that; here
all scales of a layer are exchanged with another layer's, as by a wrong index.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from fp8cli.commands.compare import CompareReport, CompareRequest, EvaluationRequest, run
from fp8cli.commands.quantize import QuantizeRequest
from fp8cli.commands.quantize import run as quantize
from fp8cli.core.comparing.comparison import Contest
from fp8cli.errors import ExitCode
from tests.planting import STORIES, Tensors, change, quantize_stories
from tests.story_mixture import quantize_router, write_mixture

pytestmark = pytest.mark.slow

ITEMS = 2500
BATCH = 128


def multiply_one_scale(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.v_proj.weight_scale"] *= 4


def exchange_scales_of_layers(tensors: Tensors) -> None:
    first, other = "model.layers.0.", "model.layers.2."
    for name in [name for name in tensors if name.startswith(first) and name.endswith("_scale")]:
        twin = name.replace(first, other)
        tensors[name], tensors[twin] = tensors[twin], tensors[name]


def compare(base: Path, good: Path, place: Path, **damages: Callable[[Tensors], None]) -> CompareReport:
    """Compare a base with a good checkpoint and with damaged copies of that."""
    copies = [change(good, place / name, plant) for name, plant in damages.items()]
    evaluation = EvaluationRequest(
        tasks=("fp8_stories",), backend="hf", device="cpu", batch_size=BATCH, runs=place / "runs"
    )
    return run(CompareRequest(sides=tuple(map(str, (base, good, *copies))), evaluation=evaluation))


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> CompareReport:
    place = tmp_path_factory.mktemp("stories")
    good = quantize_stories(place / "good")
    return compare(STORIES, good, place, quadrupled=multiply_one_scale, exchanged=exchange_scales_of_layers)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> CompareReport:
    place = tmp_path_factory.mktemp("mixture")
    base = write_mixture(place / "mixture")
    good = quantize(QuantizeRequest(model=str(base), out=place / "good")).out
    return compare(base, good, place, rounded=quantize_router)


def contest(report: CompareReport, name: str) -> Contest:
    (found,) = (contest for contest in report.comparison.contests if name in (contest.other.model or ""))
    return found


def assert_regression(found: Contest, good: Contest) -> None:
    (task,) = found.tasks
    metric = task.metrics[0]
    assert (found.verdict, task.verdict, metric.verdict) == ("regression",) * 3
    assert (metric.metric, metric.items, metric.paired) == ("acc", ITEMS, True)
    assert metric.interval is not None
    assert metric.interval.high < 0
    assert metric.p_worse is not None
    assert metric.p_worse < 0.01
    assert metric.reason is not None
    assert metric.reason.startswith("worse by at least ")
    # What accuracy sees only in thousands of answers, two thousand distributions show a hundred times over.
    assert found.fidelity is not None
    assert good.fidelity is not None
    assert found.fidelity.exact
    assert found.fidelity.kl_mean > 50 * good.fidelity.kl_mean


def assert_pass(found: Contest) -> None:
    (task,) = found.tasks
    metric = task.metrics[0]
    assert (found.verdict, task.verdict, metric.verdict) == ("pass",) * 3
    assert (metric.metric, metric.items, metric.paired) == ("acc", ITEMS, True)
    assert task.flips is not None
    assert task.flips.lost + task.flips.gained > 0, "no flip at all: was it the same checkpoint?"


def test_the_undamaged_fp8_model_passes_at_the_default_margin(stories: CompareReport) -> None:
    assert_pass(contest(stories, "good"))


def test_one_scale_times_four_is_a_regression(stories: CompareReport) -> None:
    assert_regression(contest(stories, "quadrupled"), contest(stories, "good"))


def test_the_scales_of_two_layers_exchanged_are_a_regression(stories: CompareReport) -> None:
    assert_regression(contest(stories, "exchanged"), contest(stories, "good"))


def test_a_mixture_with_its_router_kept_passes(mixture: CompareReport) -> None:
    assert_pass(contest(mixture, "good"))


def test_a_mixture_with_its_router_quantized_is_a_regression(mixture: CompareReport) -> None:
    assert_regression(contest(mixture, "rounded"), contest(mixture, "good"))


def test_one_regression_among_the_contests_fails_the_gate(stories: CompareReport, mixture: CompareReport) -> None:
    for report in (stories, mixture):
        assert report.comparison.verdict == "regression"
        assert report.exit_code is ExitCode.NEGATIVE
