"""`--verify`: every weight read once, for NaN, infinities, saturated codes and rows of zeros.

What headers and scales cannot show. The compiled kernel looks through 10 GB a second and core, so the disk decides
how long it takes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fp8cli.core.findings import Finding
from fp8cli.core.folding import fold
from fp8cli.core.inspection.dialect import Dialect
from fp8cli.core.inspection.reading import BytesRead, Notify, ReadingBegins, as_matrix, read_rows, row_tiles, run_all
from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.core.kernel import SCANNED, Kernel
from fp8cli.formats.safetensors import DTYPES

SATURATED_SHARE: Final = 0.05
"""A scale of amax / 448 sends few codes of a row to ±448; from this share on it is worth a warning."""

_EXACT: Final = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
"""Whole numbers have no NaN, so there is nothing to look for."""

_NAN: Final = "every output that this weight takes part in is NaN"
_AGAIN: Final = "quantize again from the source, or fetch this checkpoint again; --against BASE shows what differs"


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightCensus:
    """What was counted in one tensor."""

    name: str
    dtype: str
    elements: int
    rows: int
    zero_rows: int
    nan: int
    infinite: int
    """Infinities; always 0 for E4M3."""
    saturated: int
    """E4M3 codes of ±448; 0 for other dtypes."""
    first_bad: tuple[int, int] | None
    """Row and column of the first NaN or infinity; dimensions before the last count as rows."""


@dataclass(frozen=True, kw_only=True)
class WeightScan:
    """What came of reading every weight."""

    bytes_read: int
    weights: tuple[WeightCensus, ...]
    findings: tuple[Finding, ...]


def scan_weights(survey: Survey, dialect: Dialect, kernel: Kernel, *, workers: int, notify: Notify) -> WeightScan:
    """Read every tensor of a checkpoint once, on `workers` threads of about 2 MB each.

    Raises BadInput if a file cannot be read to its end.
    """
    stored = [tensor for name, tensor in survey.tensors.items() if name not in dialect.labels]
    weights = [tensor for tensor in stored if survey.holds(tensor)]
    scanned = [tensor for tensor in weights if tensor.info.dtype in SCANNED]
    jobs = [_Scan(survey, tensor, kernel, notify) for tensor in scanned]
    notify(ReadingBegins(what="verifying weights", bytes=sum(tensor.info.bytes for tensor in scanned)))
    counted = tuple(run_all(jobs, workers=workers))
    quantized = {weight.name for weight in dialect.weights}
    unknown = [t for t in weights if t.info.dtype not in SCANNED and t.info.dtype not in _EXACT]
    return WeightScan(
        bytes_read=sum(tensor.info.bytes for tensor in scanned),
        weights=counted,
        findings=(
            *_judge(counted, quantized),
            *_not_scanned(unknown),
            *_cut_off([tensor for tensor in stored if not survey.holds(tensor)]),
        ),
    )


@dataclass(frozen=True)
class _Scan:
    """The job of counting one tensor."""

    survey: Survey
    tensor: StoredTensor
    kernel: Kernel
    notify: Notify

    def __call__(self) -> WeightCensus:
        info = self.tensor.info
        rows, columns = as_matrix(info.shape)
        nan = special = zero_rows = 0
        first: tuple[int, int] | None = None
        for tile in row_tiles(self.tensor):
            data = read_rows(self.survey.reader, self.tensor, tile)
            census = self.kernel.scan(info.dtype, (len(tile), columns), data)
            nan, special, zero_rows = nan + census.nan, special + census.infinite, zero_rows + census.zero_rows
            if first is None and census.first_row >= 0:
                first = (tile.start + census.first_row, census.first_column)
            self.notify(BytesRead(name=self.tensor.name, bytes=len(data)))
        is_fp8 = info.dtype == "F8_E4M3"
        return WeightCensus(
            name=self.tensor.name,
            dtype=f"torch.{DTYPES[info.dtype].torch_name}",
            elements=info.elements,
            rows=rows,
            zero_rows=zero_rows,
            nan=nan,
            infinite=0 if is_fp8 else special,
            saturated=special if is_fp8 else 0,
            first_bad=first,
        )


def _judge(counted: Sequence[WeightCensus], quantized: set[str]) -> Iterable[Finding]:
    bad = [census for census in counted if census.first_bad is not None]
    for census in bad:
        row, column = census.first_bad or (0, 0)
        what = f"{census.nan:,} NaN" if census.nan else f"{census.infinite:,} infinities"
        if census.nan and census.infinite:
            what += f" and {census.infinite:,} infinities"
        yield Finding(
            check="weight.finite",
            status="failed",
            subject=census.name,
            found=f"{what} among {census.elements:,} values, the first at row {row}, column {column}",
            consequence=_NAN,
            remedy=_AGAIN,
        )
    if not bad and counted:
        found = f"{sum(census.elements for census in counted):,} values read: no NaN, no infinity"
        yield Finding(check="weight.finite", status="passed", subject=None, found=found, count=len(counted))
    fp8 = [census for census in counted if census.name in quantized and census.dtype == "torch.float8_e4m3fn"]
    if not fp8:
        return
    yield from _saturated(fp8)
    yield from _empty_rows(fp8)


def _saturated(fp8: Sequence[WeightCensus]) -> Iterable[Finding]:
    codes, most = sum(census.elements for census in fp8), sum(census.saturated for census in fp8)
    clipped = [census for census in fp8 if census.saturated > SATURATED_SHARE * census.elements]
    for pattern, members in _folded(clipped):
        share = max(census.saturated / census.elements for census in members)
        yield Finding(
            check="weight.saturated",
            status="warning",
            subject=pattern,
            found=f"{share:.1%} of the codes are ±448, the largest value of E4M3".replace("%", " %", 1),
            consequence="where the scale is too small, larger values were cut off",
            remedy="measure it: fp8 inspect CKPT --against BASE",
            count=len(members),
        )
    if not clipped:
        found = f"{most:,} of {codes:,} codes are ±448, as a scale of amax / 448 makes them"
        yield Finding(check="weight.saturated", status="passed", subject=None, found=found, count=len(fp8))


def _empty_rows(fp8: Sequence[WeightCensus]) -> Iterable[Finding]:
    empty = [census for census in fp8 if census.zero_rows]
    for pattern, members in _folded(empty):
        zero, rows = sum(census.zero_rows for census in members), sum(census.rows for census in members)
        yield Finding(
            check="weight.zero_rows",
            status="warning",
            subject=pattern,
            found=f"{zero:,} of {rows:,} rows hold nothing but zeros",
            consequence="their outputs are zero; right if they are zero in the source, a lost scale if not",
            remedy="compare with the source: fp8 inspect CKPT --against BASE",
            count=len(members),
        )
    if not empty:
        found = f"none of {sum(census.rows for census in fp8):,} quantized rows is all zeros"
        yield Finding(check="weight.zero_rows", status="passed", subject=None, found=found, count=len(fp8))


def _folded(some: Sequence[WeightCensus]) -> Iterable[tuple[str, list[WeightCensus]]]:
    """Weights alike in all but the numbers of their names, under one pattern."""
    by_name = {census.name: census for census in some}
    return ((folded.pattern, [by_name[name] for name in folded.names]) for folded in fold(by_name))


def _not_scanned(unknown: Sequence[StoredTensor]) -> Iterable[Finding]:
    for dtype in sorted({tensor.info.dtype for tensor in unknown}):
        names = [tensor.name for tensor in unknown if tensor.info.dtype == dtype]
        found = f"{len(names):,} tensors are {dtype}, whose values this tool does not read"
        yield Finding(check="weight.finite", status="not checked", subject=names[0], found=found, count=len(names))


def _cut_off(tensors: Sequence[StoredTensor]) -> Iterable[Finding]:
    for folded in fold(tensor.name for tensor in tensors):
        found = "its file ends before it does, so its values were not read"
        yield Finding(
            check="weight.finite", status="not checked", subject=folded.pattern, found=found, count=len(folded.names)
        )
