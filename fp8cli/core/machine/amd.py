"""The AMD GPUs of this machine, read from the kernel's own files: no ROCm, no library, nothing that could be missing.

The topology of the kernel driver (KFD) names each processor by its instruction set, such as gfx942; the graphics
side (DRM) of the same device has the name and the memory. Environment variables that hide GPUs from a process
(HIP_VISIBLE_DEVICES and its like) are named, not obeyed.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fp8cli.core.machine.probes import ROOT

HIDING: Final = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

_NODES: Final = "sys/class/kfd/kfd/topology/nodes"
_DEVICES: Final = "sys/class/drm"


@dataclass(frozen=True, kw_only=True)
class AmdGpu:
    """One GPU that the kernel driver offers for computing."""

    name: str
    gfx: str
    """Its instruction set, such as `gfx942`."""
    memory_bytes: int | None
    free_bytes: int | None


def find_amd_gpus(root: Path = ROOT) -> tuple[AmdGpu, ...]:
    """Return the AMD GPUs in the order of the kernel's topology. Raises OSError or ValueError if it makes no sense."""
    nodes = root / _NODES
    if not nodes.is_dir():
        return ()
    folders = sorted(nodes.iterdir(), key=lambda folder: int(folder.name))
    return tuple(
        _describe(root, folder, properties) for folder, properties in map(_node, folders) if _is_gpu(properties)
    )


def hiding(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the variables that are set and may hide GPUs."""
    return tuple(name for name in HIDING if name in environ)


def _node(folder: Path) -> tuple[Path, Mapping[str, int]]:
    pairs = (line.split() for line in (folder / "properties").read_text(encoding="utf-8").splitlines())
    return folder, {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _is_gpu(properties: Mapping[str, int]) -> bool:
    # Processors are nodes too, without this number.
    return properties.get("gfx_target_version", 0) > 0


def _describe(root: Path, folder: Path, properties: Mapping[str, int]) -> AmdGpu:
    device = root / _DEVICES / f"renderD{properties.get('drm_render_minor', 0)}" / "device"
    gfx = gfx_name(properties["gfx_target_version"])
    total, used = _number(device / "mem_info_vram_total"), _number(device / "mem_info_vram_used")
    return AmdGpu(
        name=next(filter(None, (_text(device / "product_name"), _text(folder / "name"))), f"AMD GPU {gfx}"),
        gfx=gfx,
        memory_bytes=total,
        free_bytes=None if total is None or used is None else total - used,
    )


def gfx_name(version: int) -> str:
    """Return the name of an instruction set: 90402 is gfx942, 90010 gfx90a, 110001 gfx1101."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _text(file: Path) -> str | None:
    with suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace").strip()
    return None


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text is not None and text.isdecimal() else None
