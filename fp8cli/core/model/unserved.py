"""Which nn.Linears vLLM holds unquantized, though they are quantizable by what they are: it has no place for scales.

Read in vLLM 0.32's model code, where such a layer is built without the checkpoint's quantization config: a scale
for it is a name that no parameter has, and vLLM refuses to load the whole checkpoint, or puts codes where it wants
values. `tests/vllm_families.py` lets vLLM load one of each family.
"""

import re
from typing import Final

# The mixer of the first Mamba (`layers/mamba/mamba_mixer.py`), unlike that of the second, takes no quantization.
_MAMBA: Final = (re.compile(r"\.(mamba|mixer)\."), "a Mamba layer, kept by default: vLLM holds it unquantized")

_BY_ARCHITECTURE: Final = {
    "FalconMambaForCausalLM": _MAMBA,
    "JambaForCausalLM": _MAMBA,
    "MambaForCausalLM": _MAMBA,
}
"""Architecture → which modules, by their full name, and the reason for people."""

_EVERYWHERE: Final = (
    # One layer of vLLM's, `wk_weights_proj`, holds both (`deepseek_v2.py`, `models/{deepseek_v32,glm5next,hy_v4}`); in
    # DeepSeek-V4 `weights_proj` stands alone.
    (re.compile(r"\.indexer\.(wk|weights_proj)$"), "part of the indexer of sparse attention"),
    # `models/deepseek_v4/compressor.py`, `fused_wkv_wgate`.
    (re.compile(r"\.compressor\.(wkv|wgate)$"), "part of the compressor of sparse attention"),
    # `models/qwen4_exp/common/hyperconnection.py`.
    (re.compile(r"(^|\.)\w*hyper_connection\w*\."), "part of a hyper-connection between layers"),
    # `model_executor/models/diffusion_gemma.py`.
    (re.compile(r"(^|\.)self_conditioning\."), "what a step of diffusion is told of the one before"),
)
"""Modules of several architectures, by their full name, and what they are."""


def reason_unserved(architecture: str, module: str) -> str | None:
    """Return why vLLM cannot load this nn.Linear quantized; None: it can, as far as is known."""
    place, reason = _BY_ARCHITECTURE.get(architecture, (None, None))
    if place is not None and place.search(module):
        return reason
    what = next((what for place, what in _EVERYWHERE if place.search(module)), None)
    return None if what is None else f"{what}, kept by default: vLLM holds it unquantized"
