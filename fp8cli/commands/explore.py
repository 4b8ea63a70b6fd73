"""`fp8 explore`: a model in, all forms of FP8 that it could take, measured, and the one to take. Nothing is written."""

from collections.abc import Callable

from fp8cli.core.exploring.evaluation_job import TaskOptions
from fp8cli.core.exploring.exploration import ExploreRequest, explore
from fp8cli.core.exploring.report import ExploreReport
from fp8cli.core.measuring.measuring_events import MeasuringEvent

__all__ = ["ExploreReport", "ExploreRequest", "TaskOptions", "run"]


def run(request: ExploreRequest, notify: Callable[[MeasuringEvent], None] = lambda _: None) -> ExploreReport:
    """Measure the forms of a model. Raises Fp8Error with what is wrong."""
    return explore(request, notify)
