"""FP8 arithmetic: from floats to E4M3 codes and scales, exactly as llm-compressor's eager mode computes them.

For a weight W and the part of it that shares one scale (a row, a 128×128 block, or the whole):

    amax  = max |W|                      in W's dtype
    scale = amax / 448                   rounded to W's dtype; 0 becomes the dtype's epsilon
    codes = e4m3(clamp(W / scale + 0, −448, 448))

Three details decide whether the bytes agree with the reference. The quotient is rounded to W's dtype before it
is rounded to E4M3 (twice, for BF16 and FP16). Adding the zero point 0 turns −0.0 into +0.0, but a negative
quotient that only E4M3 rounds to zero stays −0.0. The clamp comes before the cast, because past 464 the cast
gives NaN. Everything is element-wise or a maximum, so tiles of any size, on any device, give the same bytes.

A scale always multiplies to decode: W ≈ codes.float() × scale. Reference: compressed-tensors 0.19,
`calculate_qparams` and `_quantize` with CT_ENFORCE_EAGER=1.
"""

from typing import Final

import torch
from torch import Tensor

from fp8cli.schemes import BLOCK, E4M3_MAX

E4M3: Final = torch.float8_e4m3fn

# Rounding to E4M3 carries anything below 464 back to 448; above it, the clamp takes away more than rounding would.
_SATURATES: Final = 464.0

_INTEGER_VIEW: Final = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def amax_per_row(weight: Tensor) -> Tensor:
    """Largest magnitude of each row. weight: [rows, columns]; returns [rows, 1] in its dtype, NaN if any is NaN."""
    return _magnitudes(weight).amax(dim=1, keepdim=True).view(weight.dtype)


def amax_per_block(weight: Tensor) -> Tensor:
    """Largest magnitude of each 128×128 block. weight: [rows, columns]; returns [⌈rows/128⌉, ⌈columns/128⌉].

    Blocks at the lower and right edge may be smaller; what is missing counts as zero.
    """
    rows, columns = weight.shape
    magnitudes = _magnitudes(weight)
    whole = rows // BLOCK * BLOCK
    bands = [magnitudes[:whole].view(-1, BLOCK, columns).amax(dim=1)] if whole else []
    if whole < rows:
        bands.append(magnitudes[whole:].amax(dim=0, keepdim=True))
    per_column = torch.cat(bands)
    padded = torch.nn.functional.pad(per_column, (0, -columns % BLOCK))
    return padded.view(len(per_column), -1, BLOCK).amax(dim=2).view(weight.dtype)


def amax_of_all(weight: Tensor) -> Tensor:
    """Largest magnitude of a whole weight, or of a tile of it. Any shape; returns [1] in its dtype, 0 of nothing."""
    if weight.numel() == 0:
        return weight.new_zeros(1)
    return _magnitudes(weight).amax().view(1).view(weight.dtype)


def scale_from_amax(amax: Tensor) -> Tensor:
    """Return amax / 448 in the same dtype; where that is zero, the dtype's epsilon. Any shape."""
    scale = amax / E4M3_MAX
    return torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)


def is_ordinary(amax: Tensor) -> bool:
    """Whether every maximum is finite and large enough for a scale of full precision: then none is harmed.

    One pass over the maxima, to spare nearly every tile the closer look of `harmed_by_scale`.
    """
    limits = torch.finfo(amax.dtype)
    return bool(((amax >= E4M3_MAX * limits.smallest_normal) & (amax <= limits.max)).all())


def harmed_by_scale(amax: Tensor, scale: Tensor) -> Tensor:
    """Where the reference scale itself loses the values: it underflowed, or is so coarse that they saturate.

    amax, scale: same shape. Returns bool. Only FP16 sources with amax below about 4e-4 and values at the very
    bottom of the other dtypes' ranges are harmed.
    """
    wide_amax, wide_scale = amax.float(), scale.float()
    underflowed = (amax > 0) & (amax / E4M3_MAX == 0)
    return underflowed | (wide_amax > _SATURATES * wide_scale)


def encode_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """Round a weight to E4M3 with one scale per row, or for all. weight: [rows, columns]; scale: [rows, 1] or [1].

    Returns codes [rows, columns] in float8_e4m3fn. Uses `weight` as scratch space.
    """
    return _round(torch.div(weight, scale, out=weight))


def encode_blocks(weight: Tensor, scale: Tensor) -> Tensor:
    """Round a weight to E4M3 with one scale per 128×128 block.

    weight: [rows, columns]; scale: [⌈rows/128⌉, ⌈columns/128⌉] of its dtype. Returns codes [rows, columns] in
    float8_e4m3fn. Uses `weight` as scratch space.
    """
    rows, columns = weight.shape
    per_column = scale.repeat_interleave(BLOCK, dim=1)[:, :columns]
    whole = rows // BLOCK * BLOCK
    if whole:
        bands = weight[:whole].view(-1, BLOCK, columns)
        torch.div(bands, per_column[: whole // BLOCK].unsqueeze(1), out=bands)
    if whole < rows:
        torch.div(weight[whole:], per_column[-1:], out=weight[whole:])
    return _round(weight)


def decode(codes: Tensor, scale: Tensor, *, block: tuple[int, int], skip: int = 0) -> Tensor:
    """Return what codes stand for: codes × scale in float32, rounded once.

    codes: [rows, columns] float8_e4m3fn. scale: [bands, ⌈columns/block[1]⌉] float32, for the bands of block[0] rows in
    which the codes lie; skip: rows of the first band that lie before them.
    """
    wide = codes.float()
    if scale.shape[0] > 1 and block[0] > 1:
        scale = scale.repeat_interleave(block[0], dim=0)[skip : skip + codes.shape[0]]
    if scale.shape[1] > 1:
        scale = scale.repeat_interleave(block[1], dim=1)[:, : codes.shape[1]]
    return wide.mul_(scale)


def _magnitudes(weight: Tensor) -> Tensor:
    # The bits of |x|, read as integers, order as the values do, with NaN above infinity: an integer maximum is
    # exact, keeps NaN visible, and is four times as fast as a BF16 one on a CPU.
    view = weight.view(_INTEGER_VIEW[weight.dtype])
    return torch.bitwise_and(view, torch.iinfo(view.dtype).max)


def _round(quotient: Tensor) -> Tensor:
    # float32 holds every BF16 and FP16 value, so widening changes no result; the casts from it are faster.
    wide = quotient if quotient.dtype == torch.float32 else quotient.float()
    return wide.add_(0.0).clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3)
