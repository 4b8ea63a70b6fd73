"""Rounding to 8 bits and back, as arithmetic on tensors: what FP8 does to values, without ever storing FP8.

For values x that share a scale s:

    s  = amax / largest                          in the dtype of x; 0 becomes the dtype's epsilon
    x' = float8(clamp(x / s + 0, ±largest)) · s  the quotient and the product in the dtype of x

as compressed-tensors 0.19 computes it for weights and for activations (`calculate_qparams`, `_quantize_dequantize`),
and as `core.quantizing.fp8` writes it: a weight comes out with the very bits that a written checkpoint decodes to.
The largest number of E4M3 is 448, of E5M2 57,344.

Scales of MX formats are powers of two, s = 2^(⌊log2 amax⌋ − e) with e the largest exponent of the numbers, 8 for
E4M3 (OCP Microscaling Formats specification v1.0, section 6.3); all in float32, where both operations are exact. Up
to an eighth of a group's largest values then lie above 448 and saturate. compressed-tensors rounds the exponent up
where a group's maximum is 1.75 powers of two or more, and agrees elsewhere.
"""

from typing import Final

import torch
from torch import Tensor

from fp8cli.simulator.scheme import BLOCK, Number, Rounding

FORMATS: Final[dict[Number, torch.dtype]] = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
LARGEST: Final[dict[Number, float]] = {"e4m3": 448.0, "e5m2": 57344.0}
_LARGEST_EXPONENT: Final[dict[Number, int]] = {"e4m3": 8, "e5m2": 15}

_E8M0: Final = (-127, 127)
"""Exponents that a scale of 8 bits and no sign can have."""


def round_weight(weight: Tensor, rounding: Rounding, *, into: torch.dtype | None = None) -> Tensor:
    """Return a weight as its FP8 codes decode to it. weight: [out, in], any float; returns the same shape.

    into: the dtype that codes and scales are decoded in, and of what is returned; None: that of the weight. What is
    missing in a block or a group at the edge counts as zero.
    """
    match rounding.sharing:
        case "tensor":
            return _round(weight, weight.abs().amax().view(1, 1), rounding, into)
        case "block":
            rows, columns = weight.shape
            padded = torch.nn.functional.pad(weight, (0, -columns % BLOCK, 0, -rows % BLOCK))
            blocks = padded.view(len(padded) // BLOCK, BLOCK, -1, BLOCK)
            rounded = _round(blocks, blocks.abs().amax(dim=(1, 3), keepdim=True), rounding, into)
            return rounded.reshape(padded.shape)[:rows, :columns].contiguous()
        case "row" | "group":
            return _round_last(weight, rounding, into)


def round_activation(values: Tensor, rounding: Rounding, scale: Tensor | None = None) -> Tensor:
    """Return an activation as it is after FP8. values: […, features], any float; returns the same shape and dtype.

    scale: the one that calibration found, [1], where scales are not dynamic.
    """
    if values.numel() == 0:
        return values
    if scale is not None:
        return round_with(values, scale.to(device=values.device, dtype=values.dtype), rounding.number)
    if rounding.sharing == "tensor":
        return _round(values, values.abs().amax().view(1), rounding)
    return _round_last(values, rounding)


def scale_of(amax: Tensor, rounding: Rounding) -> Tensor:
    """Return the scales, which multiply to decode, for the largest magnitudes of what shares each; the same shape.

    In the dtype of `amax`, but float32 for powers of two.
    """
    if rounding.scale == "e8m0":
        # frexp writes x as m · 2^e with ½ ≤ m < 1.
        exponent = torch.frexp(amax.float()).exponent - 1 - _LARGEST_EXPONENT[rounding.number]
        return torch.ldexp(torch.ones_like(amax, dtype=torch.float32), exponent.clamp(*_E8M0))
    scale = amax / LARGEST[rounding.number]
    return torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)


def round_with(values: Tensor, scale: Tensor, number: Number, into: torch.dtype | None = None) -> Tensor:
    """Round values with a scale that multiplies to decode and has their dtype or float32; returns `into`, or theirs."""
    wide = scale.dtype if into is None else torch.promote_types(scale.dtype, into)
    quotient = values.to(scale.dtype) / scale
    # Adding zero turns −0 into +0, as the zero point of compressed-tensors does.
    quotient.add_(0.0).clamp_(-LARGEST[number], LARGEST[number])
    return quotient.to(FORMATS[number]).to(wide).mul_(scale).to(values.dtype if into is None else into)


def _round_last(values: Tensor, rounding: Rounding, into: torch.dtype | None = None) -> Tensor:
    """Round with a scale for each row of the last dimension, or for each group of values in it."""
    if rounding.sharing == "row":
        return _round(values, values.abs().amax(dim=-1, keepdim=True), rounding, into)
    if rounding.sharing != "group":
        raise ValueError(f"activations have no scale for each {rounding.sharing}")
    features = values.shape[-1]
    padded = torch.nn.functional.pad(values, (0, -features % rounding.group)).contiguous()
    groups = padded.view(*padded.shape[:-1], -1, rounding.group)
    rounded = _round(groups, groups.abs().amax(dim=-1, keepdim=True), rounding, into)
    return rounded.flatten(start_dim=-2)[..., :features]


def _round(values: Tensor, amax: Tensor, rounding: Rounding, into: torch.dtype | None = None) -> Tensor:
    return round_with(values, scale_of(amax, rounding), rounding.number, into)
