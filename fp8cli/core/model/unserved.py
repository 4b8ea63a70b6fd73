"""Which nn.Linears vLLM holds unquantized, though they are quantizable by what they are: it has no place for scales.

Read in vLLM 0.32's model code, where such a layer is built without the checkpoint's quantization config: a scale
for it is a name that no parameter has, and vLLM refuses to load the whole checkpoint. `tests/vllm_families.py` lets
vLLM load one of each family.
"""

import re
from typing import Final

# The mixer of the first Mamba (`layers/mamba/mamba_mixer.py`), unlike that of the second, takes no quantization.
_MAMBA: Final = (re.compile(r"\.(mamba|mixer)\."), "a Mamba layer, kept by default: vLLM holds it unquantized")

_UNSERVED: Final = {
    "FalconMambaForCausalLM": _MAMBA,
    "JambaForCausalLM": _MAMBA,
    "MambaForCausalLM": _MAMBA,
}
"""Architecture → which modules, by their full name, and the reason for people."""


def reason_unserved(architecture: str, module: str) -> str | None:
    """Return why vLLM cannot load this nn.Linear quantized; None: it can, as far as is known."""
    place, reason = _UNSERVED.get(architecture, (None, None))
    return reason if place is not None and place.search(module) else None
