"""The values of all scales: read in a few large pieces, and each said to be a number that can scale, or not.

Scales are about 0.04 % of a checkpoint's bytes, and one bad one poisons a whole row, so they are read by default. A
scale must be a positive number: NaN and infinity are poison, zero wipes out what it scales, no quantizer writes a
negative one, and a subnormal one has lost its own digits.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, get_args

from fp8cli.core.findings import Finding
from fp8cli.core.folding import fold
from fp8cli.core.inspection.dialect import Dialect
from fp8cli.core.inspection.scale_names import kind_of
from fp8cli.core.inspection.scale_sweep import DECODABLE, Fault, Sweep, median, sweep
from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.core.inspection.tensor_faults import TENSOR_FAULTS
from fp8cli.core.inspection.verdicts import counted, not_checked, passed
from fp8cli.errors import Fp8Error, showable

_CHUNK_BYTES: Final = 32 * 2**20
"""Scales of one name and dtype that are judged in one sweep."""
MEDIAN_VALUES: Final = 1_000_000
_FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
_WORDS: Final[Mapping[Fault, str]] = {
    "scale.nan": "NaN",
    "scale.infinite": "infinite",
    "scale.zero": "zero",
    "scale.negative": "negative",
    "scale.subnormal": "subnormal",
}
_POISON: Final[frozenset[Fault]] = frozenset({"scale.nan", "scale.infinite"})
# bitsandbytes has zeros for rows of zeros, NVFP4 for blocks of zeros: there only poison is a fault.
_LENIENT: Final = frozenset({"scales", "absmax", "nested_absmax", "SCB"})
# U8 holds powers of two here, but codes of other kinds elsewhere (bitsandbytes' `absmax`).
_U8_SCALES: Final = frozenset({"weight_scale", "scales"})
_AGAIN: Final = "quantize again from the source: fp8 quantize SOURCE"
_CALIBRATE: Final = "calibrate again, with data that reaches every expert"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleStats:
    """The values of all scales of one name. Smallest, median and largest are of the finite positive ones.

    The median is that of all values up to MEDIAN_VALUES, else of about as many, taken evenly.
    """

    label: str
    """Such as `weight_scale`."""
    dtypes: tuple[str, ...]
    tensors: int
    values: int
    minimum: float | None
    """None where no value is finite and positive; so below."""
    median: float | None
    maximum: float | None
    bad: Mapping[str, int]
    """Check → values that fail it; checks that none fails are left out."""
    names: tuple[str, ...] = field(repr=False)
    """The tensors, in the order of `ranges`."""
    ranges: tuple[tuple[float, float] | None, ...] = field(repr=False)
    """Smallest and largest finite positive value of each tensor; None where it has none."""


def check_scales(survey: Survey, dialect: Dialect) -> tuple[tuple[ScaleStats, ...], tuple[Finding, ...]]:
    """Read every scale and judge it. Never raises for a damaged file: what cannot be read is "not checked"."""
    scales, unknown = _scales(survey, dialect)
    counts = Counter[str]()
    for tensor in scales:
        counts[dialect.labels[tensor.name]] += tensor.info.elements
    piles = {label: _Pile(label, -(-count // MEDIAN_VALUES)) for label, count in counts.items() if count}
    unread: list[str] = []
    reasons: dict[str, None] = {}
    for tensor, data, reason in _read(survey, scales):
        if len(data) < tensor.info.bytes:
            unread.append(tensor.name)
            reasons.setdefault(reason or "their file ends before they do")
        elif data:
            piles[dialect.labels[tensor.name]].add(tensor, data)
    stats: list[ScaleStats] = []
    findings: list[Finding] = []
    for label in sorted(piles):
        piles[label].finish()
        if not piles[label].sweeps:
            continue
        stats.append(piles[label].stats())
        findings += piles[label].findings()
    findings += _not_read(unread, reasons, unknown)
    if stats and not any(finding.status == "failed" for finding in findings):
        values, tensors = sum(each.values for each in stats), sum(each.tensors for each in stats)
        found = f"{counted(values, 'scale')} in {counted(tensors, 'tensor')} read: all finite and positive"
        findings.insert(0, passed("scale.values", found, count=tensors))
    return tuple(stats), tuple(findings)


def _scales(survey: Survey, dialect: Dialect) -> tuple[list[StoredTensor], list[StoredTensor]]:
    """The scales that can be read, in the order of their files, and those of unknown dtypes."""
    kinds = {"weight", "activation", "cache"}
    chosen = [(survey.tensors[name], label) for name, label in dialect.labels.items() if kind_of(label) in kinds]
    known: list[StoredTensor] = []
    unknown: list[StoredTensor] = []
    for tensor, label in chosen:
        dtype = tensor.info.dtype
        is_known = dtype in DECODABLE and (dtype != "U8" or label in _U8_SCALES)
        (known if is_known else unknown).append(tensor)
    return sorted(known, key=lambda tensor: (tensor.file, tensor.info.begin)), unknown


def _read(survey: Survey, scales: Sequence[StoredTensor]) -> Iterator[tuple[StoredTensor, bytes, str | None]]:
    """Yield every scale with its bytes, fewer than it should have where they cannot be read, and then the reason."""
    ranges = [(tensor.file, tensor.info.begin, tensor.info.end) for tensor in scales]
    done = 0
    try:
        for tensor, data in zip(scales, survey.reader.read_many(ranges), strict=True):
            yield tensor, data, None
            done += 1
    except Fp8Error as problem:
        # The other files may be sound: the rest is asked for again without this one.
        broken = scales[done].file
        yield from ((tensor, b"", problem.message) for tensor in scales[done:] if tensor.file == broken)
        yield from _read(survey, [tensor for tensor in scales[done:] if tensor.file != broken])


class _Pile:
    """The scales of one name, swept whenever there are enough of them."""

    def __init__(self, label: str, stride: int) -> None:
        self.label = label
        self.stride = stride
        self.waiting: dict[str, list[tuple[StoredTensor, bytes]]] = {}
        self.bytes = 0
        self.dtypes: set[str] = set()
        self.swept: list[tuple[StoredTensor, ...]] = []
        self.sweeps: list[Sweep] = []

    def add(self, tensor: StoredTensor, data: bytes) -> None:
        """Take in one scale."""
        self.waiting.setdefault(tensor.info.dtype, []).append((tensor, data))
        self.bytes += len(data)
        if self.bytes >= _CHUNK_BYTES:
            self.finish()

    def finish(self) -> None:
        """Sweep what is waiting."""
        for dtype, pairs in self.waiting.items():
            self.dtypes.add(dtype)
            self.swept.append(tuple(tensor for tensor, _ in pairs))
            sizes = [tensor.info.elements for tensor, _ in pairs]
            self.sweeps.append(sweep(dtype, b"".join(data for _, data in pairs), sizes, stride=self.stride))
        self.waiting, self.bytes = {}, 0

    def stats(self) -> ScaleStats:
        """Add everything up."""
        tensors = [tensor for swept in self.swept for tensor in swept]
        lows = [low for swept in self.sweeps for low in swept.minima.tolist()]
        highs = [high for swept in self.sweeps for high in swept.maxima.tolist()]
        smallest = min(lows)
        bad = {
            fault: sum(int(swept.bad[fault].sum()) for swept in self.sweeps if fault in swept.bad) for fault in _FAULTS
        }
        return ScaleStats(
            label=self.label,
            dtypes=tuple(sorted(self.dtypes)),
            tensors=len(tensors),
            values=sum(tensor.info.elements for tensor in tensors),
            minimum=smallest if math.isfinite(smallest) else None,
            median=median([swept.sample for swept in self.sweeps]),
            maximum=max(highs) or None,
            bad={fault: count for fault, count in bad.items() if count},
            names=tuple(tensor.name for tensor in tensors),
            ranges=tuple((low, high) if high else None for low, high in zip(lows, highs, strict=True)),
        )

    def findings(self) -> Iterator[Finding]:
        """One finding for each fault and each pattern of names."""
        for fault in _FAULTS if self.label not in _LENIENT else sorted(_POISON):
            found = {
                swept[number].name: (swept[number], int(each.bad[fault][number]), place)
                for swept, each in zip(self.swept, self.sweeps, strict=True)
                for number, place in each.first.get(fault, {}).items()
                if fault in _POISON or swept[number].info.dtype != "F8_E4M3"
            }
            for folded in fold(found):
                yield self._finding(fault, folded.pattern, [found[name] for name in folded.names])

    def _finding(self, fault: Fault, pattern: str, members: Sequence[tuple[StoredTensor, int, int]]) -> Finding:
        status, consequence = TENSOR_FAULTS[fault]
        first, _, place = members[0]
        bad, values = sum(count for _, count, _ in members), sum(tensor.info.elements for tensor, _, _ in members)
        where = f"the first at {_index(place, first)}{f' of `{first.name}`' if len(members) > 1 else ''}"
        is_are = "is" if bad == 1 else "are"
        return Finding(
            check=fault,
            status=status,
            subject=pattern,
            found=showable(f"{bad:,} of {counted(values, 'value')} {is_are} {_WORDS[fault]}, {where}"),
            consequence=consequence,
            remedy=_AGAIN if kind_of(self.label) == "weight" else _CALIBRATE,
            count=len(members),
        )


def _index(place: int, tensor: StoredTensor) -> str:
    """Place in the flattened tensor as one index for each dimension."""
    index: list[int] = []
    for size in reversed(tensor.info.shape):
        place, rest = divmod(place, size)
        index.append(rest)
    return str(index[::-1])


def _not_read(unread: Sequence[str], reasons: Iterable[str], unknown: Sequence[StoredTensor]) -> Iterator[Finding]:
    if unread:
        found = f"{counted(len(unread), 'scale tensor')} cannot be read: {'; '.join(reasons)}"
        yield not_checked("scale.values", found, subject=unread[0])
    for dtype in sorted({tensor.info.dtype for tensor in unknown}):
        names = [tensor.name for tensor in unknown if tensor.info.dtype == dtype]
        found = f"{counted(len(names), 'scale tensor')} in {dtype}, which this tool does not read as scales"
        yield not_checked("scale.values", found, subject=names[0])
