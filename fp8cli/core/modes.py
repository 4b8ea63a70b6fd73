"""Which GPUs run an FP8 checkpoint, and how: by compute capability and scheme, for vLLM on CUDA.

    capability ≥ the scheme's `native_capability`    native W8A8: weights and activations multiplied in FP8
    from 7.5 up to there                             weight-only: FP8 weights, arithmetic in 16 bits (Marlin)
    below 7.5                                        unsupported

Source: vLLM 0.32, `get_min_capability` of CompressedTensorsW8A8Fp8 (89) and CompressedTensorsW8A16Fp8 (75), and
the order of its kernels: CUTLASS multiplies 128×128 blocks from 9.0 on, so FP8_BLOCK is weight-only on 8.9.
"""

from dataclasses import dataclass
from typing import Final, Literal

from fp8cli.schemes import Scheme

Capability = tuple[int, int]
Mode = Literal["native", "weight-only", "unsupported"]

WEIGHT_ONLY_CAPABILITY: Final[Capability] = (7, 5)
"""Lowest compute capability of Marlin's FP8 kernels, whatever the scheme."""

BF16_CAPABILITY: Final[Capability] = (8, 0)
"""Lowest compute capability on which vLLM computes in BF16; below it a BF16 model needs `--dtype half`."""

MODE_WORDS: Final[dict[Mode, str]] = {
    "native": "computes in FP8 (W8A8)",
    "weight-only": "keeps weights in FP8 and computes in 16 bits",
    "unsupported": "cannot load it",
}


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
    """Tell how vLLM runs `scheme` on a GPU of `capability`."""
    if capability >= scheme.native_capability:
        return "native"
    return "weight-only" if capability >= WEIGHT_ONLY_CAPABILITY else "unsupported"


def serving_modes(scheme: Scheme) -> tuple[ServingMode, ...]:
    """Tell how every generation of GPUs serves `scheme`, oldest first."""
    return tuple(
        ServingMode(
            generation=generation,
            mode=(mode := mode_on(scheme, generation.capability)),
            note=_note(mode, generation.capability),
        )
        for generation in GENERATIONS
    )


def _note(mode: Mode, capability: Capability) -> str | None:
    if mode != "unsupported" and capability < BF16_CAPABILITY:
        return "has no BF16: serve with --dtype half"
    return None
