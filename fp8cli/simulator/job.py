"""What a process is told that simulates a scheme in the checkpoint it loads, as files of jobs hold it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fp8cli.samples.request import SampleRequest


@dataclass(frozen=True, kw_only=True)
class SimulationJob:
    """A simulation, every setting explicit."""

    scheme: str
    """Of which `scheme.scheme_named` knows."""
    weights: tuple[str, ...]
    """Tensors of the checkpoint that are rounded, each with the input of its Linear; of experts, one for each."""
    dtype: str
    """torch's name of the type that weights and their scales are computed in."""
    samples: SampleRequest | None
    """None: the scheme needs no data."""


def read_simulation(fields: Mapping[str, Any] | None) -> SimulationJob | None:
    """Return the simulation of a job that was read as JSON; None for a job without one."""
    if fields is None:
        return None
    samples = None if fields["samples"] is None else SampleRequest(**fields["samples"])
    return SimulationJob(**{**fields, "weights": tuple(fields["weights"]), "samples": samples})
