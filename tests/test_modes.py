"""core.serving.modes: the hardware table, row by row, and the sources of vLLM it was read from."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from fp8cli.core.serving.modes import (
    EXPERTS_FROM,
    NATIVE_FROM,
    Capability,
    Kind,
    amd_note,
    kind_of,
    kv_cache_words,
    mode_of,
    mode_on,
    mode_on_amd,
    mode_on_cpu,
)
from fp8cli.schemes import FP8, FP8_BLOCK, FP8_DYNAMIC, SCHEMES

N, W, U = "native", "weight-only", "unsupported"


@pytest.mark.parametrize(
    ("gpu", "capability", "linear", "block", "mx", "experts", "kv_cache"),
    [
        ("V100", (7, 0), U, U, U, U, "does not run"),
        ("T4", (7, 5), W, W, W, W, "does not run"),
        ("A100", (8, 0), W, W, W, W, "needs the FlashInfer backend"),
        ("A10", (8, 6), W, W, W, W, "needs the FlashInfer backend"),
        ("L40S", (8, 9), N, W, W, N, "runs"),
        ("H100", (9, 0), N, N, W, N, "runs"),
        ("B200", (10, 0), N, N, N, N, "runs"),
        ("RTX PRO 6000", (12, 0), N, N, N, N, "runs"),
    ],
)
def test_each_generation_does_what_the_table_says(
    gpu: str, capability: Capability, linear: str, block: str, mx: str, experts: str, kv_cache: str
) -> None:
    assert mode_of("dynamic", capability) == mode_of("static", capability) == linear, gpu
    assert mode_of("block", capability) == block
    assert mode_of("mx", capability) == mx
    assert mode_of("dynamic", capability, experts=True) == mode_of("block", capability, experts=True) == experts
    assert kv_cache_words(capability) == kv_cache


def test_weights_alone_are_never_multiplied_in_fp8_and_make_no_experts() -> None:
    assert [mode_of("weights", capability) for capability in ((7, 0), (7, 5), (9, 0))] == [U, W, W]
    assert mode_of("weights", (9, 0), experts=True) == U


def test_every_scheme_is_of_one_kind_and_runs_as_that_kind_does() -> None:
    assert {name: kind_of(scheme) for name, scheme in SCHEMES.items()} == {
        "FP8_DYNAMIC": "dynamic",
        "FP8_BLOCK": "block",
        "FP8": "static",
    }
    for scheme in (FP8, FP8_BLOCK, FP8_DYNAMIC):
        assert NATIVE_FROM[kind_of(scheme)] == scheme.native_capability
        assert mode_on(scheme, scheme.native_capability) == "native"


@pytest.mark.parametrize(
    ("gfx", "dynamic", "weights", "mx", "converts"),
    [
        ("gfx90a", U, U, U, False),
        ("gfx942", N, U, None, True),
        ("gfx950", N, U, None, False),
        ("gfx1100", U, U, U, False),
        ("gfx1201", N, U, None, False),
    ],
)
def test_an_amd_gpu_runs_fp8_natively_or_not_at_all(
    gfx: str, dynamic: str, weights: str, mx: str | None, converts: bool
) -> None:
    assert mode_on_amd("dynamic", gfx) == mode_on_amd("block", gfx) == dynamic
    assert mode_on_amd("weights", gfx) == weights
    assert mode_on_amd("mx", gfx) == mx
    assert (amd_note(gfx) is not None) == converts


@pytest.mark.parametrize(
    ("kind", "amx", "experts", "mode"),
    [
        ("dynamic", False, False, N),
        ("dynamic", False, True, U),
        ("static", False, False, U),
        ("block", False, False, U),
        ("static", True, False, U),
        ("block", True, False, W),
        ("block", True, True, W),
        ("block", False, True, U),
        ("dynamic", True, True, U),
        ("weights", True, False, U),
        ("mx", True, False, U),
    ],
)
def test_a_processor_runs_fp8_dynamic_and_blocks_with_amx(kind: Kind, amx: bool, experts: bool, mode: str) -> None:
    assert mode_on_cpu(kind, amx=amx, experts=experts) == mode


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_one_scale_for_a_whole_weight_runs_on_no_processor(kind: Kind) -> None:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    vllm = Path(spec.origin).parent
    rounding = (vllm / "model_executor/layers/quantization/utils/w8a8_utils.py").read_text("utf-8")
    again = rounding.partition("def requantize_with_max_scale")[2].partition("\ndef ")[0]
    assert "ops.scaled_fp8_quant(weight_dq, max_w_scale)" in again
    # An operator that is declared without arguments can be called with none: it is there in name alone.
    libraries = sorted(vllm.glob("_C*.so"))
    assert libraries
    assert all(b"static_scaled_fp8_quant() -> ()" in library.read_bytes() for library in libraries)
    assert [mode_on_cpu(kind, amx=amx, one_scale=True) for amx in (False, True)] == [U, U]


@pytest.mark.slow
def test_the_floors_are_those_of_the_installed_vllm() -> None:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    vllm = Path(spec.origin).parent
    assert EXPERTS_FROM == (8, 9)
    cuda = (vllm / "platforms" / "cuda.py").read_text("utf-8").partition("def supports_fp8")[2]
    assert "return cls.has_device_capability(89)" in cuda[:200]
    rocm = (vllm / "platforms" / "rocm.py").read_text("utf-8")
    assert 'return "gfx94" in _GCN_ARCH' in rocm.partition("def is_fp8_fnuz")[2][:250]
    assert '_ON_RDNA4 = any(arch in _GCN_ARCH for arch in ["gfx1200", "gfx1201"])' in rocm
    triton = (vllm / "v1/attention/backends/triton_attn.py").read_text("utf-8")
    assert "current_platform.has_device_capability(89)" in triton
    cpu = (vllm / "model_executor/kernels/linear/scaled_mm/cpu.py").read_text("utf-8")
    assert cpu.count("torch.cpu._is_amx_tile_supported()") >= 4
