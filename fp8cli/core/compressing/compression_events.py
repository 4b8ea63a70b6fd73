"""What a compression tells whoever waits for it, as `calibrator.compressing_protocol` has it."""

from dataclasses import dataclass

from fp8cli.core.calibrating.calibration_events import CalibrationEvent, calibration_event


@dataclass(frozen=True, kw_only=True)
class ResultSaving:
    """The model is done and goes to the disk."""


CompressionEvent = CalibrationEvent | ResultSaving
"""What a caller is told."""


def compression_event(fields: object) -> CompressionEvent | None:
    """Return the event that an object of the compressor's file is; None if it is none."""
    match fields:
        case {"event": "saving"}:
            return ResultSaving()
        case _:
            return calibration_event(fields)
