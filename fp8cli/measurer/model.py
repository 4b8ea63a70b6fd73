"""The model of a measurement: loaded once, in its own dtype, on the device that it fits on, ready to be asked."""

import itertools
from typing import Any, Final

from fp8cli.measurer.budget_protocol import BudgetWork
from fp8cli.measurer.explore_protocol import ExploreWork
from fp8cli.measurer.protocol import MeasureJob, Work
from fp8cli.simulator.finding import refuse_unfit
from fp8cli.worker.failures import Failure
from fp8cli.worker.model_class import outline

ROOM: Final = 2.25
"""A GPU is chosen where this many times the weights are free: while a form is measured, the weights that it rounds lie
beside what they were, and what layers hand on wants room too."""
_COPIES_OF_BUDGET: Final = 1
_COPIES_OF_MOVED: Final = 3
"""Copies besides where modifiers prepare a choice within a budget: of the model for one set alone, and where scales are
moved, of the weights in 16 bits in both."""


def refuse_early(job: MeasureJob) -> None:
    """Raise Failure for a model whose Linears cannot be simulated, before it is loaded."""
    work = job.work
    weights = (
        work.weights if isinstance(work, ExploreWork) else itertools.chain(*(each.weights for each in work.groups))
    )
    refuse_unfit(outline(job.model), weights, cache=False)


def load(job: MeasureJob) -> Any:
    """Load the model of a job onto its device, for inference alone. Raises Failure where the reason is known."""
    import torch

    from fp8cli.calibrator.loading import load_model

    model = load_model(job.model, job.dtype, offload=None)
    size = sum(tensor.nbytes for tensor in model.parameters())
    device = choose_device(job.device, size, room=room_for(job.work))
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        message = f"the model's {size:,} bytes do not fit on `{device}`"
        raise Failure(kind="memory", message=message, hint="measure on the processor: --device cpu") from error
    return model.eval()


def room_for(work: Work) -> float:
    """Return how many times the weights are to be free on a GPU for some work."""
    if not isinstance(work, BudgetWork) or not work.scheme.modified:
        return ROOM
    return ROOM + (_COPIES_OF_MOVED if work.scheme.moves_channels else _COPIES_OF_BUDGET)


def choose_device(wanted: str, size: int, *, room: float = ROOM) -> Any:
    """Return the device for weights of `size` bytes, of which so many times are to be free on a GPU.

    Raises Failure for a GPU that is not there.
    """
    import torch

    if wanted.startswith("cuda"):
        _, _, number = wanted.partition(":")
        there = torch.cuda.device_count()
        if int(number or 0) >= there:
            message = f"`{wanted}` was asked for, and torch here sees {there} GPUs"
            raise Failure(kind="other", message=message, hint="fp8 doctor says why")
        return torch.device(wanted)
    if wanted == "auto" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if free > size * room:
            return torch.device("cuda")
    return torch.device("cpu")
