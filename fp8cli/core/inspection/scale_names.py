"""Which tensors undo codes instead of being weights: told by their names, which every quantizer chooses for itself."""

from collections.abc import Mapping
from typing import Final, Literal

Kind = Literal["weight", "activation", "cache", "zero point", "packing"]
"""What a scale is for. `packing`: what a format needs besides scales to unpack its codes."""

FP8_DTYPES: Final = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
"""Tags of 8-bit floats that hold weights. F8_E8M0 is not among them: it only ever holds scales."""

# Last components of names. CLIP's `logit_scale` is a weight, so `_scale` alone tells nothing.
_KINDS: Final[Mapping[str, Kind]] = {
    "weight_scale": "weight",
    "weight_scale_inv": "weight",
    "weight_scale_2": "weight",
    "weight_global_scale": "weight",
    "_weight_scale": "weight",
    "scales": "weight",
    "absmax": "weight",
    "nested_absmax": "weight",
    "SCB": "weight",
    "input_scale": "activation",
    "input_scale_inv": "activation",
    "input_scale_ub": "activation",
    "input_global_scale": "activation",
    "activation_scale": "activation",
    "activation_scale_inv": "activation",
    "output_scale": "cache",
    "prob_output_scale": "cache",
    "q_scale": "cache",
    "k_scale": "cache",
    "v_scale": "cache",
    "kv_scale": "cache",
    "prob_scale": "cache",
    "weight_zero_point": "zero point",
    "input_zero_point": "zero point",
    "q_zero_point": "zero point",
    "k_zero_point": "zero point",
    "v_zero_point": "zero point",
    "qzeros": "zero point",
    "g_idx": "packing",
    "quant_map": "packing",
    "nested_quant_map": "packing",
    "bitsandbytes__nf4": "packing",
    "bitsandbytes__fp4": "packing",
    "weight_format": "packing",
    "weight_shape": "packing",
    "weight_g_idx": "packing",
}
_PLAIN: Final = frozenset({"weight", "bias"})
# Fused experts have no `.weight`: the scale of `experts.gate_up_proj` is `experts.gate_up_proj_scale`.
_FUSED: Final[Mapping[str, Kind]] = {
    "_input_scale": "activation",
    "_weight_scale_inv": "weight",
    "_weight_scale": "weight",
    "_scale_inv": "weight",
    "_scale": "weight",
    "_scales": "weight",
}


def scale_label(name: str, dtypes: Mapping[str, str]) -> str | None:
    """Return what the scale `name` is called, such as `weight_scale`; None if it is no scale.

    dtypes: the dtype tag of every tensor of the checkpoint, because a `.scale` is one only beside an FP8 weight.
    """
    parent, _, last = name.rpartition(".")
    if last in _PLAIN:
        return None
    if last in _KINDS:
        return last
    if last == "scale":
        return "scale" if dtypes.get(f"{parent}.weight") in FP8_DTYPES else None
    if last.endswith(("_scale_inv", "zero_point")):
        return last if last.endswith("zero_point") else "weight_scale_inv"
    for ending in _FUSED:
        if name.endswith(ending):
            weight = name.removesuffix(ending)
            return ending[1:] if weight in dtypes or f"{weight}_blocks" in dtypes else None
    return None


def kind_of(label: str) -> Kind:
    """What a scale of that label is for."""
    if label.endswith("zero_point"):
        return "zero point"
    return _KINDS.get(label) or _FUSED.get(f"_{label}") or "weight"
