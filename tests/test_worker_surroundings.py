"""What a worker is given and what is kept of it: GPUs or threads, the words for the machine, and no secrets."""

import os
from pathlib import Path

import pytest

from fp8cli.core.evaluating.gpu_shares import shares
from fp8cli.core.evaluating.hardware import describe
from fp8cli.core.machine.gpus import Gpus, find_gpus
from fp8cli.core.processes.masking import mask, mask_file, secrets_of
from fp8cli.errors import CannotRun
from tests.stand_in_nvml import H100, L4, Nvml
from tests.test_amd import amd_machine
from tests.test_supervising import job

TOKEN = "hf_" + "aB3" * 11


def gpus(count: int, environ: dict[str, str] | None = None) -> Gpus:
    return find_gpus(Nvml(*[H100] * count), environ or {})


def test_gpus_are_dealt_out_evenly_in_their_order(tmp_path: Path) -> None:
    found = shares(job(world=2, device=None), {}, gpus(5), tmp_path)
    assert found == ({"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"})


def test_gpus_that_the_user_chose_are_dealt_out_under_the_names_he_gave_them(tmp_path: Path) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "3, 1,-1,0"}
    found = shares(job(world=2, device=None), environ, gpus(4, environ), tmp_path)
    assert found == ({"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "1"})


def test_a_worker_that_is_alone_or_asks_a_server_gets_the_machine_as_it_is(tmp_path: Path) -> None:
    assert shares(job(world=1), {}, gpus(2), tmp_path) == ({},)
    assert shares(job(world=2, backend="server"), {}, gpus(2), tmp_path) == ({}, {})


def test_without_gpus_processors_are_shared_unless_the_user_said_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    for settings, found in (({"device": None}, gpus(0)), ({"device": "cpu"}, gpus(4))):
        assert shares(job(world=4, **settings), {}, found, tmp_path) == ({"OMP_NUM_THREADS": "1"},) * 4
    assert shares(job(world=2), {}, gpus(0), tmp_path) == ({"OMP_NUM_THREADS": "3"},) * 2
    assert shares(job(world=2), {"OMP_NUM_THREADS": "5"}, gpus(0), tmp_path) == ({}, {})


def test_too_few_gpus_are_refused_with_both_numbers(tmp_path: Path) -> None:
    wide = job(world=2, backend="vllm", device=None, model_args={"tensor_parallel_size": 2})
    with pytest.raises(CannotRun, match="2 workers with 2 GPUs each take 4 GPUs, and 3 are visible") as refusal:
        shares(wide, {}, gpus(3), tmp_path)
    assert refusal.value.hint == "choose --data-parallel 1"
    assert len(shares(wide, {}, gpus(4), tmp_path)) == 2
    deep = job(
        world=2, backend="vllm", device=None, model_args={"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    )
    with pytest.raises(CannotRun, match="2 workers with 4 GPUs each take 8 GPUs, and 4 are visible"):
        shares(deep, {}, gpus(4), tmp_path)
    with pytest.raises(CannotRun, match="3 workers with 1 GPU each take 3 GPUs, and 1 is visible"):
        shares(job(world=3, device=None), {}, gpus(1), tmp_path)


def test_gpus_that_cannot_be_told_apart_are_not_dealt_out(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="it cannot be told which GPUs there are to deal out: NVML: gone"):
        shares(job(world=2, device=None), {}, Gpus(unknown="NVML: gone"), tmp_path)
    amd = amd_machine(tmp_path, ("AMD Instinct MI300X", 90402, 192))
    with pytest.raises(CannotRun, match="AMD"):
        shares(job(world=2, device=None), {}, gpus(0), amd)


def test_the_machine_is_described_by_its_processor_and_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: AMD EPYC 9654 96-Core Processor\nmodel\t: 1\n"
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(1200)))
    found = find_gpus(Nvml(H100, L4), {"CUDA_VISIBLE_DEVICES": "1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert describe(tmp_path, found) == (
        "AMD EPYC 9654 96-Core Processor, 1,200 cores",
        ("NVIDIA L4", "NVIDIA H100 80GB HBM3"),
    )


def test_a_machine_that_names_no_processor_is_described_by_its_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    amd = amd_machine(tmp_path, ("AMD Instinct MI300X", 90402, 192))
    assert describe(amd, Gpus()) == ("aarch64, 1 core", ("AMD Instinct MI300X",))


def test_values_of_secret_variables_are_secrets_and_switches_are_not() -> None:
    environ = {"HF_TOKEN": TOKEN, "MY_API_KEY": "12345678", "TOKENIZERS_PARALLELISM": "false", "HOME": "/home/somebody"}
    assert secrets_of(environ) == (TOKEN, "12345678")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"token={TOKEN},", "token=***,"),
        ("Authorization: Bearer abc.def-1 rest", "Authorization: Bearer *** rest"),
        ("http://me:secret@host:1/v1", "http://***@host:1/v1"),
        ("https://cdn/x?Expires=1&Signature=abc&Key=2", "https://cdn/x?Expires=1&Signature=***&Key=2"),
        ("sk-proj-0123456789abcdefgh", "***"),
        (
            "the model hf_hub, task sk-learn, http://host:8000/v1",
            "the model hf_hub, task sk-learn, http://host:8000/v1",
        ),
    ],
)
def test_what_looks_like_a_token_is_masked_and_what_does_not_is_left(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_a_log_is_masked_byte_for_byte_elsewhere(tmp_path: Path) -> None:
    log = tmp_path / "log"
    content = b"one\r\n50%\r60%\r" + TOKEN.encode() + b"\n\xff\xfe pass word\n no end"
    log.write_bytes(content)
    log.chmod(0o640)
    mask_file(log, ("pass word",))
    assert log.read_bytes() == content.replace(TOKEN.encode(), b"***").replace(b"pass word", b"***")
    assert log.stat().st_mode & 0o777 == 0o640
    before = log.stat()
    mask_file(log, ("pass word",))
    assert log.stat().st_ino == before.st_ino, "nothing to mask, so the file is the same"
    assert list(tmp_path.iterdir()) == [log]
