"""What an exploration is to measure, as the job of the measurer says it, and what it finds.

The result has one entry for each form, in their order, under `forms`:

    name        of the form
    failure     null, or {message, hint}: why it could not be measured; nothing else is there then
    kl, kl_se, same_top, per_sample     see `reference.Divergence`
    noise       {module of the model: [sum of squares of its weight, of its rounding error]}; empty where weights stay
                as they are, or have taken in the scale of channels
    answers     folder of what it answered to tasks: lm-eval's `results.json`, and `samples_TASK.jsonl` for each; null
                where none is asked
    seconds

and beside it `lengths`, the positions of each measured text, `calibrated_on`, how many texts gave static scales, and
`base_answers`, the folder of what the model as it is answered.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from fp8cli.simulator.scheme import Rounding, SimulatedScheme
from fp8cli.worker.protocol import Job

RESULTS: Final = "results.json"


@dataclass(frozen=True, kw_only=True)
class ExploreWork:
    """Forms of one model that are to be measured one after another."""

    schemes: tuple[SimulatedScheme, ...]
    weights: tuple[str, ...]
    """Tensors of the checkpoint that a scheme of weights rounds, each with the input of its Linear."""
    evaluation: Job | None = None
    """Tasks that the model as it is and every form of it are to be asked; it names the checkpoint, which is in memory
    already."""
    kind: Literal["explore"] = "explore"


def read_explore_work(fields: Mapping[str, Any]) -> ExploreWork:
    """Return the work of a job that was read as JSON."""
    asked = fields["evaluation"]
    if asked is not None:
        asked = {**asked, "tasks": tuple(asked["tasks"]), "include_paths": tuple(asked["include_paths"])}
    return ExploreWork(
        schemes=tuple(map(read_scheme, fields["schemes"])),
        weights=tuple(fields["weights"]),
        evaluation=None if asked is None else Job(**asked),
    )


def read_scheme(fields: Mapping[str, Any]) -> SimulatedScheme:
    """Return a scheme that `dataclasses.asdict` and JSON have gone over."""
    roundings = {name: fields[name] and Rounding(**fields[name]) for name in ("weights", "activations")}
    return SimulatedScheme(**{**fields, **roundings})


def samples_file(task: str) -> str:
    """Name the file of what was answered to a task."""
    return f"samples_{task}.jsonl"
