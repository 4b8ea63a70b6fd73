"""The arithmetic against an independent reading of E4M3: every code decoded by hand, every rounding by search."""

import bisect
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8cli.core.quantizing import fp8

FLOATS = [torch.bfloat16, torch.float16, torch.float32]


def decode_e4m3(code: int) -> float:
    """Sign, four bits of exponent with bias 7, three of mantissa; all ones is NaN and there is no infinity."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 0xF, code & 0x7
    if exponent == 0xF and mantissa == 0x7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


POSITIVE = [decode_e4m3(code) for code in range(0x7F)]


def round_to_e4m3(value: float) -> int:
    """Nearest code, ties to the even one, by search among all values; beyond the largest, the largest."""
    sign = 0x80 if struct.pack(">d", value)[0] & 0x80 else 0
    size = abs(value)
    above = bisect.bisect_left(POSITIVE, size)
    if above == len(POSITIVE):
        return sign | (len(POSITIVE) - 1)
    if POSITIVE[above] == size or above == 0:
        return sign | above
    below = above - 1
    up, down = POSITIVE[above] - size, size - POSITIVE[below]
    nearest = below if down < up else above if up < down else (below if below % 2 == 0 else above)
    return sign | nearest


def codes(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().view(torch.uint8).flatten().tolist()


def test_all_256_codes_decode_as_written_by_hand() -> None:
    decoded = torch.arange(256, dtype=torch.uint8).view(fp8.E4M3).float().tolist()
    assert [struct.pack(">f", value) for value in decoded if value == value] == [  # noqa: PLR0124 - drops NaN
        struct.pack(">f", decode_e4m3(code)) for code in range(256) if code & 0x7F != 0x7F
    ]
    assert all(value != value for value in (decoded[0x7F], decoded[0xFF]))  # noqa: PLR0124


def test_every_bf16_value_in_range_rounds_to_the_nearest_code_ties_to_even() -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    values = every[every.float().abs() <= 448]
    row = torch.cat([values, torch.tensor([448.0], dtype=torch.bfloat16)]).unsqueeze(0)
    scale = fp8.scale_from_amax(fp8.amax_per_row(row))
    assert scale.item() == 1.0
    # Adding the zero point 0 makes +0.0 of −0.0, and of nothing else.
    wanted = [0 if value == 0 else round_to_e4m3(value) for value in row[0].double().tolist()]
    assert codes(fp8.encode_rows(row.clone(), scale)) == wanted


def test_a_negative_value_that_only_e4m3_rounds_to_zero_stays_minus_zero() -> None:
    row = torch.tensor([[448.0, -(2.0**-12), -0.0, 0.0]], dtype=torch.bfloat16)
    assert codes(fp8.encode_rows(row, torch.ones(1, 1, dtype=torch.bfloat16))) == [0x7E, 0x80, 0x00, 0x00]


def test_the_quotient_is_rounded_to_bf16_before_it_is_rounded_to_e4m3() -> None:
    # 1.0625 lies halfway between the codes of 1.0 and 1.125. The exact quotient is just above it, BF16 rounds it
    # onto the tie, and the tie goes to the even code, 1.0. Rounding once would have given 1.125.
    weight, scale = 33.0, 31.0
    assert round_to_e4m3(weight / scale) == round_to_e4m3(1.125)
    exact = torch.tensor([[weight]], dtype=torch.bfloat16) / torch.tensor([[scale]], dtype=torch.bfloat16)
    assert exact.item() == 1.0625
    tile = torch.tensor([[weight]], dtype=torch.bfloat16)
    assert codes(fp8.encode_rows(tile, torch.tensor([[scale]], dtype=torch.bfloat16))) == [round_to_e4m3(1.0)]


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_all_zero_row_and_an_all_zero_block_get_epsilon_and_decode_to_zeros(dtype: torch.dtype) -> None:
    weight = torch.zeros(130, 140, dtype=dtype)
    for amax, encode in ((fp8.amax_per_row, fp8.encode_rows), (fp8.amax_per_block, fp8.encode_blocks)):
        scale = fp8.scale_from_amax(amax(weight))
        assert (scale == torch.finfo(dtype).eps).all()
        assert set(codes(encode(weight.clone(), scale))) == {0}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_show_in_the_maximum(dtype: torch.dtype, value: float) -> None:
    weight = torch.randn(200, 300).to(dtype)
    weight[150, 290] = value
    rows = torch.isfinite(fp8.amax_per_row(weight)).flatten().tolist()
    assert rows.index(False) == 150
    assert rows.count(False) == 1
    assert torch.isfinite(fp8.amax_per_block(weight)).tolist() == [[True, True, True], [True, True, False]]
    assert not torch.isfinite(fp8.amax_of_all(weight))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_whole_tensor_under_one_scale_has_the_codes_of_one_long_row(dtype: torch.dtype) -> None:
    weight = torch.randn(200, 300).to(dtype)
    amax = fp8.amax_of_all(weight)
    assert amax.tolist() == [weight.abs().max()]
    scale = fp8.scale_from_amax(amax)
    row = weight.view(1, -1)
    assert scale.item() == fp8.scale_from_amax(fp8.amax_per_row(row)).item()
    assert codes(fp8.encode_rows(weight.clone(), scale)) == codes(fp8.encode_rows(row.clone(), scale.view(1, 1)))
    assert fp8.amax_of_all(weight[:0]).tolist() == [0]


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_maximum_of_a_block_is_that_of_its_own_elements(dtype: torch.dtype) -> None:
    weight = torch.randn(300, 260).to(dtype)
    amax = fp8.amax_per_block(weight)
    assert amax.shape == (3, 3)
    for row in range(3):
        for column in range(3):
            block = weight[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
            assert amax[row, column] == block.abs().max()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    cut=st.integers(0, 300),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 2**16),
    size=st.sampled_from([1e-6, 1e-2, 1.0, 300.0]),
)
def test_tiles_of_any_size_give_the_same_bytes(
    rows: int, columns: int, cut: int, dtype: torch.dtype, seed: int, size: float
) -> None:
    weight = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)
    for amax, encode, step in (
        (fp8.amax_per_row, fp8.encode_rows, 1),
        (fp8.amax_per_block, fp8.encode_blocks, 128),
    ):
        at = min(cut // step * step, rows)
        whole_scale = fp8.scale_from_amax(amax(weight))
        whole = codes(encode(weight.clone(), whole_scale))
        parts, scales = [], []
        for part in (weight[:at], weight[at:]):
            if len(part):
                scale = fp8.scale_from_amax(amax(part.clone()))
                parts += codes(encode(part.clone(), scale))
                scales.append(scale)
        assert parts == whole
        assert torch.equal(torch.cat(scales), whole_scale)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.sampled_from([1e-3, 1.0, 1e3]), dtype=st.sampled_from(FLOATS))
def test_decoding_comes_within_half_a_step_of_the_source(seed: int, size: float, dtype: torch.dtype) -> None:
    weight = (torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)
    scale = fp8.scale_from_amax(fp8.amax_per_row(weight))
    decoded = fp8.encode_rows(weight.clone(), scale).double() * scale.double()
    # Half a step of a 3-bit mantissa, plus the rounding of quotient and scale to the source's dtype.
    bound = weight.double().abs() * (2.0**-4 + 2.0**-7) + scale.double() * 2.0**-10 * (1 + 2.0**-6)
    assert ((decoded - weight.double()).abs() <= bound).all()


def test_fp16_rows_whose_scale_underflows_are_reported_and_others_are_not() -> None:
    weight = torch.ones(4, 8, dtype=torch.float16) * torch.tensor([[1e-6], [3e-6], [1.0], [0.0]], dtype=torch.float16)
    amax = fp8.amax_per_row(weight)
    assert fp8.harmed_by_scale(amax, fp8.scale_from_amax(amax)).flatten().tolist() == [True, True, False, False]


@settings(max_examples=200, deadline=None)
@given(bits=st.lists(st.integers(0, 2**31), min_size=1, max_size=6), dtype=st.sampled_from(FLOATS))
def test_what_is_ordinary_is_finite_and_never_harmed(bits: list[int], dtype: torch.dtype) -> None:
    width = torch.finfo(dtype).bits
    integers = torch.tensor([number % 2 ** (width - 1) for number in bits], dtype=torch.int64)
    amax = integers.to(torch.int16 if width == 16 else torch.int32).view(dtype)
    if fp8.is_ordinary(amax):
        assert torch.isfinite(amax).all()
        assert not fp8.harmed_by_scale(amax, fp8.scale_from_amax(amax)).any()
    else:
        assert (~torch.isfinite(amax) | (amax.float() < 448 * torch.finfo(dtype).smallest_normal)).any()


def test_no_bf16_row_of_ordinary_size_is_reported() -> None:
    amax = torch.logspace(-30, 30, 2000, dtype=torch.float64).to(torch.bfloat16)
    assert not fp8.harmed_by_scale(amax, fp8.scale_from_amax(amax)).any()
