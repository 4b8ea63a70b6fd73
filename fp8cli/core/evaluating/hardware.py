"""What an evaluation runs on, in the words a record keeps."""

import platform
from contextlib import suppress
from pathlib import Path

from fp8cli.core.machine.amd import find_amd_gpus
from fp8cli.core.machine.gpus import Gpus, find_gpus
from fp8cli.core.machine.probes import ROOT, usable_cpus


def describe(root: Path = ROOT, gpus: Gpus | None = None) -> tuple[str, tuple[str, ...]]:
    """Return the processor with the number of its cores that may be used, and the names of the GPUs in CUDA's order.

    `gpus`: NVIDIA's, found when left out. AMD's count only where there are none of NVIDIA's.
    """
    cores = usable_cpus(root)
    processor = f"{_processor(root)}, {cores:,} {'core' if cores == 1 else 'cores'}"
    found = find_gpus(root=root) if gpus is None else gpus
    names = [gpu.name for gpu in found.visible]
    if not names:
        with suppress(OSError, ValueError, LookupError):  # A driver that makes no sense is the doctor's to report.
            names = [gpu.name for gpu in find_amd_gpus(root)]
    return processor, tuple(names)


def _processor(root: Path) -> str:
    """Return the model of the processor; its architecture where the kernel names none, as on ARM and macOS."""
    with suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.machine() or "unknown processor"
