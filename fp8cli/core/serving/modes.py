"""Which processors run an FP8 checkpoint, and how: by kind of FP8 and generation, for vLLM 0.32.

On NVIDIA GPUs the compute capability decides:

    from the kind's own row in NATIVE_FROM on    native: weights and activations multiplied in FP8 (W8A8)
    from 7.5 up to there                         weight-only: FP8 weights, arithmetic in 16 bits (Marlin)
    below 7.5                                    unsupported

Source: vLLM 0.32, `get_min_capability` of CompressedTensorsW8A8Fp8 (89) and CompressedTensorsW8A16Fp8 (75), and
the order of its kernels: CUTLASS multiplies 128×128 blocks from 9.0 on, so FP8_BLOCK is weight-only on 8.9.
On AMD GPUs a kind is native or does not run; on processors blocks are weight-only, and take AMX.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fp8cli.schemes import FP8, FP8_BLOCK, FP8_DYNAMIC, Scheme

Capability = tuple[int, int]
Mode = Literal["native", "weight-only", "unsupported"]
Kind = Literal["dynamic", "static", "block", "weights", "mx"]
"""Of linear layers, as vLLM tells them apart: E4M3 with activation scales per token, with calibrated ones, both in
blocks, weights alone, and MXFP8."""

VLLM: Final = "0.32"
"""The release of vLLM that all of this was read from."""

WEIGHT_ONLY_CAPABILITY: Final[Capability] = (7, 5)
"""Lowest compute capability of Marlin's FP8 kernels, whatever the scheme."""

BF16_CAPABILITY: Final[Capability] = (8, 0)
"""Lowest compute capability on which vLLM computes in BF16; below it a BF16 model needs `--dtype half`."""

MODE_WORDS: Final[dict[Mode, str]] = {
    "native": "computes in FP8 (W8A8)",
    "weight-only": "keeps weights in FP8 and computes in 16 bits",
    "unsupported": "cannot load it",
}


NATIVE_FROM: Final[Mapping[Kind, Capability | None]] = {
    "dynamic": FP8_DYNAMIC.native_capability,
    "static": FP8.native_capability,
    "block": FP8_BLOCK.native_capability,
    "weights": None,
    "mx": (10, 0),
}
"""Lowest compute capability that multiplies the kind in FP8; None: none does."""

EXPERTS_FROM: Final[Capability] = (8, 9)
"""The same for the experts of a mixture in E4M3, in blocks or not: Triton's kernels; below it Marlin's."""

KV_CACHE_FROM: Final[Capability] = (8, 9)
"""Lowest compute capability on which every attention backend takes an FP8 KV cache; FlashInfer does from 8.0 on."""

HEAD_SCALES_ON: Final = (9, 10)
"""Major compute capabilities on which an FP8 KV cache may have a scale for each head: those of FlashAttention 3 and 4,
the only backends that take them (vllm/v1/attention/backends/flash_attn.py `supports_per_head_quant_scales`)."""

AMD_FNUZ: Final = ("gfx94",)
"""MI300 and MI325: FP8 with another zero and half the range."""

AMD_FP8: Final = (*AMD_FNUZ, "gfx95", "gfx12")
"""Those, MI350 and RDNA 4. Older ones have no FP8."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """GPUs of one compute capability."""

    name: str
    capability: Capability
    examples: str


GENERATIONS: Final = (
    Generation(name="Volta", capability=(7, 0), examples="V100"),
    Generation(name="Turing", capability=(7, 5), examples="T4, RTX 20"),
    Generation(name="Ampere", capability=(8, 0), examples="A100, A30"),
    Generation(name="Ampere", capability=(8, 6), examples="A10, A40, RTX A6000, RTX 30"),
    Generation(name="Ada", capability=(8, 9), examples="L4, L40S, RTX 40"),
    Generation(name="Hopper", capability=(9, 0), examples="H100, H200, GH200"),
    Generation(name="Blackwell", capability=(10, 0), examples="B200, GB200"),
    Generation(name="Blackwell", capability=(10, 3), examples="B300, GB300"),
    Generation(name="Blackwell", capability=(12, 0), examples="RTX PRO 6000, RTX 50"),
)
"""Data-centre and desktop GPUs, oldest first."""


@dataclass(frozen=True, kw_only=True)
class ServingMode:
    """How one generation of GPUs serves a scheme."""

    generation: Generation
    mode: Mode
    note: str | None
    """What else its user must know."""


def mode_on(scheme: Scheme, capability: Capability) -> Mode:
    """Tell how vLLM runs `scheme` on an NVIDIA GPU of `capability`."""
    return mode_of(kind_of(scheme), capability)


def kind_of(scheme: Scheme) -> Kind:
    """Return the kind of FP8 that a scheme is."""
    if scheme.weights == "block":
        return "block"
    return "dynamic" if scheme.dynamic_activations else "static"


def mode_of(kind: Kind, capability: Capability, *, experts: bool = False) -> Mode:
    """Tell how vLLM runs linear layers of `kind`, or experts of it, on an NVIDIA GPU.

    Experts with weights alone in FP8 run nowhere: vLLM knows no such mixture.
    """
    if capability < WEIGHT_ONLY_CAPABILITY or (experts and kind == "weights"):
        return "unsupported"
    native = NATIVE_FROM[kind]
    if experts and kind != "mx" and native is not None:
        native = EXPERTS_FROM
    return "weight-only" if native is None or capability < native else "native"


def takes_head_scales(capability: Capability) -> bool:
    """Tell whether an NVIDIA GPU takes an FP8 KV cache with a scale for each head."""
    return capability[0] in HEAD_SCALES_ON


def kv_cache_words(capability: Capability) -> str:
    """Say what an FP8 KV cache does on an NVIDIA GPU."""
    if capability >= KV_CACHE_FROM:
        return "runs"
    return "needs the FlashInfer backend" if capability >= BF16_CAPABILITY else "does not run"


def mode_on_amd(kind: Kind, gfx: str) -> Mode | None:
    """Tell how vLLM runs `kind` on an AMD GPU such as `gfx942`; None where the table says nothing."""
    if not gfx.startswith(AMD_FP8):
        return "unsupported"
    if kind == "mx":
        return None
    return "unsupported" if kind == "weights" else "native"


def amd_note(gfx: str) -> str | None:
    """Say what else the user of an AMD GPU must know."""
    if gfx.startswith(AMD_FNUZ):
        return "its FP8 is E4M3FNUZ: vLLM converts the codes and doubles the scales when it loads them"
    return None


def mode_on_cpu(kind: Kind, *, amx: bool, experts: bool = False, one_scale: bool = False) -> Mode:
    """Tell how vLLM's CPU build runs `kind`; `amx`: the processor has AMX. Tried without AMX; read, with it.

    one_scale: a weight has a single scale, as in FP8. AMX has a kernel for it, but no such weight gets there: loading
    rounds it again (`requantize_with_max_scale`) by `static_scaled_fp8_quant`, which the build names and lacks.
    Blocks take AMX, whose kernels leave activations in 16 bits: CPUFp8BlockScaledMMKernel, and CPUExpertsFp8, the only
    one that the build has for experts in FP8.
    """
    if kind == "dynamic" and not (experts or one_scale):
        return "native"
    return "weight-only" if kind == "block" and amx else "unsupported"


def serving_modes(scheme: Scheme) -> tuple[ServingMode, ...]:
    """Tell how every generation of GPUs serves `scheme`, oldest first."""
    return tuple(
        ServingMode(
            generation=generation,
            mode=(mode := mode_on(scheme, generation.capability)),
            note=note_on(mode, generation.capability),
        )
        for generation in GENERATIONS
    )


def note_on(mode: Mode, capability: Capability) -> str | None:
    """Say what else the user of an NVIDIA GPU must know."""
    if mode != "unsupported" and capability < BF16_CAPABILITY:
        return "has no BF16: serve with --dtype half"
    return None
