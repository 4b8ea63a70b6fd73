"""What the measurer found of each form, read from its result; see `measurer.explore_protocol`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fp8cli.errors import CannotRun
from fp8cli.formats.typed_json import from_json


@dataclass(frozen=True, kw_only=True)
class Why:
    """Why a form could not be measured."""

    message: str
    hint: str | None


@dataclass(frozen=True, kw_only=True)
class MeasuredForm:
    """One form; only the name and the reason where it could not be measured."""

    name: str
    failure: Why | None
    kl: float | None = None
    kl_se: float | None = None
    same_top: float | None = None
    per_sample: tuple[float, ...] = ()
    noise: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By module: sums of squares of its weight, and of its rounding error."""
    answers: str | None = None
    """Folder of what it answered to tasks; None where none was asked."""
    seconds: float | None = None

    @property
    def sqnr_db(self) -> float | None:
        """Signal to noise of all rounded weights together; None where none is."""
        if not self.noise:
            return None
        return decibels(*(math.fsum(each[part] for each in self.noise.values()) for part in (0, 1)))

    def worst(self) -> tuple[str, float] | None:
        """Return the module that rounding hurts most, and its signal to noise in dB."""
        ratios = ((decibels(*sums), name) for name, sums in self.noise.items())
        found = min(ratios, default=None)
        return None if found is None else (found[1], found[0])


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All forms, and how they were measured."""

    forms: tuple[MeasuredForm, ...]
    lengths: tuple[int, ...]
    """Positions of each text that forms were measured on."""
    calibrated_on: int
    base_answers: str | None
    samples: int
    tokens: int
    max_seq_length: int
    token_ids_sha256: str
    device: str
    versions: Mapping[str, str | None]
    seconds: float
    peak_memory_bytes: int
    peak_gpu_memory_bytes: int | None


def read_measured(result: Mapping[str, object], log: Path) -> Measured:
    """Read the result of an exploration. Raises CannotRun for what this version does not write."""
    try:
        return from_json(Measured, result)
    except ValueError as problem:
        message = f"the measurer's result is not what this version of fp8 writes: {problem}"
        raise CannotRun(message, hint=f"the whole log: {log}") from problem


def decibels(signal: float, noise: float) -> float:
    """Return 10 · log₁₀(signal / noise): infinite without noise, minus infinite without signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
