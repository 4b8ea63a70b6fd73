"""GPUs by the names people type: how much memory each has, and which generation it is.

Memory is the total that the driver reports, the figure that `nvidia-smi` and `rocm-smi` print; it is below the round
number on the box. It was read from public listings of those tools, collected in November 2026. Where no listing was
found the round number of the maker stands in, and the row says that it is nominal.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from shlex import quote
from typing import Final

from fp8cli.core.machine.gpus import Gpu
from fp8cli.core.serving.modes import Capability
from fp8cli.errors import UsageError

MIB: Final = 2**20
GIB: Final = 2**30

_SHOWN_NAMES: Final = 4


@dataclass(frozen=True, kw_only=True)
class GpuModel:
    """A GPU as the question "does it fit?" needs it."""

    name: str
    memory_bytes: int | None
    """None where the driver does not tell."""
    capability: Capability | None = None
    """CUDA compute capability; None on AMD GPUs."""
    gfx: str | None = None
    """Instruction set of an AMD GPU, such as `gfx942`; None on NVIDIA GPUs."""
    nominal: bool = False
    """The memory is the maker's round number, not the driver's."""
    count: int | None = None
    """How many of them this machine has; None: it is not known to have any."""


def _nvidia(capability: Capability, *rows: tuple[str, int, str]) -> Iterable[tuple[GpuModel, str]]:
    for name, mib, others in rows:
        yield GpuModel(name=name, memory_bytes=mib * MIB, capability=capability), others


def _amd(gfx: str, *rows: tuple[str, int, str]) -> Iterable[tuple[GpuModel, str]]:
    for name, gib, others in rows:
        yield GpuModel(name=name, memory_bytes=gib * GIB, gfx=gfx, nominal=True), others


# Name, MiB, and other names as `_key` leaves them.
_ROWS: Final = (
    *_nvidia((7, 0), ("V100-16GB", 16_384, ""), ("V100-32GB", 32_768, "V100")),
    *_nvidia((7, 5), ("T4", 15_360, ""), ("RTX 2080 Ti", 11_264, "")),
    *_nvidia(
        (8, 0),
        ("A100-40GB", 40_960, ""),
        ("A100-80GB", 81_920, "A100"),
        ("A800", 81_920, "A80080GB"),
        ("A30", 24_576, ""),
    ),
    *_nvidia(
        (8, 6),
        ("A10", 23_028, "A1024GB"),
        ("A10G", 23_028, ""),
        ("A40", 46_068, ""),
        ("RTX A6000", 49_140, ""),
        ("RTX A5000", 24_564, ""),
        ("RTX 3090", 24_576, ""),
        ("RTX 3090 Ti", 24_564, ""),
    ),
    *_nvidia(
        (8, 9),
        ("L4", 23_034, "L424GB"),
        ("L40", 46_068, ""),
        ("L40S", 46_068, "L40S48GB"),
        ("RTX 6000 Ada", 49_140, "6000ADA48GB ADA6000"),
        ("RTX 4090", 24_564, "409024GB"),
        ("RTX 4080", 16_376, ""),
        ("RTX 4080 Super", 16_376, ""),
    ),
    *_nvidia(
        (9, 0),
        ("H100", 81_559, "H10080GB"),
        ("H800", 81_559, "H80080GB"),
        ("H100 NVL", 95_830, "H100NVL94GB"),
        ("H20", 97_871, "H2096GB"),
        ("H200", 143_771, "H200141GB H200NVL"),
        ("GH200", 97_871, "GH200480GB GH20096GB"),
    ),
    *_nvidia((10, 0), ("B200", 183_359, "B200180GB"), ("GB200", 189_471, "")),
    *_nvidia(
        (12, 0),
        ("RTX PRO 6000", 97_887, "PRO600096GB 6000PRO 6000BLACKWELL"),
        ("RTX 5090", 32_607, "509032GB"),
        ("RTX 5080", 16_303, ""),
        ("RTX 5070 Ti", 16_303, ""),
    ),
    (GpuModel(name="B300", memory_bytes=288 * 10**9, capability=(10, 3), nominal=True), ""),
    (GpuModel(name="GB300", memory_bytes=288 * 10**9, capability=(10, 3), nominal=True), ""),
    (GpuModel(name="MI300X", memory_bytes=206_141_652_992, gfx="gfx942"), "MI300"),
    *_amd("gfx942", ("MI325X", 256, "MI325")),
    *_amd("gfx950", ("MI350X", 288, "MI350"), ("MI355X", 288, "MI355")),
    *_amd("gfx90a", ("MI210", 64, ""), ("MI250X", 64, "MI250")),
    *_amd("gfx1100", ("RX 7900 XTX", 24, "7900XTX")),
    *_amd("gfx1201", ("AI PRO R9700", 32, "R9700"), ("RX 9070 XT", 16, "9070XT")),
)

DEFAULTS: Final = ("T4", "A100-80GB", "L40S", "RTX 4090", "H100", "H200", "B200", "RTX PRO 6000", "MI300X")
"""The short table for a machine without a GPU: one of each generation, and the sizes people rent."""

# Makers, families, sockets and memory types: what a driver's name has around the word that people type.
_NOISE: Final = re.compile(
    r"NVIDIA|AMD|GEFORCE|RTX|TESLA|QUADRO|INSTINCT|RADEON|TENSOR|CORE|GPU|SXM\d?|PCIE|HBM\d?E?|OAM|GENERATION|GEN|"
    r"WORKSTATION|SERVER|EDITION|MAX|Q"
)
_WORD: Final = re.compile(r"[A-Z0-9]+")


def known_gpus() -> tuple[GpuModel, ...]:
    """Return the whole catalogue, oldest generation first, AMD last."""
    return tuple(model for model, _ in _ROWS)


def default_gpus() -> tuple[GpuModel, ...]:
    """Return the models of the short table."""
    return tuple(find_gpu_model(name) for name in DEFAULTS)


def find_gpu_model(name: str) -> GpuModel:
    """Return the GPU that `name` means: `H100`, `h100-80gb`, `4090` or a driver's own name. Raises UsageError."""
    names = _names()
    model = names.get(_key(name))
    if model is not None:
        return model
    near = get_close_matches(_key(name), names, n=_SHOWN_NAMES, cutoff=0.5)
    shown = tuple(dict.fromkeys(names[key].name for key in near)) or DEFAULTS
    message = f"--gpu `{name}` is no GPU of this tool's catalogue"
    raise UsageError(message, hint=f"it knows {', '.join(shown)} and others, by such names as --gpu {quote(shown[0])}")


def models_found(gpus: Iterable[Gpu]) -> tuple[GpuModel, ...]:
    """Return the GPUs of this machine as models, equal ones once with their number, in the order they were found."""
    models = [GpuModel(name=gpu.name, memory_bytes=gpu.memory_bytes, capability=gpu.capability) for gpu in gpus]
    return tuple(
        GpuModel(
            name=model.name,
            memory_bytes=model.memory_bytes,
            capability=model.capability,
            count=models.count(model),
        )
        for model in dict.fromkeys(models)
    )


@cache
def _names() -> dict[str, GpuModel]:
    """Every name in the catalogue, as `_key` leaves it."""
    return {key: model for model, others in _ROWS for key in (_key(model.name), *others.split())}


def _key(name: str) -> str:
    """Return what names of the same GPU share: `NVIDIA H100 80GB HBM3` and `h100-80gb` are both `H10080GB`."""
    words = (re.sub(r"^(?:RTX|GTX|NVIDIA)(?=\d|A\d)", "", word) for word in _WORD.findall(name.upper()))
    kept = [word for word in words if not _NOISE.fullmatch(word)]
    # `RTX PRO 6000 Blackwell` says its generation twice; `RTX 6000 Blackwell` needs the word.
    return "".join(word for word in kept if not (word == "BLACKWELL" and "PRO" in kept))
