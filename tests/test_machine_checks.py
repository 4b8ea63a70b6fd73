"""core.doctor.machine_checks: processors, shared memory and temporary files; the Hub's part is in test_hub_settings."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from fp8cli.core.doctor.environment import Check
from fp8cli.core.doctor.machine_checks import QUEUE_BYTES, check_processors, check_shared_memory, check_temporary
from tests.staged_machine import lay_out_kernel


def free(monkeypatch: pytest.MonkeyPatch, size: int, *, total: int = 10**12) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=total, free=size))


def test_processors_are_counted_by_what_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert check_processors(lay_out_kernel(tmp_path)) == Check(
        name="processors", status="passed", found="3 of 64, by affinity and control group", wanted="1"
    )


@pytest.mark.parametrize(
    ("gpus", "size", "status"),
    [
        (0, 0, "passed"),
        (1, 0, "passed"),
        (2, QUEUE_BYTES - 1, "warning"),
        (2, QUEUE_BYTES, "passed"),
        (8, 64 * 10**6, "warning"),
    ],
)
def test_shared_memory_is_judged_only_where_there_are_two_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, size: int, status: str
) -> None:
    free(monkeypatch, size)
    assert check_shared_memory(gpus, lay_out_kernel(tmp_path)).status == status


def test_a_machine_without_shared_memory_is_not_checked(tmp_path: Path) -> None:
    check = check_shared_memory(2, tmp_path)
    assert (check.status, check.found) == ("not checked", "there is no /dev/shm")


def test_the_queue_of_vllm_s_workers_is_as_large_as_the_installed_vllm_makes_it() -> None:
    from importlib.util import find_spec

    spec = find_spec("vllm")
    assert spec is not None, "scripts/setup installs vLLM; without it this would prove nothing"
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    megabytes = (folder / "envs.py").read_text("utf-8").partition("VLLM_MQ_MAX_CHUNK_BYTES_MB: int = ")[2]
    queue = (folder / "distributed/device_communicators/shm_broadcast.py").read_text("utf-8")
    chunks = queue.partition("class MessageQueue")[2].partition("max_chunks: int = ")[2]
    assert int(megabytes.split()[0]) * 2**20 * int(chunks.split(",")[0]) == QUEUE_BYTES


def test_temporary_files_lie_where_tmpdir_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 5 * 10**10)
    assert check_temporary({"TMPDIR": str(tmp_path)}).found == f"50.00 GB free in `{tmp_path}`"
    assert check_temporary({}).found == "50.00 GB free in `/tmp`"


def test_a_tmpdir_that_is_full_or_no_folder_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    lost = check_temporary({"TMPDIR": str(tmp_path / "file")})
    assert (lost.status, lost.found) == ("warning", f"`{tmp_path / 'file'}`: Not a directory")
    free(monkeypatch, 10**6)
    full = check_temporary({"TMPDIR": str(tmp_path)})
    assert full == Check(
        name="temporary files",
        status="warning",
        found=f"1.0 MB free in `{tmp_path}`",
        wanted="a folder that can be written, and 100.0 MB",
        fix="set TMPDIR to another folder",
    )


def test_a_file_system_that_does_not_say_how_much_is_free_is_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 0, total=0)
    assert check_temporary({"TMPDIR": str(tmp_path)}).status == "not checked"
