"""Numbers as text, each with its unit: MB is 10⁶ bytes, GB 10⁹, GiB 2³⁰, and no two are ever mixed up."""

from typing import Final

_MB: Final = 10**6
_GB: Final = 10**9
_GIB: Final = 2**30


def count(number: int) -> str:
    """Write a whole number in groups of three: `6,979,321,856`."""
    return f"{number:,}"


def mb(size_bytes: int) -> str:
    """Write bytes in MB with six decimals, which is exact to the byte: `6979.321856`."""
    return f"{size_bytes // _MB}.{size_bytes % _MB:06}"


def gb(size_bytes: int) -> str:
    """Write bytes in GB, as disks and the Hub count: `9.08 GB`."""
    return f"{_three_digits(size_bytes / _GB)} GB"


def gib(size_bytes: int) -> str:
    """Write bytes in GiB, as GPUs and vLLM count: `8.46 GiB`."""
    return f"{_three_digits(size_bytes / _GIB)} GiB"


def percent(share: float) -> str:
    """Write a part of 1 in percent; what is there but rounds to nothing is `<0.1 %`."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{share:.1%}".replace("%", " %")


def size(size_bytes: int) -> str:
    """Write bytes in GB, MB or bytes: `9.08 GB`, `327.68 MB`, `96 bytes`."""
    if size_bytes >= 10**9:
        return gb(size_bytes)
    if size_bytes >= 10**4:
        return f"{size_bytes / 10**6:.2f} MB"
    return f"{count(size_bytes)} bytes"


def number(value: float) -> str:
    """Write a number in three digits: `0.00123`, `4.5e-5`."""
    text = f"{value:.3g}"
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text


def _three_digits(number: float) -> str:
    """Two decimals from 1 on; below it as many as show three digits, so that nothing reads 0.00."""
    decimals = 2
    while 0 < number * 10**decimals < 100 and decimals < 9:
        decimals += 1
    return f"{number:.{decimals}f}"
