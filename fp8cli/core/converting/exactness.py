"""Whether numbers survive a narrower dtype bit for bit. Asked of scales before they are stored in another one."""

import struct
from collections.abc import Sequence
from typing import Final

from fp8cli.core.inspection.survey import StoredTensor, Survey
from fp8cli.core.quantizing.calibrated_scales import decode

_NAN_EXPONENT: Final = 255


def all_exact(survey: Survey, tensors: Sequence[StoredTensor], dtype: str) -> bool:
    """Whether every value of some scales is a number of `dtype` (`BF16`, `F16`, `F32`) too. Reads those it must."""
    doubtful = [tensor for tensor in tensors if tensor.info.dtype != dtype]
    ranges = [(tensor.file, tensor.info.begin, tensor.info.end) for tensor in doubtful]
    values = survey.reader.read_many(ranges)
    return all(is_exact(tensor.info.dtype, raw, dtype) for tensor, raw in zip(doubtful, values, strict=True))


def is_exact(dtype: str, raw: bytes, narrower: str) -> bool:
    """Whether values of one dtype are numbers of another. raw: little-endian, of `BF16`, `F16`, `F32` or E8M0."""
    if dtype in {"F8_E8M0", "U8"}:
        # Powers of two from 2^-127 to 2^127, which BF16 and F32 hold all.
        return _NAN_EXPONENT not in raw and (narrower != "F16" or all(127 - 24 <= each <= 127 + 15 for each in raw))
    if narrower == "F32":
        return True
    if narrower == "F16":
        values = decode(dtype, raw)
        try:
            rounded = struct.unpack(f"<{len(values)}e", struct.pack(f"<{len(values)}e", *values))
        except OverflowError:
            return False
        return rounded == values
    if dtype == "F16":
        values = decode(dtype, raw)
        raw = struct.pack(f"<{len(values)}f", *values)
    # BF16 is the upper half of F32: exact where the lower half is zero.
    return dtype == "BF16" or all(raw[place::4].count(0) == len(raw) // 4 for place in (0, 1))
