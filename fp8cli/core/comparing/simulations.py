"""Sides of a comparison that are the base as it would be under a scheme: of which checkpoint, where, with what data.

The options of modules are for the sides `sim:SCHEME`, all of them; a label that was simulated keeps its own.
"""

from collections.abc import Sequence
from dataclasses import replace

from fp8cli.core.calibrating.ordering import CalibrationOptions
from fp8cli.core.comparing.sides import NamedSide
from fp8cli.core.evaluating.request import EvaluationRequest
from fp8cli.core.evaluating.simulation import modules_of, options_of
from fp8cli.core.simulating.modules import ModuleOptions
from fp8cli.core.simulating.words import simulated_scheme
from fp8cli.errors import UsageError


def on_base(named: Sequence[NamedSide]) -> tuple[NamedSide, ...]:
    """Return the sides, each simulation with the checkpoint of the base.

    Raises UsageError where the base is a simulation itself, has no checkpoint that is here, or was run elsewhere.
    """
    base, *others = named
    if base.kind == "simulation":
        message = f"`{base.name}` is the base as it would be, so it cannot be the base"
        raise UsageError(message, hint=f"name the checkpoint first: fp8 compare MODEL {base.name}")
    return (base, *(_of(base, side) if side.kind == "simulation" else side for side in others))


def for_simulations(request: EvaluationRequest, named: Sequence[NamedSide]) -> EvaluationRequest:
    """Return the request for a base that simulations are set beside: evaluated where they can be."""
    simulates = any(side.kind == "simulation" for side in named)
    return replace(request, backend="hf") if simulates and request.backend == "auto" else request


def check_data(named: Sequence[NamedSide], request: EvaluationRequest) -> None:
    """Refuse data that no side needs. Raises UsageError."""
    if request.calibration != CalibrationOptions() and not any(_needs_data(side) for side in named):
        message = "no side takes its scales from data, so the options of calibration would have no effect"
        raise UsageError(
            message, hint="leave them out, or compare with a side that does, such as sim:fp8 or sim:mxfp8+kv"
        )


def check_modules(named: Sequence[NamedSide], request: EvaluationRequest) -> None:
    """Refuse options of modules that no side needs. Raises UsageError."""
    given = request.modules.given
    if given and not any(side.kind == "simulation" for side in named):
        message = f"{' and '.join(given)} would have no effect: no side is to be simulated"
        raise UsageError(message, hint="leave it out, or compare with one, such as sim:fp8_dynamic")


def modules_for(side: NamedSide, request: EvaluationRequest) -> ModuleOptions:
    """Return what is rounded in the evaluation of a side: as the user says, or as it was before."""
    if side.kind == "simulation":
        return request.modules
    return modules_of(None if side.newest_record is None else side.newest_record.simulated)


def data_of(side: NamedSide, request: EvaluationRequest) -> CalibrationOptions:
    """Return the options of data for the evaluation of a side: the user's, else those it was evaluated with before."""
    if not _needs_data(side):
        return CalibrationOptions()
    if request.calibration != CalibrationOptions() or side.newest_record is None:
        return request.calibration
    return options_of(side.newest_record.simulated)


def _needs_data(side: NamedSide) -> bool:
    return side.simulate is not None and simulated_scheme(side.simulate).needs_data


def _of(base: NamedSide, side: NamedSide) -> NamedSide:
    if base.checkpoint is None:
        message = f"`{side.name}` is `{base.name}` as it would be, and the checkpoint of `{base.name}` is not here"
        raise UsageError(message, hint="give the base as a checkpoint, or as a label that fp8 eval made")
    record = base.newest_record
    if record is not None and record.settings.backend != "hf":
        message = f"`{base.name}` was run on {record.settings.backend}, and `{side.name}` can only be on transformers"
        hint = f"evaluate the base there: fp8 compare {base.checkpoint} {side.name} --backend hf --tasks NAMES"
        raise UsageError(message, hint=hint)
    return replace(side, checkpoint=base.checkpoint)
