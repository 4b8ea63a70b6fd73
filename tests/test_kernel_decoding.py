"""Decoding by the compiled kernel against torch's: every code, every instruction set, and what happens without it."""

import mmap
from pathlib import Path

import pytest
import torch

from fp8cli.commands.convert import ConvertRequest, Options
from fp8cli.commands.convert import run as convert
from fp8cli.commands.dequantize import DequantizeRequest
from fp8cli.commands.dequantize import run as dequantize
from fp8cli.core import kernel
from fp8cli.core.kernel import INSTRUCTION_SETS, Kernel
from fp8cli.core.quantizing import fp8
from fp8cli.core.quantizing.kernel_decoding import e4m3_value
from fp8cli.errors import BadInput
from tests.checkpoints import change_tensors
from tests.dialects import MODULES, SOURCES, Tensors, make

TAGS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
EVERY_CODE = torch.arange(256, dtype=torch.uint8)
FINITE_CODES = EVERY_CODE[(EVERY_CODE & 0x7F) != 0x7F]


@pytest.fixture(params=sorted(INSTRUCTION_SETS))
def loaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setenv("FP8_KERNEL", request.param)
    found = kernel.load()
    assert found is not None, "scripts/setup builds the kernel; without it CI would prove nothing"
    return found


def filled(tensor: torch.Tensor) -> mmap.mmap:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    buffer = mmap.mmap(-1, max(len(data), 1))
    buffer[: len(data)] = data
    return buffer


def decoded(
    loaded: Kernel, codes: torch.Tensor, scale: torch.Tensor, tag: str, block: tuple[int, int], skip: int = 0
) -> tuple[torch.Tensor, tuple[int, int]]:
    rows, columns = codes.shape
    out = mmap.mmap(-1, max(rows * columns * 4, 1))
    report = loaded.decode(tag, (rows, columns), filled(codes), filled(scale), block=block, skip=skip, out=out)
    numbers = torch.frombuffer(out, dtype=TAGS[tag], count=rows * columns).view(rows, columns)
    return numbers, (report.bad_row, report.bad_column)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)


@pytest.mark.parametrize("tag", TAGS)
def test_every_code_under_scales_of_every_size(loaded: Kernel, tag: str) -> None:
    """One row for each scale; from the smallest subnormals to where the largest code just stays finite."""
    torch.manual_seed(1)
    limit = torch.finfo(TAGS[tag]).max / 448 * 0.999
    exponents = torch.empty(4000).uniform_(-149, 127)
    scales = torch.exp2(exponents.double()).clamp(max=limit).float()
    scales = torch.cat([scales, torch.tensor([2.0**-24 / 3, 2.0**-14 / 448, 6.0e-8, 1.0, 0.5])]).view(-1, 1)
    codes = FINITE_CODES.repeat(len(scales), 1).view(torch.float8_e4m3fn)
    found, bad = decoded(loaded, codes, scales, tag, (1, codes.shape[1]))
    assert bad == (-1, -1)
    assert torch.equal(bits(found), bits(fp8.decode(codes, scales, block=(1, codes.shape[1])).to(TAGS[tag])))


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize(
    ("block", "skip"), [((128, 128), 0), ((128, 128), 77), ((1, 32), 0), ((300, 400), 5), ((3, 7), 2)]
)
def test_blocks_of_any_size_begun_anywhere(loaded: Kernel, tag: str, block: tuple[int, int], skip: int) -> None:
    torch.manual_seed(2)
    rows, columns = 200, 209
    codes = FINITE_CODES[torch.randint(len(FINITE_CODES), (rows, columns))].view(torch.float8_e4m3fn)
    bands, across = -(-(skip + rows) // block[0]), -(-columns // block[1])
    scales = torch.rand(bands, across) + 0.01
    found, bad = decoded(loaded, codes, scales, tag, block, skip)
    # The oracle spreads the scale over every element by itself.
    spread = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[skip : skip + rows, :columns]
    assert bad == (-1, -1)
    assert torch.equal(bits(found), bits((codes.float() * spread).to(TAGS[tag])))


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize(
    ("code", "scale"), [(0x7F, 1.0), (0xFF, 1.0), (0x08, float("nan")), (0x08, float("inf")), (0x00, float("inf"))]
)
def test_the_first_number_that_is_not_finite_is_found(loaded: Kernel, tag: str, code: int, scale: float) -> None:
    codes, scales = torch.full((5, 40), 0x30, dtype=torch.uint8), torch.ones(5, 2)
    codes[3, 33], scales[3, 1] = code, scale
    _, bad = decoded(loaded, codes.view(torch.float8_e4m3fn), scales, tag, (1, 25))
    assert bad == (3, 33 if scale == 1.0 else 25)


def test_float16_ends_where_torch_says_that_it_does(loaded: Kernel) -> None:
    """65,519.99 is 65,504 in float16, and 65,520 is infinite: 448 × 146.25."""
    codes = torch.tensor([[0x7E, 0xFE]], dtype=torch.uint8).view(torch.float8_e4m3fn)
    for scale in (146.2499, 146.25, 146.26):
        found, bad = decoded(loaded, codes, torch.tensor([[scale]]), "F16", (1, 2))
        wanted = (codes.float() * scale).half()
        assert (bad == (-1, -1)) is bool(torch.isfinite(wanted).all())
        if bad == (-1, -1):
            assert torch.equal(bits(found), bits(wanted))


@pytest.mark.parametrize("tag", ["BF16", "F16", "F8_E8M0", "U8"])
def test_every_scale_is_widened_as_torch_does(loaded: Kernel, tag: str) -> None:
    wide = tag in TAGS
    every = torch.arange(2**16 if wide else 256, dtype=torch.int32).to(torch.uint16 if wide else torch.uint8)
    values = every.view(TAGS[tag] if wide else torch.float8_e8m0fnu)
    out = mmap.mmap(-1, 4 * len(every))
    loaded.widen(tag, len(every), filled(every), out)
    found = torch.frombuffer(out, dtype=torch.float32, count=len(every))
    assert torch.equal(found.isnan(), values.float().isnan())
    finite = ~found.isnan()
    assert torch.equal(bits(found[finite]), bits(values.float()[finite]))


def test_float32_is_narrowed_to_bfloat16_as_torch_does(loaded: Kernel) -> None:
    torch.manual_seed(3)
    values = torch.randint(-(2**31), 2**31, (100_000,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    halves = torch.tensor([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F7F8000, 0x00008000, 0x00018000], dtype=torch.int32)
    values = torch.cat([values, halves.view(torch.float32), torch.tensor([float("nan"), -float("inf"), -0.0])])
    out = mmap.mmap(-1, 2 * len(values))
    loaded.narrow(len(values), filled(values), out)
    found = torch.frombuffer(out, dtype=torch.bfloat16, count=len(values))
    assert torch.equal(found.isnan(), values.isnan())
    finite = ~found.isnan()
    assert torch.equal(bits(found[finite]), bits(values.bfloat16()[finite]))


def test_a_code_is_read_one_by_one_as_torch_reads_it() -> None:
    for code, value in zip(FINITE_CODES.tolist(), FINITE_CODES.view(torch.float8_e4m3fn).float().tolist(), strict=True):
        assert e4m3_value(code) == value
    assert e4m3_value(0xFF) != e4m3_value(0xFF)


# Without the kernel


def digest(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", SOURCES)
def test_without_the_kernel_torch_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    source = make(tmp_path / "source", name)
    target = "fbgemm" if "fbgemm" not in name else "deepseek"
    for setting in ("", "off"):
        monkeypatch.setenv("FP8_KERNEL", setting)
        folder = tmp_path / f"kernel-{setting}"
        options = Options(model=str(source), out=folder / "plain")
        folder.mkdir()
        dequantize(DequantizeRequest(options=options, dtype="float16"))
        options = Options(model=str(source), out=folder / "again", piece_bytes=30_000)
        convert(ConvertRequest(options=options, to=target, requantize=True))
        first = next(to for to in ("compressed-tensors", "modelopt", "fp8") if to != name.partition(",")[0])
        options = Options(model=str(source), out=folder / "other")
        convert(ConvertRequest(options=options, to=first, requantize=True))
    for made in ("plain", "again", "other"):
        assert digest(tmp_path / "kernel-" / made) == digest(tmp_path / "kernel-off" / made), made


@pytest.mark.parametrize("kind", ["code", "scale", "too large"])
def test_without_the_kernel_the_same_is_refused_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def damage(tensors: Tensors) -> None:
        codes, scale = tensors[f"{MODULES[4]}.weight"], tensors[f"{MODULES[4]}.weight_scale_inv"]
        match kind:
            case "code":
                codes.view(torch.uint8)[300, 200] = 0xFF
            case "scale":
                scale[2, 1] = float("inf")
            case _:
                scale[2, 1] = 3000.0

    source = make(tmp_path / "source", "deepseek")
    change_tensors(source, damage)
    words = []
    for setting in ("", "off"):
        monkeypatch.setenv("FP8_KERNEL", setting)
        with pytest.raises(BadInput) as refused:
            dequantize(DequantizeRequest(options=Options(model=str(source), out=tmp_path / "out"), dtype="float16"))
        words.append(str(refused.value))
    assert words[0] == words[1]
    assert f"`{MODULES[4]}.weight`" in words[0]
