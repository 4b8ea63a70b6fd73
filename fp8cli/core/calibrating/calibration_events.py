"""What a calibration tells whoever waits for it, read from the file that the calibrator appends to.

A line that is no event of `calibrator.protocol` says nothing: it may be torn, or of a newer version. What matters in
the end is the result.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from fp8cli.worker.protocol import FailureKind

_KINDS: Final[tuple[FailureKind, ...]] = get_args(FailureKind)


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


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The calibrator's last word, when all went well."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The calibrator's last word, when it knows what went wrong."""

    kind: FailureKind
    message: str
    hint: str | None


class EventFile:
    """A file of events that grows."""

    def __init__(self, path: Path) -> None:
        """Begin before the first event. The file need not exist yet."""
        self._path = path
        self.heard_bytes = 0

    def read(self) -> tuple[CalibrationEvent | Finished | Failed, ...]:
        """Return the events since the last call. A line without its end stays for the next one."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self.heard_bytes)
                news = stream.read()
        except FileNotFoundError:
            return ()
        whole = news[: news.rfind(b"\n") + 1]
        self.heard_bytes += len(whole)
        return tuple(event for line in whole.splitlines() if (event := _parse(line)) is not None)


def _parse(line: bytes) -> CalibrationEvent | Finished | Failed | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match fields:
        case {"event": "texts", "samples": int(samples), "tokens": int(tokens)}:
            return TextsRead(samples=samples, tokens=tokens)
        case {"event": "loading"}:
            return ModelLoading()
        case {"event": "begins", "samples": int(samples), "layers": int(layers)}:
            return CalibrationBegins(samples=samples, layers=layers)
        case {"event": "layer", "number": int(number), "of": int(of)}:
            return LayerDone(number=number, of=of)
        case {"event": "finished"}:
            return Finished()
        case {"event": "failed", "message": str(message), **rest}:
            kind, hint = rest.get("kind"), rest.get("hint")
            sort: FailureKind = next((each for each in _KINDS if each == kind), "other")
            return Failed(kind=sort, message=message, hint=hint if isinstance(hint, str) else None)
        case _:
            return None
