"""`fp8 explore`: a model in, all forms of FP8 that it could take, measured, and the one to take. Nothing is written."""

from collections.abc import Callable

from fp8cli.core.exploring.evaluation_job import TaskOptions
from fp8cli.core.exploring.exploration import explore
from fp8cli.core.exploring.report import ExploreReport
from fp8cli.core.exploring.request import ExploreRequest
from fp8cli.core.measuring.measuring_events import MeasuringEvent
from fp8cli.core.quantizing.modifiers import choose_modifiers
from fp8cli.core.simulating.modules import TARGETS_DEFAULT, ModuleOptions

__all__ = [
    "TARGETS_DEFAULT",
    "ExploreReport",
    "ExploreRequest",
    "ModuleOptions",
    "TaskOptions",
    "choose_modifiers",
    "run",
]


def run(request: ExploreRequest, notify: Callable[[MeasuringEvent], None] = lambda _: None) -> ExploreReport:
    """Measure the forms of a model. Raises Fp8Error with what is wrong."""
    return explore(request, notify)
