"""Hatch's build hook: compiles fp8cli/core/kernel.c into the package, or leaves it out where that cannot be.

The library is plain C called through ctypes, so a wheel fits every Python version of its platform. A machine
without a C compiler gets one from the package index (`ziglang`) for the time of the build. Without the library fp8
works too: torch does its arithmetic, more slowly. FP8_BUILD_KERNEL=off leaves it out, =required fails without it.
"""

import atexit
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "fp8cli/core/kernel.c"
LIBRARY = "fp8cli/core/libfp8.so"

# Exact arithmetic: no fused multiply-add, no reordering. The other two only say that nobody reads errno or the
# floating-point exceptions, without which the loops cannot become vector code.
FLAGS = (
    *("-O3", "-std=c11", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-s", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)


class KernelBuildHook(BuildHookInterface[Any]):  # type: ignore[misc]  # hatchling is there only during a build
    """Called by hatchling for wheels and editable installs."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Ask for a compiler where the machine has none."""
        return [] if _wish() == "off" or _system_compiler() else ["ziglang>=0.14; sys_platform != 'win32'"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and mark the wheel as one for this platform."""
        if self.target_name != "wheel" or _wish() == "off":
            return
        folder = Path(tempfile.mkdtemp(prefix="fp8-kernel-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        library = folder / Path(LIBRARY).name
        problem = _compile(Path(self.root, SOURCE), library)
        if problem is not None:
            if _wish() == "required":
                raise RuntimeError(problem)
            self.app.display_warning(f"fp8: no compiled kernel, torch will do its work: {problem}")
            return
        if version == "editable":  # The package is used where it lies.
            shutil.move(library, Path(self.root, LIBRARY))
            return
        build_data["force_include"][str(library)] = LIBRARY
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def _wish() -> str:
    return os.environ.get("FP8_BUILD_KERNEL", "").lower()


def _system_compiler() -> list[str] | None:
    wanted = shlex.split(os.environ.get("CC", ""))
    found = [wanted, ["cc"], ["gcc"], ["clang"]]
    return next((words for words in found if words and shutil.which(words[0])), None)


def _zig() -> list[str]:
    # Without a target zig compiles for the very processor it runs on; the library must run on every other, too.
    target = ["-target", f"{platform.machine()}-linux-gnu.2.17"] if sys.platform == "linux" else []
    return [sys.executable, "-m", "ziglang", "cc", "-g0", *target]


def _compile(source: Path, library: Path) -> str | None:
    """Return None when the library is there, else why it is not."""
    command = [*(_system_compiler() or _zig()), *FLAGS, "-o", str(library), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as problem:
        return f"`{command[0]}`: {problem.strerror}"
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return f"`{shlex.join(command)}` failed: {lines[0] if lines else f'exit code {done.returncode}'}"
    return None
