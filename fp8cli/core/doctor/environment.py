"""Verdicts on the machine before work starts: what was found, what is wanted, what to do.

Facts come from core.machine. No check can crash: one that cannot find out says why and is "not checked", which never
stops anyone. Only "failed" does, and it means that the work cannot be done, not that it may be slow. Disks and their
files are counted in GB (10⁹ bytes), main and GPU memory in GiB (2³⁰ bytes).

Nothing here loads torch, numpy or pandas, so a run that cannot work is refused in the blink of an eye.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Final

from fp8cli.core.findings import Status
from fp8cli.core.machine.amd import AmdGpu
from fp8cli.core.machine.gpus import Gpu, Gpus, find_gpus
from fp8cli.core.machine.probes import ROOT, TorchBuild, read_disk, read_memory, read_torch_build, usable_cpus, versions
from fp8cli.core.serving.modes import MODE_WORDS, WEIGHT_ONLY_CAPABILITY, mode_on
from fp8cli.errors import Fp8Error
from fp8cli.schemes import SCHEMES, Scheme

__all__ = [
    "SPARE_BYTES",
    "Check",
    "check_quantize",
    "dotted",
    "gb",
    "gib",
    "guard",
    "usable_cpus",
    "versions",
]

TORCH_BYTES: Final = 600 * 10**6
"""Main memory of the interpreter with torch, on top of --max-memory: 240 MB measured right after `import torch`
(2.13, CPU build, Linux x86-64); the rest is room for the larger CUDA build and the allocator."""

SPARE_BYTES: Final = 100 * 10**6
"""Disk for what is not planned to the byte: tokenizer, config, journal."""

_STEP: Final = 64 * 2**20
_GPU_WANTED: Final = "none: quantizing never needs a GPU"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One verdict. Reads as `{name}: {found}, wanted {wanted}`."""

    name: str
    status: Status
    found: str
    """What is there; for "not checked", why that is not known."""
    wanted: str
    fix: str | None = None
    """What to do about it."""


def check_quantize(
    out: Path,
    bytes_to_write: int,
    bytes_already: int,
    memory_cap_bytes: int,
    scheme: Scheme | None,
    *,
    window_bytes: int = 0,
    gpus: Gpus | None = None,
    root: Path = ROOT,
) -> tuple[Check, ...]:
    """Judge whether a checkpoint can be quantized here. Never raises.

    bytes_already: disk that an unfinished run to `out` takes; this one goes on from it or removes it.
    window_bytes: of a streamed source, beside the output. memory_cap_bytes: --max-memory. scheme: None leaves the
    weights alone. gpus: None asks the driver.
    """
    seen = find_gpus() if gpus is None else gpus
    left = max(0, bytes_to_write - bytes_already)
    checks = [
        guard("output folder", lambda: check_folder(out)),
        guard("disk space", lambda: check_disk(out, left + window_bytes, window_bytes=window_bytes)),
        guard("memory", lambda: check_memory(memory_cap_bytes, root)),
        guard("torch", lambda: check_torch(read_torch_build(), seen)),
        guard("GPU", lambda: check_gpus(seen)),
    ]
    if seen.visible and scheme is not None:
        checks.append(guard("serving here", lambda: check_serving(scheme, seen)))
    return tuple(checks)


def check_folder(out: Path) -> Check:
    """Check that files can be made where `out` will lie, and that the finished output can be renamed into its place."""
    disk = read_disk(out)
    name, wanted = "output folder", "a folder that can be written"
    if os.path.ismount(out):
        # Its hidden sibling would lie on another file system, and no rename crosses from one to the other.
        fix = f"choose a folder inside it: -o {quote(str(out / 'model'))}"
        return Check(name=name, status="failed", found=f"`{out}` is a mount point", wanted="a folder", fix=fix)
    if disk.refusal is None:
        return Check(name=name, status="passed", found=f"`{disk.folder}` can be written", wanted=wanted)
    fix = "choose another place with -o"
    return Check(name=name, status="failed", found=f"`{disk.folder}`: {disk.refusal}", wanted=wanted, fix=fix)


def check_disk(out: Path, needed: int, *, window_bytes: int = 0) -> Check:
    """Check that `needed` bytes fit beside `out`. A quota shows only when it is hit: no file system announces it.

    window_bytes: how many of them are for what a streamed source needs meanwhile.
    """
    disk = read_disk(out)
    window = f" and {gb(window_bytes)} for the --window" if window_bytes else ""
    name, wanted = "disk space", f"{gb(needed - window_bytes)} for the output{window}"
    if disk.free_bytes is None:
        found = f"the file system of `{disk.folder}` does not say how much is free"
        return Check(name=name, status="not checked", found=found, wanted=wanted)
    found = f"{gb(disk.free_bytes)} free in `{disk.folder}`, quotas not counted"
    if disk.free_bytes < needed:
        fix = f"make room for {gb(needed - disk.free_bytes)} more, or choose another disk with -o"
        return Check(name=name, status="failed", found=found, wanted=wanted, fix=fix)
    if disk.free_bytes < needed + SPARE_BYTES:
        fix = f"have {gb(SPARE_BYTES)} to spare: tokenizer and other small files come on top"
        return Check(name=name, status="warning", found=found, wanted=wanted, fix=fix)
    return Check(name=name, status="passed", found=found, wanted=wanted)


def check_memory(cap: int, root: Path = ROOT) -> Check:
    """Check main memory against --max-memory plus torch: too small for ever fails, too full just now is a warning."""
    memory = read_memory(root)
    needed = cap + TORCH_BYTES
    whose = "this machine" if memory.group is None else f"the control group `{memory.group}`"
    name, wanted = "memory", f"{gib(needed)}: {gib(cap)} for --max-memory, the rest for Python with torch"
    found = f"{gib(memory.available_bytes)} available of the {gib(memory.total_bytes)} of {whose}"
    if memory.total_bytes < needed:
        fix = _lower_cap(memory.total_bytes - TORCH_BYTES) or f"give {whose} more memory"
        return Check(name=name, status="failed", found=found, wanted=wanted, fix=fix)
    if memory.available_bytes < needed:
        fix = _lower_cap(memory.available_bytes - TORCH_BYTES) or "end other programs, or the system may end this one"
        return Check(name=name, status="warning", found=found, wanted=wanted, fix=fix)
    return Check(name=name, status="passed", found=found, wanted=wanted)


def check_torch(build: TorchBuild | None, gpus: Gpus, *, python: Path | None = None) -> Check:
    """Check that torch is there and, with a GPU, that its build can use it. `python`: an interpreter not this one."""
    name, wanted = "torch", "a build with CUDA, to use the GPU" if gpus.visible else "torch"
    if build is None:
        return Check(name=name, status="failed", found="not installed", wanted=wanted, fix=f"{_install(python)} torch")
    found, fix = f"torch {build.version}", None
    if gpus.visible and build.cuda is None:
        found += f", built {'for ROCm' if build.hip else 'without CUDA'}"
        fix = _reinstall(build, python)
    elif gpus.visible and gpus.driver_cuda is not None and _major(build.cuda) > gpus.driver_cuda[0]:
        found += f", built for CUDA {build.cuda}; the driver runs up to CUDA {dotted(gpus.driver_cuda)}"
        fix = f"update the driver, or {_reinstall(build, python)}"
    return Check(name=name, status="warning" if fix else "passed", found=found, wanted=wanted, fix=fix)


def check_gpus(gpus: Gpus, amd: Sequence[AmdGpu] = (), hidden_by: Sequence[str] = ()) -> Check:
    """Name the GPUs that CUDA would show, and AMD's; having none is no fault. hidden_by: variables that hide AMD's."""
    if gpus.unknown is not None:
        return Check(name="GPU", status="not checked", found=gpus.unknown, wanted=_GPU_WANTED)
    seen = [*map(_describe_gpu, gpus.visible), *map(_describe_amd_gpu, amd)]
    found = "; ".join(seen) or "no NVIDIA GPU"
    if gpus.present > len(gpus.visible):
        found += f" ({gpus.present - len(gpus.visible)} hidden by CUDA_VISIBLE_DEVICES)"
    if amd and hidden_by:
        found += f"; {' and '.join(hidden_by)} may hide some of AMD's"
    if gpus.driver is not None:
        found += f"; driver {gpus.driver}"
    return Check(name="GPU", status="passed", found=found, wanted=_GPU_WANTED)


def check_serving(scheme: Scheme, gpus: Gpus) -> Check:
    """Say how vLLM would serve the result on the weakest GPU here. A warning where another choice does better."""
    least, native = dotted(WEIGHT_ONLY_CAPABILITY), dotted(scheme.native_capability)
    name, wanted = "serving here", f"compute capability {least} to load it, {native} to compute in FP8"
    if not gpus.visible:
        found = "no GPU to judge" if gpus.unknown is None else gpus.unknown
        return Check(name=name, status="not checked", found=found, wanted=wanted)
    gpu = min(gpus.visible, key=lambda gpu: gpu.capability)
    mode = mode_on(scheme, gpu.capability)
    fix = None
    if mode == "unsupported":
        fix = f"serve it on a GPU of compute capability {least} or later"
    elif mode == "weight-only" and (other := _native_scheme(gpu.capability)) is not None:
        fix = f"--scheme {other.name} computes in FP8 on it"
    found = f"{gpu.name} ({dotted(gpu.capability)}) {MODE_WORDS[mode]}"
    return Check(name=name, status="warning" if fix else "passed", found=found, wanted=wanted, fix=fix)


def _native_scheme(capability: tuple[int, int]) -> Scheme | None:
    natives = (s for s in SCHEMES.values() if not s.needs_calibration and mode_on(s, capability) == "native")
    return next(natives, None)


def guard(name: str, check: Callable[[], Check]) -> Check:
    """Return what `check` returns, or that it could not find out and why."""
    try:
        return check()
    except Exception as problem:  # noqa: BLE001 - a probe that fails is a fact about the machine, not a reason to stop
        found = problem.message if isinstance(problem, Fp8Error) else f"{type(problem).__name__}: {problem}"
        return Check(name=name, status="not checked", found=found, wanted="an answer")


def _describe_gpu(gpu: Gpu) -> str:
    if gpu.mig:
        memory = "cut into MIG slices"
    elif gpu.memory_bytes is None or gpu.free_bytes is None:
        memory = "memory not told"
    else:
        memory = f"{gib(gpu.free_bytes)} free of {gib(gpu.memory_bytes)}"
    return f"{gpu.name}, compute capability {dotted(gpu.capability)}, {memory}"


def _describe_amd_gpu(gpu: AmdGpu) -> str:
    if gpu.memory_bytes is None or gpu.free_bytes is None:
        return f"{gpu.name}, {gpu.gfx}, memory not told"
    return f"{gpu.name}, {gpu.gfx}, {gib(gpu.free_bytes)} free of {gib(gpu.memory_bytes)}"


def _lower_cap(room: int) -> str | None:
    """Return the option that fits into `room` bytes, in steps of 64 MiB; None if not even one step does."""
    steps = room // _STEP
    return f"lower the cap with --max-memory {steps * _STEP // 2**20}MiB" if steps > 0 else None


def _reinstall(build: TorchBuild, python: Path | None) -> str:
    release = build.version.split("+")[0]
    return f"{_install(python)} --reinstall-package torch --torch-backend auto torch=={release}"


def _install(python: Path | None) -> str:
    return "uv pip install" if python is None else f"uv pip install --python {quote(str(python))}"


def _major(version: str | None) -> int:
    return int((version or "0").split(".")[0])


def dotted(version: tuple[int, int]) -> str:
    """Write a compute capability or a CUDA version: `9.0`."""
    return f"{version[0]}.{version[1]}"


def gb(size: int) -> str:
    """Write bytes as disks are sold: GB of 10⁹, MB of 10⁶."""
    if size < 10**6:
        return f"{size:,} bytes"
    return f"{size / 10**6:.1f} MB" if size < 10**9 else f"{size / 10**9:,.2f} GB"


def gib(size: int) -> str:
    """Write bytes as memory is sold: GiB of 2³⁰, MiB of 2²⁰."""
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:,.2f} GiB"
