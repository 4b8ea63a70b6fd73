"""Where a measurement was taken: processor, memory, file systems, versions; asked of the system, never guessed."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

DISTRIBUTIONS: Final = ("fp8cli", "torch", "llmcompressor", "compressed-tensors", "transformers", "safetensors")
GB: Final = 10**9


def versions() -> dict[str, str]:
    """Version of Python and of each library that plays a part and is installed."""
    found = {"python": platform.python_version()}
    return found | {name: version for name in DISTRIBUTIONS if (version := version_of(name)) is not None}


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, str]:
    """Processor, memory, GPU and system, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "processor": _processor(),
        "cores": f"{cores}",
        "memory": f"{memory:.1f} GiB",
        "gpu": _gpu() or "none",
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
    }


def file_system(folder: Path) -> str:
    """Type of the file system that holds a folder, as the kernel calls it: `ext4`, `tmpfs`."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    except FileNotFoundError:
        return "unknown"
    here = folder.resolve()
    holding = [(len(point), kind) for _, point, kind, *_ in mounts if here.is_relative_to(point)]
    # Of two mounts on one point the later one is what is seen.
    return max(reversed(holding), key=lambda mount: mount[0])[1] if holding else "unknown"


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, or None where the kernel does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except FileNotFoundError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def lack_of_room(folder: Path, *, disk_bytes: int, memory_bytes: int) -> str | None:
    """Say what is missing for an output of `disk_bytes` and a process of `memory_bytes`, or return None."""
    free = shutil.disk_usage(folder).free
    if free < disk_bytes:
        return f"needs {disk_bytes / GB:.1f} GB of disk, {free / GB:.1f} GB are free"
    # What lies on a tmpfs lies in memory.
    wanted = memory_bytes + (disk_bytes if file_system(folder) in {"tmpfs", "ramfs"} else 0)
    available = available_memory()
    if available is not None and available < wanted:
        return f"needs {wanted / GB:.1f} GB of memory, {available / GB:.1f} GB are available"
    return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _gpu() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return ", ".join(asked.stdout.split("\n")).strip(", ") or None if asked.returncode == 0 else None
