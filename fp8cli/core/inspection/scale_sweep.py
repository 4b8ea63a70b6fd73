"""Numbers of scales, decoded from their bytes and judged in one sweep over many tensors: the numpy of scale_values.

Every dtype that scales are stored in becomes float32 (F64 stays float64), exactly. F8_E8M0, and U8 where it scales,
hold powers of two: 2^(code − 127), and 255 is NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Fault = Literal["scale.nan", "scale.infinite", "scale.zero", "scale.negative", "scale.subnormal"]

_SMALLEST_NORMAL: Final = {"BF16": 2.0**-126, "F32": 2.0**-126, "F16": 2.0**-14, "F64": 2.0**-1022}
DECODABLE: Final = frozenset({*_SMALLEST_NORMAL, "F8_E8M0", "U8", "F8_E4M3"})
"""Dtypes of scales that can be read."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What one sweep over the concatenated scales of some tensors found; arrays have one entry for each tensor."""

    minima: "NDArray[np.floating[Any]]"
    """Smallest finite positive value; +∞ where there is none."""
    maxima: "NDArray[np.floating[Any]]"
    """Largest finite positive value; 0 where there is none."""
    bad: "Mapping[Fault, NDArray[np.int64]]"
    """How many values of each tensor have a fault; faults that none has are left out."""
    first: Mapping[Fault, Mapping[int, int]]
    """Fault → number of the tensor → place of its first such value, counted in the flattened tensor."""
    sample: "NDArray[np.floating[Any]]"
    """Finite positive values for the median: all, or one of `stride`."""


def sweep(dtype: str, data: bytes, sizes: Sequence[int], *, stride: int = 1) -> Sweep:
    """Judge tensors of one dtype whose bytes follow one another; sizes: how many values each has, none of them 0.

    stride: of how many values one is kept for the median.
    """
    import numpy as np

    # Signalling NaN in a damaged file would make numpy warn.
    with np.errstate(all="ignore"):
        return _sweep(dtype, decode(dtype, data), sizes, stride)


def _sweep(dtype: str, values: "NDArray[np.floating[Any]]", sizes: Sequence[int], stride: int) -> Sweep:
    import numpy as np

    lengths = np.asarray(sizes, dtype=np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    # NaN goes through minimum and maximum, so two passes show that all is well, as it nearly always is.
    minima, maxima = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    if (minima > 0).all() and (minima >= _SMALLEST_NORMAL.get(dtype, 0.0)).all() and (maxima < np.inf).all():
        return Sweep(minima=minima, maxima=maxima, bad={}, first={}, sample=values[::stride].copy())
    good = np.isfinite(values) & (values > 0)
    masks: dict[Fault, NDArray[np.bool_]] = {
        "scale.nan": np.isnan(values),
        "scale.infinite": np.isinf(values),
        "scale.zero": values == 0,
        "scale.negative": (values < 0) & np.isfinite(values),
        "scale.subnormal": good & (values < _SMALLEST_NORMAL.get(dtype, 0.0)),
    }
    bad = {fault: np.add.reduceat(mask, starts, dtype=np.int64) for fault, mask in masks.items() if mask.any()}
    return Sweep(
        minima=np.minimum.reduceat(np.where(good, values, np.inf), starts),
        maxima=np.maximum.reduceat(np.where(good, values, 0), starts),
        bad=bad,
        first={
            fault: {
                int(number): int(masks[fault][starts[number] : ends[number]].argmax())
                for number in np.flatnonzero(counts)
            }
            for fault, counts in bad.items()
        },
        sample=values[good][::stride],
    )


def decode(dtype: str, data: bytes) -> "NDArray[np.floating[Any]]":
    """Return the values of some bytes. Raises KeyError for a dtype that scales are not stored in."""
    import numpy as np

    match dtype:
        case "BF16":
            # The upper half of a float32.
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        case "F16":
            return np.frombuffer(data, "<f2").astype(np.float32)
        case "F32":
            return np.frombuffer(data, "<f4")
        case "F64":
            return np.frombuffer(data, "<f8")
        case _:
            table: NDArray[np.float32] = _tables()[dtype]
            return table[np.frombuffer(data, np.uint8)]


@cache
def _tables() -> "Mapping[str, NDArray[np.float32]]":
    """The 256 values of each 8-bit dtype."""
    import numpy as np

    codes = np.arange(256)
    powers = np.append(np.ldexp(1.0, codes[:255] - 127), np.nan).astype(np.float32)
    exponents, fractions = codes >> 3 & 15, codes & 7
    magnitudes = np.where(exponents == 0, np.ldexp(fractions, -9), np.ldexp(8 + fractions, exponents - 10))
    e4m3 = np.where(codes < 128, magnitudes, -magnitudes).astype(np.float32)
    e4m3[[127, 255]] = np.nan
    return {"F8_E8M0": powers, "U8": powers, "F8_E4M3": e4m3}


def median(parts: "Sequence[NDArray[np.floating[Any]]]") -> float | None:
    """Middle value of all parts together; None if they are empty."""
    import numpy as np

    values = np.concatenate(parts) if parts else np.empty(0)
    return float(np.median(values)) if values.size else None
