"""What a measurement tells whoever waits for it, as `measurer.protocol` has it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TextsRead:
    """The data is there and fits; the model comes next."""

    samples: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class ModelLoading:
    """The checkpoint is being loaded."""


@dataclass(frozen=True, kw_only=True)
class ModelLoaded:
    """The model is on its device."""

    device: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ReferenceProgress:
    """The model as it is has been asked about so many positions."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Modifying:
    """llm-compressor has prepared so many parts of the model."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class StepBegins:
    """A part of the work begins."""

    number: int
    """From 1."""
    of: int
    name: str


MeasuringEvent = TextsRead | ModelLoading | ModelLoaded | ReferenceProgress | Modifying | StepBegins
"""What a caller is told."""


def measuring_event(fields: object) -> MeasuringEvent | None:
    """Return the event that an object of the measurer's file is; None if it is none."""
    match fields:
        case {"event": "texts", "samples": int(samples), "tokens": int(tokens)}:
            return TextsRead(samples=samples, tokens=tokens)
        case {"event": "loading"}:
            return ModelLoading()
        case {"event": "loaded", "device": str(device), "seconds": int() | float() as seconds}:
            return ModelLoaded(device=device, seconds=seconds)
        case {"event": "reference", "done": int(done), "total": int(total)}:
            return ReferenceProgress(done=done, total=total)
        case {"event": "modifying", "done": int(done), "total": int(total)}:
            return Modifying(done=done, total=total)
        case {"event": "step", "number": int(number), "of": int(of), "name": str(name)}:
            return StepBegins(number=number, of=of, name=name)
        case _:
            return None
