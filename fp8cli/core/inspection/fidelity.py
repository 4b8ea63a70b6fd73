"""`--against BASE`: what quantizing did to every weight, measured against the checkpoint it was made from.

For a weight W and what its codes decode to, Q = codes × scale:

    SQNR = 10 · log₁₀( Σ W² / Σ (W − Q)² )      in dB

E4M3 keeps three bits of mantissa, so whatever the distribution of W, a sound scale gives about 31.5 dB (measured
31.4 to 31.7 over schemes and models). Far less means another weight, another scale, or values that were cut off.
Both checkpoints are streamed; memory does not depend on their size.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

from fp8cli.core.inspection.accounting import CASTABLE, Entry, Fate, account
from fp8cli.core.inspection.dialect import Dialect, QuantizedWeight
from fp8cli.core.inspection.reading import (
    BytesRead,
    Notify,
    ReadingBegins,
    as_matrix,
    read_rows,
    read_tensor,
    row_tiles,
    run_all,
)
from fp8cli.core.inspection.scale_sweep import DECODABLE, decode
from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.core.kernel import DTYPES, Distance, Kernel


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFidelity:
    """How one quantized weight compares with its source."""

    name: str
    sqnr_db: float
    """Infinite where nothing differs."""
    largest_error: float
    """Largest magnitude of W − Q, in the units of the weight."""
    at: tuple[int, int]
    """Row and column of that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What was found out about one tensor."""

    entry: Entry
    same: bool | None = None
    """Whether the values are the source's; None for what is quantized, or was not compared."""
    distance: Distance | None = None
    unknown: str | None = None
    """Why the two could not be compared."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """A checkpoint against its source."""

    base: str
    outcomes: tuple[Outcome, ...]
    """One for every tensor of both checkpoints."""
    weights: tuple[WeightFidelity, ...]
    """The quantized weights that were compared, worst first."""

    @property
    def fates(self) -> Mapping[Fate, int]:
        """How many tensors met each fate."""
        return Counter(outcome.entry.fate for outcome in self.outcomes)

    @property
    def bytes_read(self) -> int:
        """Bytes of both checkpoints that were compared."""
        compared = (o.entry for o in self.outcomes if o.same is not None or o.distance is not None)
        return sum(part.info.bytes for entry in compared for part in (entry.here, entry.base) if part is not None)

    @property
    def sqnr_db(self) -> float | None:
        """Signal to noise of all compared weights together; None if there was none."""
        distances = [outcome.distance for outcome in self.outcomes if outcome.distance is not None]
        if not distances:
            return None
        signal, noise = (math.fsum(getattr(each, part) for each in distances) for part in ("signal", "noise"))
        return _decibels(signal, noise)


def measure_fidelity(
    survey: Survey, dialect: Dialect, base: Survey, kernel: Kernel, *, workers: int, notify: Notify
) -> Fidelity:
    """Compare a checkpoint with its source, tensor by tensor. Raises BadInput if a file cannot be read to its end."""
    entries = account(survey, dialect, base)
    jobs = [_Job(entry, survey, base, kernel, notify) for entry in entries]
    both = ((entry.here, entry.base) for entry in entries if entry.fate in {"copied", "cast", "quantized"})
    size = sum(part.info.bytes for pair in both for part in pair if part is not None)
    notify(ReadingBegins(what="comparing with the source", bytes=size))
    outcomes = tuple(run_all(jobs, workers=workers))
    measured = (_weight(outcome.entry.name, outcome.distance) for outcome in outcomes if outcome.distance is not None)
    weights = tuple(sorted(measured, key=lambda weight: (weight.sqnr_db, weight.name)))
    return Fidelity(base=base.label, outcomes=outcomes, weights=weights)


@dataclass(frozen=True)
class _Job:
    """Compares the two forms of one tensor."""

    entry: Entry
    survey: Survey
    base: Survey
    kernel: Kernel
    notify: Notify

    def __call__(self) -> Outcome:
        here, base = self.entry.here, self.entry.base
        if here is None or base is None:
            return Outcome(entry=self.entry)
        if not self.survey.holds(here) or not self.base.holds(base):
            return Outcome(entry=self.entry, unknown="a file ends before the tensor does")
        match self.entry.fate:
            case "copied":
                return Outcome(entry=self.entry, same=self._tiles_are(here, base, lambda one, other: one == other))
            case "cast":
                cast = _caster(base.info.dtype, here.info.dtype)
                return Outcome(entry=self.entry, same=self._tiles_are(here, base, lambda a, b: a == cast(b)))
            case "quantized" if self.entry.weight is not None:
                return self._quantized(here, base, self.entry.weight)
            case _:
                return Outcome(entry=self.entry)

    def _tiles_are(self, here: StoredTensor, base: StoredTensor, equal: Callable[[bytes, bytes], bool]) -> bool:
        for rows in row_tiles(base):
            mine, other = read_rows(self.survey.reader, here, rows), read_rows(self.base.reader, base, rows)
            self.notify(BytesRead(name=here.name, bytes=len(mine) + len(other)))
            if not equal(mine, other):
                return False
        return True

    def _quantized(self, here: StoredTensor, base: StoredTensor, weight: QuantizedWeight) -> Outcome:
        reason = _why_not_comparable(here, base, weight, self.survey)
        if reason is not None:
            return Outcome(entry=self.entry, unknown=reason)
        rows, columns = as_matrix(here.info.shape)
        high, wide = {
            "tensor": (rows, columns),
            "channel": (1, columns),
        }.get(weight.granularity or "", weight.block or (rows, columns))
        scales = _float32(self.survey, self.survey.tensors[weight.scale or ""])
        distance = Distance(0.0, 0.0, 0.0, 0, 0)
        block = (max(high, 1), max(wide, 1))
        for tile in row_tiles(base):
            codes, source = read_rows(self.survey.reader, here, tile), read_rows(self.base.reader, base, tile)
            self.kernel.compare(base.info.dtype, tile, columns, source, codes, scales, block, distance)
            self.notify(BytesRead(name=here.name, bytes=len(codes) + len(source)))
        return Outcome(entry=self.entry, distance=distance)


def _why_not_comparable(here: StoredTensor, base: StoredTensor, weight: QuantizedWeight, survey: Survey) -> str | None:
    if base.info.dtype not in DTYPES:
        return f"the source holds it in {base.info.dtype}, which is no unquantized dtype"
    if here.info.dtype != "F8_E4M3":
        return f"it is {here.info.dtype}, which this tool does not decode"
    if weight.scale is None or weight.scale not in survey.tensors:
        return "it has no scale"
    if not survey.holds(survey.tensors[weight.scale]):
        return "a file ends before its scale does"
    if (dtype := survey.tensors[weight.scale].info.dtype) not in DECODABLE:
        return f"its scale is {dtype}, which is no dtype of scales"
    if weight.granularity is None or len(here.info.shape) != 2:
        return "the shape of its scale fits no scheme"
    return None


def _float32(survey: Survey, scale: StoredTensor) -> bytes:
    """Return the values of a scale tensor as float32."""
    values = decode(scale.info.dtype, read_tensor(survey.reader, scale))
    return bytes(values.astype("<f4").tobytes())


def _caster(source: str, target: str) -> Callable[[bytes], bytes]:
    """Return what turns bytes of one floating dtype into another as torch does, which knows them all."""
    torch = import_module("torch")
    one, other = getattr(torch, CASTABLE[source]), getattr(torch, CASTABLE[target])

    def cast(data: bytes) -> bytes:
        if not data:
            return b""
        return bytes(torch.frombuffer(bytearray(data), dtype=one).to(other).view(torch.uint8).numpy().tobytes())

    return cast


def _weight(name: str, distance: Distance) -> WeightFidelity:
    return WeightFidelity(
        name=name,
        sqnr_db=_decibels(distance.signal, distance.noise),
        largest_error=distance.largest,
        at=(distance.row, distance.column),
    )


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf
