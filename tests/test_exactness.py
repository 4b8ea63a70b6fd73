"""Whether scales survive a narrower dtype, against torch: to the narrower one and back is the same, or not."""

import pytest
import torch

from fp8cli.core.converting.exactness import is_exact

TAGS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
NUMBERS = (1.0, 0.1, 2.0**-24, 2.0**-25, 2.0**-133, 2.0**-134, 65504.0, 65520.0, 3e38, 1 + 2**-7, 1 + 2**-8, 1 + 2**-10)


@pytest.mark.parametrize("narrower", TAGS)
@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_is_exact_where_torch_brings_it_back(tag: str, narrower: str, number: float) -> None:
    value = torch.tensor([1.0, number]).to(TAGS[tag])
    if not bool(torch.isfinite(value).all()):
        return  # It is no number of the first dtype.
    back = value.to(TAGS[narrower]).to(torch.float64)
    raw = value.view(torch.uint8).numpy().tobytes()
    assert is_exact(tag, raw, narrower) is bool(torch.equal(back, value.double()))


@pytest.mark.parametrize("narrower", TAGS)
@pytest.mark.parametrize("code", range(0, 256, 5))
def test_a_power_of_two_is_exact_where_torch_holds_it(narrower: str, code: int) -> None:
    value = torch.tensor([code], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    number = value.float()
    wanted = bool(torch.equal(number.to(TAGS[narrower]).float(), number))
    assert is_exact("F8_E8M0", bytes([code]), narrower) is wanted
