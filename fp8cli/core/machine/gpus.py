"""The NVIDIA GPUs that CUDA would show this process, asked of the driver (NVML): no torch, no CUDA context.

NVML knows nothing of CUDA_VISIBLE_DEVICES, so the variable is read here the way CUDA reads it: numbers and UUIDs,
up to the first entry that names no GPU. A GPU cut into slices (MIG) is seen by CUDA as one slice: the one that the
variable names, else the first that CUDA finds, and which that is, is not guessed. Neither are numbers on a machine
with unlike GPUs, which CUDA counts fastest first and NVML by their place on the bus.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from fp8cli.core.machine.probes import ROOT

_DEVICE_FILE: Final = "dev/nvidiactl"
"""The driver's own file; a container may have it and still lack NVML's library."""

_MIG_ENABLED: Final = 1
_PREFIX: Final = "GPU-"
_SLICE_PREFIX: Final = "MIG-"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of a GPU with memory and processors of its own (MIG)."""

    uuid: str
    name: str
    """With its profile, such as `NVIDIA H100 80GB HBM3 MIG 3g.40gb`."""
    memory_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, by NVML's word."""

    index: int
    """NVML's number for it, which is nvidia-smi's."""
    name: str
    uuid: str
    capability: tuple[int, int]
    """CUDA compute capability."""
    memory_bytes: int | None
    """None where the driver does not tell, as for memory shared with the processor."""
    free_bytes: int | None
    mig: bool
    """Cut into slices (MIG), and none of them chosen: the memory above is not what a process gets."""
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """What this process may use, and what hides the rest."""

    visible: tuple[Gpu, ...] = ()
    """In CUDA's order."""
    present: int = 0
    """How many NVML sees."""
    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None
    """The newest CUDA the driver can run."""
    unknown: str | None = None
    """Why it cannot be told which GPUs are visible; then `visible` is empty."""


def find_gpus(nvml: Any = None, environ: Mapping[str, str] = os.environ, root: Path = ROOT) -> Gpus:
    """Ask the driver which GPUs there are. Never raises. `nvml`: the module pynvml, or something with its functions."""
    try:
        nvml = nvml or import_module("pynvml")
        try:
            nvml.nvmlInit()
        except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded) as problem:
            # Without a driver there is no GPU to speak of; with one, this is a container that was not given NVML.
            return Gpus(unknown=f"NVML: {problem}" if (root / _DEVICE_FILE).exists() else None)
        try:
            return _ask(nvml, environ)
        finally:
            nvml.nvmlShutdown()
    except Exception as problem:  # noqa: BLE001 - a driver can fail in any way; none may stop a run without GPU
        return Gpus(unknown=f"NVML: {problem}")


def _ask(nvml: Any, environ: Mapping[str, str]) -> Gpus:
    gpus = tuple(_describe(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    driver = driver_cuda = None
    with suppress(nvml.NVMLError):
        driver = str(nvml.nvmlSystemGetDriverVersion())
        number = int(nvml.nvmlSystemGetCudaDriverVersion())  # 13020 is 13.2.
        driver_cuda = (number // 1000, number % 1000 // 10)
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    unknown = _doubt(gpus, wanted, environ.get("CUDA_DEVICE_ORDER"))
    visible = () if unknown else gpus if wanted is None else choose_visible(gpus, wanted)
    return Gpus(visible=visible, present=len(gpus), driver=driver, driver_cuda=driver_cuda, unknown=unknown)


def choose_visible(gpus: tuple[Gpu, ...], wanted: str) -> tuple[Gpu, ...]:
    """Read CUDA_VISIBLE_DEVICES: entries count up to the first that names no GPU; naming one twice hides all.

    A slice (MIG) stands alone: a process gets one and no other GPU beside it.
    """
    chosen: list[Gpu] = []
    for word in wanted.split(","):
        entry = word.strip()
        if entry.startswith(_SLICE_PREFIX):
            return (*chosen, *_choose_slice(gpus, entry))[:1]
        if entry.startswith(_PREFIX):
            matches = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
        else:
            matches = [gpu for gpu in gpus if entry.isdecimal() and gpu.index == int(entry)]
        if len(matches) != 1:
            break
        chosen += matches
    return tuple(chosen) if len(set(chosen)) == len(chosen) else ()


def _choose_slice(gpus: tuple[Gpu, ...], uuid: str) -> tuple[Gpu, ...]:
    """Return the slice of that UUID as the GPU that its process sees."""
    found = [(gpu, part) for gpu in gpus for part in gpu.slices if part.uuid.startswith(uuid)]
    if len(found) != 1:
        return ()
    gpu, part = found[0]
    return (
        replace(
            gpu, name=part.name, memory_bytes=part.memory_bytes, free_bytes=part.free_bytes, mig=False, slices=(part,)
        ),
    )


def _doubt(gpus: tuple[Gpu, ...], wanted: str | None, order: str | None) -> str | None:
    if wanted is not None and f"{_SLICE_PREFIX}{_PREFIX}" in wanted:
        return "CUDA_VISIBLE_DEVICES names a MIG slice in the old way, by number; name it by its UUID: nvidia-smi -L"
    if wanted is None or order == "PCI_BUS_ID" or not any(word.strip().isdecimal() for word in wanted.split(",")):
        return None
    if len({(gpu.name, gpu.capability) for gpu in gpus}) > 1:
        return "CUDA_VISIBLE_DEVICES numbers unlike GPUs in CUDA's own order; set CUDA_DEVICE_ORDER=PCI_BUS_ID too"
    return None


def _describe(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    total, free = _memory(nvml, handle)
    mig = False
    with suppress(nvml.NVMLError):  # Most GPUs cannot be cut, and say so.
        mig = nvml.nvmlDeviceGetMigMode(handle)[0] == _MIG_ENABLED
    return Gpu(
        index=index,
        name=str(nvml.nvmlDeviceGetName(handle)),
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        capability=(int(major), int(minor)),
        memory_bytes=total,
        free_bytes=free,
        mig=mig,
        slices=tuple(_slices(nvml, handle)) if mig else (),
    )


def _slices(nvml: Any, handle: Any) -> Iterator[Slice]:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(nvml.NVMLError):  # Not every place that a slice could have is taken.
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            total, free = _memory(nvml, part)
            yield Slice(
                uuid=str(nvml.nvmlDeviceGetUUID(part)),
                name=str(nvml.nvmlDeviceGetName(part)),
                memory_bytes=total,
                free_bytes=free,
            )


def _memory(nvml: Any, handle: Any) -> tuple[int | None, int | None]:
    """Return total and free bytes, or None for both where the driver does not tell."""
    with suppress(nvml.NVMLError):
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return int(memory.total), int(memory.free)
    return None, None
