"""A real Ray cluster whose disks fill up, and whose workers fall asleep: told in one sentence, or made up for.

The second of its nodes lives in a mount namespace of its own: there another file system lies over a folder that the
others share, and what it has for temporary files is as small as can be.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from fp8cli.commands.quantize import QuantizeReport, QuantizeRequest, StreamOptions, run
from fp8cli.core.quantizing.engine import Progress
from fp8cli.errors import CannotRun
from fp8cli.formats.staging import partial_folder
from tests.loopback_hub import LoopbackHub, Repo
from tests.models import ODD, llama_config, save_model
from tests.streamed import contents
from tests.test_cluster import ROOT, STORE_BYTES, end_with_children

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ID = "acme/odd"
TINY = 4096
"""Bytes of a piece and of a batch: the tiny model becomes some hundred of them."""
SCRATCH_BYTES = 8192
DISK_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class Narrow:
    """The cluster, and where its second node is short of room."""

    address: str
    disk: Path
    """A small file system that both nodes see."""
    blind: Path
    """Another one on the second node."""
    raylet: int
    """The process whose children work on the head."""


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """Mount a small file system for the time."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=False).returncode:
        pytest.skip("needs a user who may mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("full") / "odd", llama_config(**ODD), max_shard_size="200KB")


@pytest.fixture(scope="module")
def wanted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("wanted") / "out"
    run(QuantizeRequest(model=str(source), out=out))
    return contents(out)


@pytest.fixture(scope="module")
def narrow(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Narrow]:
    """Start a head, and a node with little room that reads from the same Hub."""
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("narrow")
    blind, scratch = folder / "blind", folder / "scratch"
    blind.mkdir()
    scratch.mkdir()
    with mounted(folder / "disk", DISK_BYTES) as disk, LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        hub.repos[ID] = Repo()
        hub.repos[ID].push({path.name: path.read_bytes() for path in source.iterdir()})
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "RAY_USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(name, value)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        # Ray takes the signal for itself.
        before = signal.getsignal(signal.SIGTERM)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False},
        )
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--num-cpus=1"]
        line = " && ".join(
            (
                shlex.join(["mount", "-t", "tmpfs", "none", str(blind)]),
                shlex.join(["mount", "-t", "tmpfs", "-o", f"size={SCRATCH_BYTES}", "none", str(scratch)]),
                f"exec {shlex.join([*ray, f'--object-store-memory={STORE_BYTES}', '--block'])}",
            )
        )
        second = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", line],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(scratch)},
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 60
            while len(cluster.global_state.node_table()) < 2 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert second.poll() is None
            signal.signal(signal.SIGTERM, before)
            raylet = cluster.head_node.all_processes["raylet"][0].process.pid
            yield Narrow(address=cluster.address, disk=disk, blind=blind, raylet=raylet)
            close_session()
        finally:
            end_with_children(second)
            cluster.shutdown()


def quantize(model: str | Path, out: Path, narrow: Narrow, **more: object) -> QuantizeReport:
    wish: dict[str, object] = {"piece_bytes": TINY, "batch_bytes": TINY, "cluster": f"ray={narrow.address}", **more}
    notify = wish.pop("notify", lambda _: None)
    return run(QuantizeRequest(model=str(model), out=out, **wish), notify)  # type: ignore[arg-type]


def after(count: int, do: Callable[[], None]) -> Callable[[object], None]:
    """Do something once so many pieces are done."""
    heard = 0

    def notify(event: object) -> None:
        nonlocal heard
        heard += isinstance(event, Progress)
        if heard == count and isinstance(event, Progress):
            do()

    return notify


def test_a_shared_disk_that_fills_up_is_one_sentence_and_another_run_goes_on(
    narrow: Narrow, source: Path, wanted: dict[str, bytes]
) -> None:
    filler, out = narrow.disk / "filler", narrow.disk / "out"

    def fill() -> None:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with pytest.raises(CannotRun) as full:
        quantize(source, out, narrow, notify=after(10, fill))
    assert f"the disk is full: `{out}` could not be written" in full.value.message
    assert "\n" not in full.value.message
    assert full.value.hint == f"make room and run the same command again: it goes on from `{partial_folder(out)}`"
    assert not out.exists()
    filler.unlink()
    report = quantize(source, out, narrow, cluster=None)
    assert report.bytes_resumed > 0
    assert contents(out) == wanted
    shutil.rmtree(out)


def test_a_node_that_sees_another_disk_where_the_output_grows_is_named_and_left_out(
    narrow: Narrow, source: Path, wanted: dict[str, bytes]
) -> None:
    report = quantize(source, narrow.blind / "out", narrow)
    assert report.cluster is not None
    (left_out,) = [node for node in report.cluster.nodes if node.left_out is not None]
    shared = partial_folder(narrow.blind / "out") / "cluster"
    assert report.warnings == (f"node `{left_out.name}` cannot see `{shared}`; it was left out",)
    assert left_out.batches == 0
    assert contents(narrow.blind / "out") == wanted


def test_a_node_whose_room_for_temporary_files_is_used_up_is_named_and_others_do_its_work(
    narrow: Narrow, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    streaming = StreamOptions(stream=True, window="64KB", connections=2)
    report = quantize(f"hf://{ID}", tmp_path / "out", narrow, streaming=streaming, batch_bytes=2**16)
    assert report.cluster is not None
    (left_out,) = [node for node in report.cluster.nodes if node.left_out is not None]
    (warning,) = [each for each in report.warnings if left_out.name in each]
    assert warning.startswith(f"node `{left_out.name}` could not do its part: `")
    assert warning.endswith(
        "/scratch`, the folder for temporary files, cannot be written to: the disk is full; it was left out"
    )
    assert contents(tmp_path / "out") == wanted


@contextmanager
def asleep() -> Iterator[list[int]]:
    """Stop processes that are told to, and let none of them outlive the test."""
    stopped: list[int] = []
    try:
        yield stopped
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def test_a_worker_that_falls_asleep_is_not_waited_for(
    narrow: Narrow, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    with asleep() as stopped:

        def stop_a_worker() -> None:
            until = time.monotonic() + 10
            while not stopped and time.monotonic() < until:
                for pid in workers_of(narrow.raylet)[:1]:
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)

        report = quantize(source, tmp_path / "out", narrow, notify=after(10, stop_a_worker))
        assert stopped
        assert contents(tmp_path / "out") == wanted
        assert report.cluster is not None
        assert sum(node.batches for node in report.cluster.nodes) == report.cluster.batches
    # Whatever it still writes when it wakes up changes nothing.
    time.sleep(0.5)
    assert contents(tmp_path / "out") == wanted


def workers_of(raylet: int) -> list[int]:
    """Return the processes that do a batch on the node of this raylet."""
    found = []
    for place in Path("/proc").iterdir():
        with suppress(OSError):
            if place.name.isdecimal() and (place / "cmdline").read_bytes().startswith(b"ray::carry_out"):
                parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
                found += [int(place.name)] if parent == str(raylet) else []
    return found
