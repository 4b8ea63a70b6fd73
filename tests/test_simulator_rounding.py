"""Rounding to 8 bits: against compressed-tensors, torch's casts, and the MX specification re-computed with numpy."""

import math
import os

import numpy as np
import pytest
import torch

# Read when compressed-tensors is imported.
os.environ["CT_ENFORCE_EAGER"] = "1"

from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp

from fp8cli.core.simulating.words import simulated_scheme
from fp8cli.errors import UsageError
from fp8cli.schemes import SCHEMES
from fp8cli.simulator.rounding import LARGEST, round_activation, round_weight, scale_of
from fp8cli.simulator.scheme import SIMULATED, Rounding, SimulatedScheme

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MXFP8 = SIMULATED["MXFP8"].weights
E5M2 = SIMULATED["E5M2_DYNAMIC"].weights
E4M3 = SIMULATED["FP8_DYNAMIC"].weights


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    """Values of very different magnitudes, an all-zero row and a negative zero among them."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(shape, generator=generator) * torch.exp2(
        torch.randint(-8, 4, (*shape[:-1], 1), generator=generator)
    )
    spread.view(-1, shape[-1])[1] = 0.0
    spread.view(-1)[0] = -0.0
    return spread.to(dtype)


def by_compressed_tensors(value: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    """A weight, by the amax that an observer of llm-compressor would hand over, and the library's own rounding."""
    strategy = str(args.strategy)
    if strategy == "tensor":
        low, high = value.min().view(1), value.max().view(1)
    elif strategy == "channel":
        low, high = value.amin(1, keepdim=True), value.amax(1, keepdim=True)
    else:
        rows, columns = value.shape
        padded = torch.nn.functional.pad(value, (0, -columns % 128, 0, -rows % 128))
        blocks = padded.reshape(len(padded) // 128, 128, -1, 128)
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    scale, zero = calculate_qparams(low, high, args)
    return fake_quantize(value, scale, zero, args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SCHEMES)
def test_weights_come_out_as_compressed_tensors_rounds_them(name: str, dtype: torch.dtype) -> None:
    value = drawn(200, 344, dtype=dtype)
    rounding = SIMULATED[name].weights
    assert rounding is not None
    expected = by_compressed_tensors(value, preset_name_to_scheme(name, ["Linear"]).weights)
    assert torch.equal(round_weight(value, rounding), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_activations_come_out_as_compressed_tensors_rounds_them(name: str, dtype: torch.dtype) -> None:
    value = drawn(2, 7, 256, dtype=dtype)
    args = preset_name_to_scheme(name, ["Linear"]).input_activations
    scale, zero = compute_dynamic_scales_and_zp(value, args, torch.nn.Identity())
    rounding = SIMULATED[name].activations
    assert rounding is not None
    assert torch.equal(round_activation(value, rounding), fake_quantize(value, scale, zero, args))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_activation_with_a_scale_from_calibration_saturates(dtype: torch.dtype) -> None:
    value = drawn(1, 5, 64, dtype=dtype)
    amax = torch.tensor([0.5], dtype=dtype)
    args = preset_name_to_scheme("FP8", ["Linear"]).input_activations
    rounding = SIMULATED["FP8"].activations
    assert rounding is not None
    scale, zero = calculate_qparams(-amax, amax, args)
    rounded = round_activation(value, rounding, amax / 448)
    assert torch.equal(rounded, fake_quantize(value, scale, zero, args))
    assert value.abs().max() > 0.6
    assert rounded.abs().max() <= 448 * scale.max()


def test_tokens_have_a_scale_each_whatever_the_rank_of_the_tensor() -> None:
    value = drawn(2, 7, 256)
    flat = round_activation(value.view(14, 256), E4M3)  # type: ignore[arg-type]
    assert torch.equal(flat.view(2, 7, 256), round_activation(value, E4M3))  # type: ignore[arg-type]


def test_no_tokens_are_no_tokens() -> None:
    for scheme in SIMULATED.values():
        if scheme.activations is not None:
            assert round_activation(torch.empty(0, 64), scheme.activations, torch.ones(1)).shape == (0, 64)


def test_e5m2_is_torchs_own_cast_with_a_scale_that_reaches_its_largest_number() -> None:
    assert E5M2 is not None
    value = drawn(64, 256, dtype=torch.float32)
    scale = value.abs().amax(1, keepdim=True) / torch.finfo(torch.float8_e5m2).max
    scale[scale == 0] = 1.0
    expected = (value / scale).to(torch.float8_e5m2).float() * scale
    assert torch.equal(round_weight(value, E5M2), expected)
    assert LARGEST["e5m2"] == torch.finfo(torch.float8_e5m2).max == 57344


def mx_by_numpy(
    value: "np.ndarray[tuple[int, int], np.dtype[np.float64]]",
) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """OCP MX v1.0, 6.3, in float64: shared exponent ⌊log2 max⌋ − 8, elements to the nearest of all E4M3 numbers."""
    numbers = [(8 + mantissa) / 8 * 2.0 ** (exponent - 7) for exponent in range(1, 16) for mantissa in range(8)]
    numbers = [0.0, *(mantissa / 8 * 2.0**-6 for mantissa in range(1, 8)), *numbers[:-1]]
    grid = np.array(numbers)
    assert grid[-1] == 448
    result = np.zeros_like(value)
    for row, values in enumerate(value):
        for start in range(0, len(values), 32):
            group = values[start : start + 32]
            largest = np.abs(group).max()
            if largest == 0:
                continue
            shared = 2.0 ** (math.floor(math.log2(largest)) - 8)
            for column, element in enumerate(group / shared):
                distance = np.abs(grid - abs(element))
                nearest = np.flatnonzero(distance == distance.min())
                # Halfway between two numbers the one with the even mantissa, which is every second one.
                chosen = nearest[0] if len(nearest) == 1 else next(each for each in nearest if each % 2 == 0)
                result[row, start + column] = math.copysign(grid[chosen], element) * shared
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [96, 72])
def test_mxfp8_is_the_specification_re_computed(columns: int, dtype: torch.dtype) -> None:
    assert MXFP8 is not None
    value = drawn(12, columns, dtype=dtype, seed=3)
    expected = torch.from_numpy(mx_by_numpy(value.double().numpy())).to(dtype)
    assert torch.equal(round_weight(value, MXFP8), expected)
    assert torch.equal(round_activation(value.view(3, 4, columns), MXFP8).view(12, columns), expected)


def test_mxfp8_is_that_of_compressed_tensors_but_where_it_rounds_the_exponent_up() -> None:
    assert MXFP8 is not None
    value = drawn(64, 256, seed=5)
    args = preset_name_to_scheme("MXFP8", ["Linear"]).weights
    groups = value.unflatten(-1, (-1, 32))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    theirs = fake_quantize(value, scale, zero, args).unflatten(-1, (-1, 32))
    ours = round_weight(value, MXFP8).unflatten(-1, (-1, 32))
    mantissas = torch.frexp(groups.abs().amax(-1).float()).mantissa
    up = mantissas >= 0.875
    assert 0 < int(up.sum()) < up.numel() / 3
    assert torch.equal(ours[~up], theirs[~up])
    assert not torch.equal(ours[up], theirs[up])


@pytest.mark.parametrize("amax", [0.0, 1e-38, 1.0, 447.0, 448.0, 3e38])
def test_scales_of_mx_formats_are_powers_of_two_within_eight_bits(amax: float) -> None:
    assert MXFP8 is not None
    scale = scale_of(torch.tensor([amax]), MXFP8)
    mantissa, exponent = math.frexp(scale.item())
    assert mantissa == 0.5
    assert -127 <= exponent - 1 <= 127


def sqnr(rounding: Rounding | None) -> float:
    assert rounding is not None
    value = torch.randn(256, 512, generator=torch.Generator().manual_seed(1))
    noise = (round_weight(value, rounding) - value).square().sum()
    return float(10 * torch.log10(value.square().sum() / noise))


def test_a_bit_of_mantissa_less_costs_six_decibels() -> None:
    assert sqnr(E4M3) - sqnr(E5M2) == pytest.approx(6.0, abs=0.5)


def test_the_schemes_that_can_be_written_are_simulated_with_the_same_shapes() -> None:
    words = {"row": "channel", "tensor": "tensor", "block": "block"}
    for name, scheme in SCHEMES.items():
        ours = SIMULATED[name]
        assert ours.weights is not None
        assert ours.activations is not None
        assert words[ours.weights.sharing] == scheme.weights
        assert ours.activations.dynamic == scheme.dynamic_activations
        assert ours.needs_data == scheme.needs_calibration
        assert ours.summary == scheme.summary


@pytest.mark.parametrize(
    ("word", "name", "kv"),
    [
        ("fp8_dynamic", "FP8_DYNAMIC", None),
        ("Fp8-Dynamic+KV", "FP8_DYNAMIC+KV", "tensor"),
        ("mxfp8+kv-head", "MXFP8+KV_HEAD", "head"),
        ("none+kv", "NONE+KV", "tensor"),
        (" e5m2-dynamic ", "E5M2_DYNAMIC", None),
    ],
)
def test_a_word_is_taken_in_any_case_and_with_either_dash(word: str, name: str, kv: str | None) -> None:
    found: SimulatedScheme = simulated_scheme(word)
    assert (found.name, found.kv_cache) == (name, kv)
    assert found.needs_data == (kv is not None)


@pytest.mark.parametrize("word", ["", "fp9", "fp8+", "fp8+q", "+kv", "none", "\x1b[31mfp8"])
def test_a_word_that_means_nothing_is_refused_with_all_that_there_are(word: str) -> None:
    with pytest.raises(UsageError) as refused:
        simulated_scheme(word)
    assert "kv" in (refused.value.hint or "")
    assert "\x1b" not in str(refused.value)
