"""The compiled FP8 arithmetic of kernel.c: found, checked, and called with plain buffers. Neither torch nor numpy.

The library is built when the package is (scripts/build_kernel.py) and lies beside this file. Where it could not be
built, or with FP8_KERNEL=off, `load` returns None and torch does the same arithmetic (core.quantizing.tiles), some
seconds later and three times as slowly. The bytes are the same.
"""

import ctypes
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from fp8cli.schemes import WeightGranularity

LIBRARY: Final = Path(__file__).with_name("libfp8.so")
INTERFACE: Final = 4
"""`INTERFACE` of kernel.c; a library left over from another version is not used."""

DTYPES: Final[Mapping[str, int]] = {"BF16": 0, "F16": 1, "F32": 2}
"""Safetensors tags of the dtypes it quantizes from, with the numbers kernel.c has for them."""

SCANNED: Final[Mapping[str, int]] = {**DTYPES, "F8_E4M3": 3}
"""The dtypes it can look through."""

WIDENED: Final[Mapping[str, int]] = {**DTYPES, "F8_E8M0": 4, "U8": 4}
"""The dtypes of scales that it can read; U8 stands for powers of two, as in MX formats."""

INSTRUCTION_SETS: Final[Mapping[str, int]] = {"plain": 0, "avx2": 1, "avx512": 2}
"""What FP8_KERNEL may cap the vector instructions to. No choice changes a byte."""

_SWITCH: Final = "FP8_KERNEL"


class Report(ctypes.Structure):
    """What a call found; `struct report` of kernel.c. `bad_row` is −1 unless the weight holds NaN or Inf."""

    _fields_ = (
        ("bad_row", ctypes.c_int64),
        ("bad_column", ctypes.c_int64),
        ("bad_is_nan", ctypes.c_int64),
        ("harmed", ctypes.c_int64),
        ("first_harmed", ctypes.c_int64),
    )
    bad_row: int
    bad_column: int
    bad_is_nan: int
    """Not told where codes are decoded."""
    harmed: int
    """How many scales lose their values (see `core.quantizing.fp8.harmed_by_scale`)."""
    first_harmed: int
    """Row of the first of them, or first row of its block."""


class Census(ctypes.Structure):
    """What a scan counted; `struct census` of kernel.c."""

    _fields_ = (
        ("nan", ctypes.c_int64),
        ("infinite", ctypes.c_int64),
        ("zero_rows", ctypes.c_int64),
        ("first_row", ctypes.c_int64),
        ("first_column", ctypes.c_int64),
    )
    nan: int
    infinite: int
    """Infinities; for E4M3, which has none, the codes of ±448."""
    zero_rows: int
    first_row: int
    """Place of the first NaN, or infinity of the wider dtypes; −1 without one."""
    first_column: int


class Distance(ctypes.Structure):
    """How far codes are from the weight they stand for; `struct distance` of kernel.c. Calls add up."""

    _fields_ = (
        ("signal", ctypes.c_double),
        ("noise", ctypes.c_double),
        ("largest", ctypes.c_double),
        ("row", ctypes.c_int64),
        ("column", ctypes.c_int64),
    )
    signal: float
    """Sum of the squares of the weight."""
    noise: float
    """Sum of the squares of the errors."""
    largest: float
    """Largest magnitude of an error, which lies at `row`, `column`."""
    row: int
    column: int


@dataclass(frozen=True)
class Kernel:
    """The loaded library."""

    _library: ctypes.CDLL
    _level: int

    @property
    def instruction_set(self) -> str:
        """Which vector instructions it uses."""
        return next(name for name, level in INSTRUCTION_SETS.items() if level == self._level)

    def quantize(
        self,
        granularity: WeightGranularity,
        dtype: str,
        shape: tuple[int, int],
        weight: mmap.mmap,
        codes: mmap.mmap,
        scales: mmap.mmap,
    ) -> Report:
        """Quantize a weight [rows, columns] of `dtype` (a tag of DTYPES) with one scale per row or 128×128 block.

        One scale for a whole tensor takes two calls: `largest` and `quantize_tensor`.

        Writes E4M3 codes [rows, columns] into `codes` and scales of `dtype`, [rows, 1] or
        [⌈rows/128⌉, ⌈columns/128⌉], into `scales`. The buffers must be large enough. Other Python threads run
        meanwhile.
        """
        match granularity:
            case "channel":
                call = self._library.fp8_quantize_rows
            case "block":
                call = self._library.fp8_quantize_blocks
            case "tensor":
                message = "a tensor under one scale is quantized by `quantize_tensor`"
                raise ValueError(message)
        report = Report()
        rows, columns = shape
        call(_at(weight), DTYPES[dtype], rows, columns, _at(codes), _at(scales), ctypes.byref(report), self._level)
        return report

    def largest(self, dtype: str, shape: tuple[int, int], weight: mmap.mmap) -> tuple[int, Report]:
        """Return the largest magnitude of a weight [rows, columns], as its bits, and where it holds NaN or Inf.

        The bits order as the magnitudes do, so that those of several tiles can be compared.
        """
        bits, report = ctypes.c_uint32(), Report()
        place = (_at(weight), DTYPES[dtype], *shape)
        self._library.fp8_largest(*place, ctypes.byref(bits), ctypes.byref(report), self._level)
        return bits.value, report

    def quantize_tensor(
        self,
        dtype: str,
        shape: tuple[int, int],
        largest: int,
        weight: mmap.mmap,
        codes: mmap.mmap,
        scale: mmap.mmap,
    ) -> Report:
        """Quantize a tile [rows, columns] of a tensor with one scale, whose largest magnitude has the bits `largest`.

        Writes E4M3 codes [rows, columns] into `codes` and the scale of `dtype`, the same for every tile, into `scale`.
        """
        report = Report()
        place = (_at(weight), DTYPES[dtype], *shape, largest)
        self._library.fp8_quantize_tensor(*place, _at(codes), _at(scale), ctypes.byref(report), self._level)
        return report

    def decode(
        self,
        dtype: str,
        shape: tuple[int, int],
        codes: mmap.mmap,
        scales: mmap.mmap,
        *,
        block: tuple[int, int],
        skip: int,
        out: mmap.mmap,
    ) -> Report:
        """Write what E4M3 codes [rows, columns] stand for to `out`, as `dtype`: code × scale in float32, rounded once.

        scales: float32, [bands, ⌈columns/block[1]⌉], for the bands of block[0] rows in which the rows lie; skip: rows
        of the first band that lie before them. The report has the place of the first number that is not finite.
        """
        report = Report()
        place = (_at(codes), DTYPES[dtype], skip, *shape, _at(scales), *block)
        self._library.fp8_decode(*place, _at(out), ctypes.byref(report), self._level)
        return report

    def widen(self, dtype: str, count: int, data: mmap.mmap, out: mmap.mmap) -> None:
        """Write `count` values of `dtype` (a tag of WIDENED) to `out` as float32. Exact."""
        self._library.fp8_widen(_at(data), WIDENED[dtype], count, _at(out))

    def narrow(self, count: int, data: mmap.mmap, out: mmap.mmap) -> None:
        """Write `count` float32 values to `out` as bfloat16, rounded to nearest, ties to even."""
        self._library.fp8_narrow(_at(data), count, _at(out))

    def scan(self, dtype: str, shape: tuple[int, int], data: bytes) -> Census:
        """Count NaN, infinities (±448 in E4M3) and rows of zeros in data [rows, columns] of `dtype`, one of SCANNED."""
        census = Census()
        self._library.fp8_scan(data, SCANNED[dtype], *shape, ctypes.byref(census), self._level)
        return census

    def compare(
        self,
        dtype: str,
        rows: range,
        columns: int,
        weight: bytes,
        codes: bytes,
        scales: bytes,
        block: tuple[int, int],
        distance: Distance,
    ) -> None:
        """Add to `distance` how far some rows of a weight are from their E4M3 codes times scales.

        weight: the rows, of `dtype` (a tag of DTYPES); codes: the rows, E4M3; scales: float32, all of the tensor's,
        [⌈rows of all/block[0]⌉, ⌈columns/block[1]⌉]. NaN codes count as 480: find them with `scan`.
        """
        place = (rows.start, len(rows), columns)
        report = ctypes.byref(distance)
        self._library.fp8_compare(weight, DTYPES[dtype], *place, codes, scales, *block, report, self._level)


def load() -> Kernel | None:
    """Return the kernel, or None where there is none, or FP8_KERNEL says `off`."""
    wish = os.environ.get(_SWITCH, "").lower()
    library = None if wish == "off" else _open()
    if library is None:
        return None
    best: int = library.fp8_level()
    return Kernel(library, min(best, INSTRUCTION_SETS.get(wish, best)))


@cache
def _open() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        if library.fp8_interface() != INTERFACE:
            return None
        pointer, number, small, bits = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_uint32
        quantize = (pointer, small, number, number, pointer, pointer, pointer, small)
        compare = (pointer, small, number, number, number, pointer, pointer, number, number, pointer, small)
        decode = (pointer, small, *(number,) * 3, pointer, number, number, pointer, pointer, small)
        for call, arguments in (
            (library.fp8_quantize_rows, quantize),
            (library.fp8_quantize_blocks, quantize),
            (library.fp8_largest, (pointer, small, number, number, pointer, pointer, small)),
            (library.fp8_quantize_tensor, (pointer, small, number, number, bits, pointer, pointer, pointer, small)),
            (library.fp8_scan, (pointer, small, number, number, pointer, small)),
            (library.fp8_compare, compare),
            (library.fp8_decode, decode),
            (library.fp8_widen, (pointer, small, number, pointer)),
            (library.fp8_narrow, (pointer, number, pointer)),
        ):
            call.argtypes = arguments
            call.restype = None
    except (OSError, AttributeError):  # Not built, built for another machine, or something else of that name.
        return None
    return library


def _at(buffer: mmap.mmap) -> int:
    """Return the address of a buffer's first byte."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
