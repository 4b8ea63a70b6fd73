"""core.machine.amd: AMD GPUs from the kernel's files, laid out by hand."""

from pathlib import Path

import pytest

from fp8cli.core.doctor.environment import check_gpus
from fp8cli.core.doctor.gpu_checks import check_fp8
from fp8cli.core.machine.amd import AmdGpu, find_amd_gpus, gfx_name, hiding
from fp8cli.core.machine.gpus import Gpus
from fp8cli.core.serving.modes import amd_note

GIB = 2**30
CPU_NODE = "cpu_cores_count 64\nsimd_count 0\ngfx_target_version 0\ndrm_render_minor 0\n"


def amd_machine(root: Path, *gpus: tuple[str, int, int]) -> Path:
    """Lay out a machine with one processor and GPUs of (name, instruction set, GiB); each has 1 GiB in use."""
    nodes, drm = root / "sys/class/kfd/kfd/topology/nodes", root / "sys/class/drm"
    (nodes / "0").mkdir(parents=True)
    (nodes / "0" / "properties").write_text(CPU_NODE, "utf-8")
    for index, (name, version, gib) in enumerate(gpus):
        node, device = nodes / str(index + 1), drm / f"renderD{128 + index}" / "device"
        node.mkdir()
        device.mkdir(parents=True)
        text = f"cpu_cores_count 0\nsimd_count 1216\ngfx_target_version {version}\ndrm_render_minor {128 + index}\n"
        (node / "properties").write_text(text, "utf-8")
        (node / "name").write_text("ip discovery\n", "utf-8")
        (device / "product_name").write_text(f"{name}\n", "utf-8")
        (device / "mem_info_vram_total").write_text(f"{gib * GIB}\n", "utf-8")
        (device / "mem_info_vram_used").write_text(f"{GIB}\n", "utf-8")
    return root


@pytest.mark.parametrize(
    ("version", "gfx"),
    [(90402, "gfx942"), (90010, "gfx90a"), (90500, "gfx950"), (110001, "gfx1101"), (120001, "gfx1201")],
)
def test_the_kernel_s_number_names_the_instruction_set(version: int, gfx: str) -> None:
    assert gfx_name(version) == gfx


def test_without_amd_s_driver_there_is_no_amd_gpu(tmp_path: Path) -> None:
    assert find_amd_gpus(tmp_path) == ()


def test_a_gpu_is_found_by_name_set_and_memory_and_the_processor_is_none(tmp_path: Path) -> None:
    gpus = find_amd_gpus(amd_machine(tmp_path, ("AMD Instinct MI300X OAM", 90402, 192)))
    assert gpus == (AmdGpu(name="AMD Instinct MI300X OAM", gfx="gfx942", memory_bytes=192 * GIB, free_bytes=191 * GIB),)
    assert check_gpus(Gpus(), gpus).found == "AMD Instinct MI300X OAM, gfx942, 191.00 GiB free of 192.00 GiB"


def test_variables_that_may_hide_amd_gpus_are_named_and_not_guessed_at(tmp_path: Path) -> None:
    gpus = find_amd_gpus(amd_machine(tmp_path, ("AMD Instinct MI300X", 90402, 192)))
    hidden_by = hiding({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": ""})
    check = check_gpus(Gpus(), gpus, hidden_by)
    assert check.found.endswith("; HIP_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES may hide some of AMD's")
    assert check_gpus(Gpus(), (), hidden_by).found == "no NVIDIA GPU"


def test_a_gpu_that_tells_no_name_and_no_memory_is_named_by_its_set(tmp_path: Path) -> None:
    root = amd_machine(tmp_path, ("", 90402, 192))
    for file in ("product_name", "mem_info_vram_total"):
        (root / "sys/class/drm/renderD128/device" / file).unlink()
    (root / "sys/class/kfd/kfd/topology/nodes/1/name").unlink()
    assert find_amd_gpus(root) == (AmdGpu(name="AMD GPU gfx942", gfx="gfx942", memory_bytes=None, free_bytes=None),)
    assert check_gpus(Gpus(), find_amd_gpus(root)).found == "AMD GPU gfx942, gfx942, memory not told"


NOTHING = "AMD Instinct {}: FP8_DYNAMIC not at all, FP8_BLOCK not at all"
NATIVE = "AMD Instinct {}: FP8_DYNAMIC in FP8, FP8_BLOCK in FP8"


@pytest.mark.parametrize(
    ("name", "version", "status", "found"),
    [
        (
            "AMD Instinct MI300X",
            90402,
            "passed",
            f"{NATIVE.format('MI300X (gfx942)')} ({amd_note('gfx942')})",
        ),
        ("AMD Instinct MI355X", 90500, "passed", NATIVE.format("MI355X (gfx950)")),
        (
            "AMD Instinct MI210",
            90010,
            "failed",
            NOTHING.format("MI210 (gfx90a)"),
        ),
    ],
)
def test_it_is_said_what_fp8_does_on_an_amd_gpu(
    tmp_path: Path, name: str, version: int, status: str, found: str
) -> None:
    check = check_fp8(Gpus(), find_amd_gpus(amd_machine(tmp_path, (name, version, 192))), None, tmp_path)
    assert (check.status, check.found) == (status, found)


def test_files_that_make_no_sense_raise_what_a_check_turns_into_not_checked(tmp_path: Path) -> None:
    root = amd_machine(tmp_path, ("AMD Instinct MI300X", 90402, 192))
    (root / "sys/class/kfd/kfd/topology/nodes/1/properties").write_text("gfx_target_version many\n", "utf-8")
    with pytest.raises(ValueError, match="many"):
        find_amd_gpus(root)
