"""What a calibration tells whoever waits for it, as `calibrator.protocol` has it."""

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
class CalibrationBegins:
    """The model is loaded, and samples go through it."""

    samples: int
    layers: int
    """Parts that all samples go through one after another: the layers of the model, and what comes after them."""


@dataclass(frozen=True, kw_only=True)
class LayerDone:
    """All samples went through one more part."""

    number: int
    """From 1."""
    of: int


CalibrationEvent = TextsRead | ModelLoading | CalibrationBegins | LayerDone
"""What a caller is told."""


def calibration_event(fields: object) -> CalibrationEvent | None:
    """Return the event that an object of the calibrator's file is; None if it is none."""
    match fields:
        case {"event": "texts", "samples": int(samples), "tokens": int(tokens)}:
            return TextsRead(samples=samples, tokens=tokens)
        case {"event": "loading"}:
            return ModelLoading()
        case {"event": "begins", "samples": int(samples), "layers": int(layers)}:
            return CalibrationBegins(samples=samples, layers=layers)
        case {"event": "layer", "number": int(number), "of": int(of)}:
            return LayerDone(number=number, of=of)
        case _:
            return None
