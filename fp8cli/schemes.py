"""The FP8 schemes this tool writes: names and plain data, nothing to compute.

The names are llm-compressor's presets. Everything that depends on a scheme (the shape of its scales, the
words in `config.json`, the suffix of the output folder) is read from this table.
"""

from dataclasses import dataclass
from typing import Final, Literal

WeightGranularity = Literal["tensor", "channel", "block"]
ActivationGranularity = Literal["tensor", "token", "group"]
KvCache = Literal["tensor", "head"]
"""FP8 for the KV cache: one scale for the keys and one for the values of a layer, or of each of its KV heads."""

E4M3_MAX: Final = 448.0
"""Largest finite value of torch.float8_e4m3fn."""

BLOCK: Final = 128
"""Rows and columns of one block of FP8_BLOCK; also the group size of its activations."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One row of the table."""

    name: str
    """llm-compressor's preset name."""
    suffix: str
    """Appended to the model's name for the default output folder."""
    summary: str
    """The scheme in words, for help and reports."""
    weights: WeightGranularity
    activations: ActivationGranularity
    dynamic_activations: bool
    needs_calibration: bool
    native_capability: tuple[int, int]
    """Lowest CUDA compute capability on which vLLM runs it as W8A8 (contract, section 6)."""

    def scale_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Shape of `weight_scale` for a weight [rows, columns]; weight ≈ codes × scale."""
        match self.weights:
            case "tensor":
                return (1,)
            case "channel":
                return (rows, 1)
            case "block":
                return (-(-rows // BLOCK), -(-columns // BLOCK))


FP8_DYNAMIC: Final = Scheme(
    name="FP8_DYNAMIC",
    suffix="FP8-dynamic",
    summary="E4M3 weights per channel, activations per token at run time",
    weights="channel",
    activations="token",
    dynamic_activations=True,
    needs_calibration=False,
    native_capability=(8, 9),
)
FP8_BLOCK: Final = Scheme(
    name="FP8_BLOCK",
    suffix="FP8-block",
    summary="E4M3 weights per 128×128 block, activations per group of 128 at run time",
    weights="block",
    activations="group",
    dynamic_activations=True,
    needs_calibration=False,
    native_capability=(9, 0),
)
FP8: Final = Scheme(
    name="FP8",
    suffix="FP8",
    summary="E4M3 weights per tensor, activations per tensor, calibrated",
    weights="tensor",
    activations="tensor",
    dynamic_activations=False,
    needs_calibration=True,
    native_capability=(8, 9),
)

SCHEMES: Final[dict[str, Scheme]] = {scheme.name: scheme for scheme in (FP8_DYNAMIC, FP8_BLOCK, FP8)}
DEFAULT_SCHEME: Final = FP8_DYNAMIC.name
