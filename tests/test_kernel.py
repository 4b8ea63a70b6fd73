"""The compiled arithmetic against torch's: every bit pattern, every instruction set, and what happens without it."""

import math
import mmap
import os
import shutil
from pathlib import Path

import pytest
import torch

from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.core import kernel
from fp8cli.core.kernel import INSTRUCTION_SETS, Distance, Kernel, Report
from fp8cli.core.quantizing import fp8
from tests.models import ODD, llama_config, save_model

TAGS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
GRANULARITIES = ["channel", "block", "tensor"]


def buffer(size: int) -> mmap.mmap:
    return mmap.mmap(-1, max(size, 1))


def by_kernel(weight: torch.Tensor, granularity: str) -> tuple[torch.Tensor, torch.Tensor, Report]:
    """Codes as bytes [rows, columns], the bits of the scales, and the report."""
    loaded = kernel.load()
    assert loaded is not None, "scripts/setup builds the kernel; without it CI would prove nothing"
    rows, columns = weight.shape
    if granularity == "tensor":
        return by_kernel_in_tiles(loaded, weight)
    shape = (-(-rows // 128), -(-columns // 128)) if granularity == "block" else (rows, 1)
    source, codes = buffer(weight.nbytes), buffer(rows * columns)
    scales = buffer(math.prod(shape) * weight.element_size())
    source[: weight.nbytes] = weight.contiguous().view(torch.uint8).numpy().tobytes()
    report = loaded.quantize(granularity, TAGS[weight.dtype], (rows, columns), source, codes, scales)  # type: ignore[arg-type]
    return (
        torch.frombuffer(codes, dtype=torch.uint8, count=rows * columns).view(rows, columns),
        torch.frombuffer(scales, dtype=INTEGERS[weight.dtype], count=math.prod(shape)).view(shape),
        report,
    )


def by_kernel_in_tiles(loaded: Kernel, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Report]:
    """The same for one scale per tensor, in two tiles, each of which is looked at before the first is quantized."""
    rows, columns = weight.shape
    tiles = [range(rows // 2), range(rows // 2, rows)]
    tag, scale, largest, parts = TAGS[weight.dtype], buffer(4), 0, []
    for tile in tiles:
        source = buffer(weight.nbytes)
        part = weight[tile.start : tile.stop]
        source[: part.nbytes] = as_bytes(part)
        bits, report = loaded.largest(tag, (len(tile), columns), source)
        if report.bad_row >= 0:
            report.bad_row += tile.start
            return torch.empty(0), torch.empty(0), report
        largest = max(largest, bits)
        parts.append((source, len(tile)))
    tensors = []
    for source, height in parts:
        codes = buffer(height * columns)
        report = loaded.quantize_tensor(tag, (height, columns), largest, source, codes, scale)
        if height:
            tensors.append(torch.frombuffer(codes, dtype=torch.uint8, count=height * columns).view(height, columns))
    return torch.cat(tensors), torch.frombuffer(scale, dtype=INTEGERS[weight.dtype], count=1), report


def by_torch(weight: torch.Tensor, granularity: str) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The same from core.quantizing.fp8, which is held against llm-compressor; the last is how many scales do harm."""
    blocks = granularity == "block"
    amax = {"block": fp8.amax_per_block, "channel": fp8.amax_per_row, "tensor": fp8.amax_of_all}[granularity](weight)
    scale = fp8.scale_from_amax(amax)
    codes = (fp8.encode_blocks if blocks else fp8.encode_rows)(weight.clone(), scale)
    harmed = int(fp8.harmed_by_scale(amax, scale).sum())
    return codes.view(torch.uint8), scale.view(INTEGERS[weight.dtype]), harmed


def assert_same(weight: torch.Tensor, granularity: str) -> None:
    codes, scales, report = by_kernel(weight, granularity)
    wanted_codes, wanted_scales, wanted_harm = by_torch(weight, granularity)
    assert torch.equal(scales, wanted_scales)
    assert torch.equal(codes, wanted_codes)
    assert (report.bad_row, report.harmed) == (-1, wanted_harm)


@pytest.fixture(params=sorted(INSTRUCTION_SETS))
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FP8_KERNEL", request.param)
    return str(request.param)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_pattern_under_scales_of_every_size(dtype: torch.dtype, granularity: str) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every[torch.isfinite(every)]
    # Sorted by magnitude and cut at many places, each pattern meets many scales; in blocks of 128 rows likewise.
    ordered = finite[finite.float().abs().argsort()]
    for columns in (3, 61, 128, 1000):
        whole = len(ordered) // columns * columns
        assert_same(ordered[:whole].view(-1, columns), granularity)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", TAGS)
def test_every_mantissa_of_a_scale_against_every_mantissa_of_a_weight(dtype: torch.dtype, granularity: str) -> None:
    bits = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 8}[dtype]
    mantissas = 1 + torch.arange(2**bits) / 2**bits
    generator = torch.Generator().manual_seed(1)
    for exponent in (-9, -2, 0, 3):
        weight = mantissas.repeat(2**7, 1) * 2.0**exponent
        weight[:, 0] = 448 * (1 + torch.arange(2**7) / 2**7) / 256
        shuffled = weight[:, torch.randperm(weight.shape[1], generator=generator)]
        assert_same(shuffled.to(dtype), granularity)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", TAGS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 127), (127, 1), (129, 257), (256, 128), (300, 65), (5, 1024)])
def test_odd_shapes_and_extreme_values(dtype: torch.dtype, granularity: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    normal = torch.randn(shape, generator=generator)
    limits = torch.finfo(dtype)
    assert_same(normal.to(dtype), granularity)
    assert_same(torch.zeros(shape, dtype=dtype), granularity)
    assert_same(-torch.zeros(shape, dtype=dtype), granularity)
    assert_same((normal * limits.smallest_normal).to(dtype), granularity)
    assert_same(torch.where(normal > 0, limits.max, -limits.max).to(dtype), granularity)
    spread = 10.0 ** torch.linspace(-30 if dtype != torch.float16 else -7, 4, shape[0]).unsqueeze(1)
    assert_same((normal * spread).to(dtype), granularity)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", TAGS)
@pytest.mark.parametrize(("value", "is_nan"), [(math.nan, 1), (math.inf, 0), (-math.inf, 0)])
def test_the_first_nan_or_inf_is_reported_with_its_place(
    dtype: torch.dtype, granularity: str, value: float, is_nan: int
) -> None:
    weight = torch.ones(200, 300, dtype=dtype)
    weight[150, 33] = value
    weight[150, 299] = value
    weight[199, 0] = value
    report = by_kernel(weight, granularity)[2]
    assert (report.bad_row, report.bad_column, report.bad_is_nan) == (150, 33, is_nan)


def test_the_first_harmed_row_is_named() -> None:
    weight = torch.ones(300, 256, dtype=torch.float16)
    weight[7:9] = 1e-6
    report = by_kernel(weight, "channel")[2]
    assert (report.harmed, report.first_harmed) == (2, 7)
    weight[128:] = 1e-6
    report = by_kernel(weight, "block")[2]
    assert (report.harmed, report.first_harmed) == (4, 128)
    assert by_kernel(weight, "tensor")[2].harmed == 0
    assert by_kernel(weight[128:], "tensor")[2].harmed == 1


def test_one_scale_for_a_tensor_is_not_made_in_one_call() -> None:
    loaded = kernel.load()
    assert loaded is not None
    with pytest.raises(ValueError, match="quantize_tensor"):
        loaded.quantize("tensor", "BF16", (1, 1), buffer(2), buffer(1), buffer(2))


def test_switched_off_missing_or_of_another_version_there_is_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FP8_KERNEL", "off")
    assert kernel.load() is None
    monkeypatch.delenv("FP8_KERNEL")
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"\x7fELF" + os.urandom(100))
    other = Path(shutil.copy(kernel.LIBRARY, tmp_path / "other.so"))
    try:
        for library, interface in ((tmp_path / "missing.so", 1), (damaged, 1), (other, -1)):
            kernel._open.cache_clear()
            monkeypatch.setattr(kernel, "LIBRARY", library)
            monkeypatch.setattr(kernel, "INTERFACE", interface)
            assert kernel.load() is None
    finally:
        kernel._open.cache_clear()


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
@pytest.mark.parametrize("dtype", TAGS)
def test_a_checkpoint_has_the_same_bytes_without_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, scheme: str
) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), dtype)
    outputs = []
    for name in ("kernel", "off"):
        monkeypatch.setenv("FP8_KERNEL", "" if name == "kernel" else name)
        out = run(QuantizeRequest(model=str(source), out=tmp_path / name / "out", scheme=scheme)).out
        outputs.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert outputs[0] == outputs[1]


def decoded(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The values of E4M3 codes under float32 scales that `block` elements share."""
    rows, columns = codes.shape
    whole = scales.repeat_interleave(block[0], dim=0)[:rows].repeat_interleave(block[1], dim=1)[:, :columns]
    return codes.view(fp8.E4M3).float() * whole


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("dtype", TAGS)
@pytest.mark.parametrize("block", [(1, 4097), (128, 128), (300, 4097), (1, 32)])
def test_the_distance_of_codes_is_what_double_precision_finds(dtype: torch.dtype, block: tuple[int, int]) -> None:
    loaded = kernel.load()
    assert loaded is not None
    generator = torch.Generator().manual_seed(5)
    weight = (torch.randn(300, 4097, generator=generator) * 0.02).to(dtype)
    scales = torch.rand(-(-300 // block[0]), -(-4097 // block[1]), generator=generator) * 1e-4 + 1e-4
    codes = torch.randint(0, 255, weight.shape, generator=generator, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    error = weight.double() - decoded(codes, scales, block).double()
    distance = Distance(0.0, 0.0, 0.0, 0, 0)
    for rows in (range(128), range(128, 300)):
        parts = [as_bytes(whole[rows.start : rows.stop]) for whole in (weight, codes)]
        loaded.compare(TAGS[dtype], rows, 4097, parts[0], parts[1], as_bytes(scales), block, distance)
    assert distance.signal == pytest.approx(float((weight.double() ** 2).sum()), rel=1e-6)
    assert distance.noise == pytest.approx(float((error**2).sum()), rel=1e-5)
    assert distance.largest == pytest.approx(float(error.abs().max()), rel=1e-6)
    assert (distance.row, distance.column) == divmod(int(error.abs().argmax()), 4097)


@pytest.mark.usefixtures("instruction_set")
def test_every_code_decodes_as_torch_decodes_it() -> None:
    loaded = kernel.load()
    assert loaded is not None
    for code in range(256):
        if code & 0x7F == 0x7F:
            continue
        one = torch.tensor([[code]], dtype=torch.uint8)
        distance = Distance(0.0, 0.0, 0.0, 0, 0)
        weight = torch.zeros(1, 1)
        loaded.compare("F32", range(1), 1, as_bytes(weight), as_bytes(one), as_bytes(torch.ones(1)), (1, 1), distance)
        assert distance.largest == abs(one.view(fp8.E4M3).float().item())


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("dtype", [*TAGS, fp8.E4M3])
def test_a_scan_counts_what_torch_counts(dtype: torch.dtype) -> None:
    loaded = kernel.load()
    assert loaded is not None
    generator = torch.Generator().manual_seed(9)
    raw = torch.randint(0, 256, (77, 130 * dtype.itemsize), generator=generator, dtype=torch.uint8)
    raw[5:9] = 0
    raw[7] = torch.tensor(([0] * (dtype.itemsize - 1) + [0x80]) * 130, dtype=torch.uint8)  # −0.0 is a zero too.
    data = raw.view(dtype)
    values = data.float()
    census = loaded.scan("F8_E4M3" if dtype == fp8.E4M3 else TAGS[dtype], (77, 130), as_bytes(data))
    special = values.abs() == 448 if dtype == fp8.E4M3 else values.isinf()
    bad = values.isnan() if dtype == fp8.E4M3 else ~values.isfinite()
    assert (census.nan, census.infinite) == (int(values.isnan().sum()), int(special.sum()))
    assert census.zero_rows == 4
    assert (census.first_row, census.first_column) == tuple(bad.nonzero()[0].tolist())
    clean = loaded.scan("BF16", (3, 4), bytes(24))
    assert (clean.nan, clean.infinite, clean.zero_rows, clean.first_row) == (0, 0, 3, -1)
