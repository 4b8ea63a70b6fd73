"""A real Ray cluster of several nodes on this machine: the bytes are those of one machine, whatever befalls the nodes.

One cluster for all tests: a head, a node that is killed in the last but one, and one that is as good as another host.
In namespaces of its own it has another name, another network, to which a cable leads, and another folder where the
others see a common one.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fp8cli.commands.quantize import QuantizeReport, QuantizeRequest, run
from fp8cli.core.calibrating.calibration_events import TextsRead
from fp8cli.core.calibrating.ordering import CalibrationOptions
from fp8cli.core.clustering.choice import ClusterChoice
from fp8cli.core.clustering.driving import ClusterWork, cluster_labour
from fp8cli.core.clustering.slots import Slots
from fp8cli.core.processes.process_group import MARK
from fp8cli.core.quantizing.engine import Progress, execute
from fp8cli.core.quantizing.resources import Resources
from fp8cli.core.quantizing.supply import LocalSupply
from fp8cli.core.sampling.data import BUNDLED_MODEL, BUNDLED_STORIES
from fp8cli.errors import BadInput, CannotRun, Interrupted
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.staging import partial_folder, stage
from tests.calibrated import plan_of
from tests.models import ODD, llama_config, save_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).parent.parent
STORE_BYTES = 80 * 2**20
NEAR_END, FAR_END = "10.213.77.1", "10.213.77.2"
FAR_HOST = "far-host"
TINY = 4096
"""Bytes of a piece and of a batch: the tiny model becomes some hundred of them."""


@dataclass(frozen=True, kw_only=True)
class Nodes:
    address: str
    cluster: Any
    second: Any
    blind: str | None
    """A folder that is another one on the third node; None where there can be no such node."""
    far: str | None
    """What the third node calls its host; None where it has no network of its own."""
    plug: str | None
    """This machine's end of the cable to it."""


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that carry the mark of a folder."""
    return [line for _, line in marked(folder)]


def marked(folder: Path) -> list[tuple[int, str]]:
    """Return the processes that carry the mark of a folder, and their command lines."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                if f"{MARK}={folder}".encode() in (place / "environ").read_bytes().split(b"\0"):
                    line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    found.append((int(place.name), line))
            except OSError:
                continue
    return found


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    # Ray takes the signal for itself.
    before = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args=node)
    blind = tmp_path_factory.mktemp("blind")
    cable = lay_cable()
    third = start_third_node(cluster.address, blind, cable)
    try:
        second = cluster.add_node(**node)
        deadline = time.monotonic() + 60
        while third is not None and len(cluster.global_state.node_table()) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert third is None or third.poll() is None
        signal.signal(signal.SIGTERM, before)
        yield Nodes(
            address=cluster.address,
            cluster=cluster,
            second=second,
            blind=str(blind) if third else None,
            far=FAR_HOST if third and cable else None,
            plug=near_end() if third and cable else None,
        )
    finally:
        if third is not None:
            if cable:
                # Behind a cable that is cut it would wait for a word of the others.
                subprocess.run(["ip", "link", "set", near_end(), "up"], check=False)
            end_with_children(third)
        cluster.shutdown()
        if cable:
            subprocess.run(["ip", "netns", "delete", cable], check=False)


def end_with_children(started: subprocess.Popen[bytes]) -> None:
    started.terminate()
    try:
        started.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait(20)


def near_end() -> str:
    return f"f{os.getpid()}a"


def lay_cable() -> str | None:
    """Make a network of its own, with a cable to this one; return its name, None where nobody may do so."""
    if shutil.which("ip") is None:
        return None
    name, ends = f"fp8-{os.getpid()}", (near_end(), f"f{os.getpid()}b")
    inside = ["ip", "-n", name]
    lines = (
        ["ip", "netns", "add", name],
        ["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1], "netns", name],
        ["ip", "address", "add", f"{NEAR_END}/30", "dev", ends[0]],
        ["ip", "link", "set", ends[0], "up"],
        [*inside, "address", "add", f"{FAR_END}/30", "dev", ends[1]],
        [*inside, "link", "set", ends[1], "up"],
        [*inside, "link", "set", "lo", "up"],
        [*inside, "route", "add", "default", "via", NEAR_END],
    )
    for line in lines:
        if subprocess.run(line, check=False, capture_output=True).returncode:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
            return None
    return name


def start_third_node(address: str, folder: Path, cable: str | None) -> subprocess.Popen[bytes] | None:
    """Start a node for which an empty file system lies over `folder`; None where nobody may do so."""
    if shutil.which("unshare") is None:
        return None
    if subprocess.run(["unshare", "-mu", "mount", "-t", "tmpfs", "none", folder], check=False).returncode:
        return None
    ray = shlex.join([sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--num-cpus=1"])
    options = f"--object-store-memory={STORE_BYTES} --block" + (f" --node-ip-address={FAR_END}" if cable else "")
    line = f"mount -t tmpfs none {shlex.quote(str(folder))} && hostname {FAR_HOST} && exec {ray} {options}"
    there = ["ip", "netns", "exec", cable] if cable else []
    return subprocess.Popen(
        [*there, "unshare", "-mu", "sh", "-c", line],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("cluster") / "source", llama_config(**ODD), max_shard_size="200KB")


def quantize(
    source: Path,
    out: Path,
    address: str | None,
    *,
    scheme: str = "FP8_DYNAMIC",
    size: int = TINY,
    notify: Callable[[object], None] = lambda _: None,
) -> QuantizeReport:
    cluster = None if address is None else f"ray={address}"
    request = QuantizeRequest(
        model=str(source), out=out, scheme=scheme, cluster=cluster, piece_bytes=size, batch_bytes=size
    )
    return run(request, notify)


def alone(source: Path, folder: Path, scheme: str) -> dict[str, str]:
    """Return what one machine makes of it, under the name that all outputs here have."""
    quantize(source, folder / "alone" / "out", None, scheme=scheme)
    return digest(folder / "alone" / "out")


def test_the_bytes_are_those_of_one_machine(nodes: Nodes, source: Path, tmp_path: Path) -> None:
    report = quantize(source, tmp_path / "out", nodes.address)
    assert digest(tmp_path / "out") == alone(source, tmp_path, "FP8_DYNAMIC")
    assert report.cluster is not None
    worked = [node for node in report.cluster.nodes if node.batches]
    assert len(worked) > 1
    if nodes.far is not None:
        # Over the cable: that host has no other way to this one.
        assert nodes.far in {node.name.partition("/")[0] for node in worked}
    assert sum(node.batches for node in worked) == report.cluster.batches > 20
    assert sum(node.bytes_read for node in worked) == report.bytes_read
    # fp8.json, which is among those bytes, has the SHA-256 of every shard, read by nodes alone.
    shards = [*source.glob("*.safetensors"), *(tmp_path / "out").glob("*.safetensors")]
    assert sum(node.files_hashed for node in report.cluster.nodes) == len(shards)
    assert sum(node.bytes_hashed for node in report.cluster.nodes) == sum(path.stat().st_size for path in shards)
    assert report.warnings == ()
    assert not partial_folder(tmp_path / "out").exists()


def test_a_node_that_sees_another_folder_is_named_and_left_out_by_relays_too(
    nodes: Nodes, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if nodes.blind is None:
        pytest.skip("no mount namespace can be made here, which takes root")
    # As on a cluster of many: a relay hands the batches out from a node.
    monkeypatch.setattr(Slots, "bundle", 50)
    hidden = Path(nodes.blind) / "source"
    shutil.copytree(source, hidden)
    report = quantize(hidden, tmp_path / "out", nodes.address)
    assert report.cluster is not None
    left_out = [node for node in report.cluster.nodes if node.left_out is not None]
    assert len(left_out) == 1
    assert left_out[0].batches == 0
    assert left_out[0].left_out == f"cannot see `{next(iter(sorted(hidden.glob('*.safetensors')))).name}` in `{hidden}`"
    (warning,) = report.warnings
    assert warning.startswith(f"node `{left_out[0].name}` cannot see `")
    assert digest(tmp_path / "out") == alone(hidden, tmp_path, "FP8_DYNAMIC")


def test_a_weight_that_is_damaged_ends_the_run_as_on_one_machine(nodes: Nodes, source: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(source, tmp_path / "source")
    shard = max(damaged.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    length = int.from_bytes(shard.read_bytes()[:8], "little")
    header = json.loads(shard.read_bytes()[8 : 8 + length])
    name = next(name for name in header if "_proj" in name)
    with shard.open("r+b") as file:
        file.seek(8 + length + header[name]["data_offsets"][0])
        file.write(b"\xc0\x7f")
    with pytest.raises(BadInput) as here:
        quantize(damaged, tmp_path / "out", None)
    with pytest.raises(BadInput) as there:
        quantize(damaged, tmp_path / "out", nodes.address)
    assert (there.value.message, there.value.hint) == (here.value.message, here.value.hint)
    assert not partial_folder(tmp_path / "out").exists()


def test_ctrl_c_keeps_what_is_done_and_another_run_goes_on_without_the_cluster(
    nodes: Nodes, source: Path, tmp_path: Path
) -> None:
    heard = 0

    def interrupt(event: object) -> None:
        nonlocal heard
        heard += isinstance(event, Progress)
        if heard == 20:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="what is done is kept"):
        quantize(source, tmp_path / "out", nodes.address, notify=interrupt)
    assert not processes_of(partial_folder(tmp_path / "out") / "cluster")
    report = quantize(source, tmp_path / "out", None)
    assert report.bytes_resumed > 0
    assert digest(tmp_path / "out") == alone(source, tmp_path, "FP8_DYNAMIC")


def test_a_cluster_that_is_not_there_is_one_sentence(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"no cluster joined at `127\.0\.0\.1:1`"):
        quantize(source, tmp_path / "out", "127.0.0.1:1")


KILLED = """
import os, pathlib, signal, sys
from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.core.quantizing.engine import Progress, execute
heard = []
def kill(event):
    heard.append(event) if isinstance(event, Progress) else None
    # The journal is not written at once.
    if len(heard) >= 30 and "[[" in (out.parent / f".{out.name}.fp8-partial" / "journal").read_text():
        os.kill(os.getpid(), signal.SIGKILL)
source, out, size = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
run(QuantizeRequest(model=source, out=out, cluster="ray=local", piece_bytes=size, batch_bytes=size), kill)
"""


def test_a_driver_that_is_killed_takes_its_own_cluster_along_and_another_run_goes_on(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, source, out, "1024"], check=False, cwd=ROOT, timeout=200)
    assert killed.returncode == -9
    folder = partial_folder(out) / "cluster"
    deadline = time.monotonic() + 60
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(folder)
    report = quantize(source, out, None)
    assert report.bytes_resumed > 0
    assert digest(out) == alone(source, tmp_path, "FP8_DYNAMIC")


CALIBRATION = CalibrationOptions(data=str(BUNDLED_STORIES), samples=6, max_seq_length=64)


def calibrate_on(
    address: str, out: Path, processes: int, notify: Callable[[object], None] = lambda _: None
) -> QuantizeReport:
    options = replace(CALIBRATION, processes=processes)
    model = str(BUNDLED_MODEL)
    request = QuantizeRequest(
        model=model, out=out, scheme="FP8", device="cpu", calibration=options, cluster=f"ray={address}"
    )
    return run(request, notify)


def test_ranks_on_several_hosts_find_the_scales_that_one_process_finds(nodes: Nodes, tmp_path: Path) -> None:
    report = calibrate_on(nodes.address, tmp_path / "out", 3)
    assert report.calibration is not None
    hosts = [node.partition("/")[0] for node in report.calibration.nodes]
    assert len(set(report.calibration.nodes)) == 3 if nodes.blind else 2
    if nodes.far is not None:
        # Their sums went over the cable.
        assert hosts.count(nodes.far) == 1
    alone = QuantizeRequest(
        model=str(BUNDLED_MODEL), out=tmp_path / "alone" / "out", scheme="FP8", device="cpu", calibration=CALIBRATION
    )
    run(alone)
    assert digest(tmp_path / "out") == digest(tmp_path / "alone" / "out")
    assert not partial_folder(tmp_path / "out").exists()


def test_the_end_of_one_rank_is_one_sentence_and_the_end_of_all(nodes: Nodes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = partial_folder(out) / "calibration"

    def kill(event: object) -> None:
        if isinstance(event, TextsRead):
            (pid,) = [pid for pid, line in marked(folder) if line.endswith(f"{folder} 1")]
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(CannotRun, match=r"^process 2 of the calibration on `[^`]+`: .*SIGKILL") as end:
        calibrate_on(nodes.address, out, 2, kill)
    assert "\n" not in end.value.message
    assert not marked(folder)
    assert not out.exists()
    assert Path((end.value.hint or "").rpartition("the whole log: ")[2]).is_file()


def test_a_cable_that_is_out_for_seconds_costs_time_alone(nodes: Nodes, source: Path, tmp_path: Path) -> None:
    if nodes.plug is None:
        pytest.skip("no network namespace can be made here, which takes root and iproute2")
    heard = 0

    def pull(event: object) -> None:
        nonlocal heard
        heard += isinstance(event, Progress)
        if heard == 10:
            link(nodes, "down")
            threading.Timer(4, link, (nodes, "up")).start()

    report = quantize(source, tmp_path / "out", nodes.address, notify=pull, size=1024)
    assert digest(tmp_path / "out") == alone(source, tmp_path, "FP8_DYNAMIC")
    assert report.cluster is not None
    assert not any(node.lost for node in report.cluster.nodes)


def test_a_node_that_is_killed_while_it_hashes_is_made_up_for_by_the_others(
    nodes: Nodes, source: Path, tmp_path: Path
) -> None:
    """The last of the second node: it stays dead."""
    raylet = nodes.second.all_processes["raylet"][0].process
    names = [str(number) for number in range(4)]
    for name in names:
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**29)
    plan, here = plan_of(source, "FP8_BLOCK"), LocalFolder(source)
    work = ClusterWork(choice=ClusterChoice(address=nodes.address, batch_bytes=1024), workers=None, begins=lambda: None)
    resources = Resources(device="cpu", workers=1, memory_bytes=2**20, piece_bytes=1024)
    with (
        stage(tmp_path / "out", {}, restart=False) as staging,
        cluster_labour(work, here, None, staging, resources) as labour,
    ):
        # Asked for before anybody knows which nodes there are.
        promises = [labour.hash_file(tmp_path, name) for name in names]
        threading.Thread(target=kill_when_it_hashes, args=(raylet,), daemon=True).start()
        execute(plan, LocalSupply(here.resolve), staging, resources, lambda _: None, labour=labour)
        found = [promise.result(timeout=120) for promise in promises]
        assert raylet.wait(0) == -signal.SIGKILL
        quantize(source, tmp_path / "alone", None, scheme="FP8_BLOCK")
        for path in (tmp_path / "alone").glob("*.safetensors"):
            assert (staging.checkpoint / path.name).read_bytes() == path.read_bytes()
    zeros = hashlib.sha256()
    for _ in range(2**9):
        zeros.update(bytes(2**20))
    assert found == [(2**29, zeros.hexdigest())] * len(names)
    assert labour.report is not None
    assert sum(node.files_hashed for node in labour.report.nodes) == len(names)
    (lost,) = [node for node in labour.report.nodes if node.lost]
    assert lost.files_hashed == 0
    assert labour.report.warnings == (f"node `{lost.name}` was lost; others did its work",)


def kill_when_it_hashes(raylet: Any) -> None:
    """Kill a node with all that runs on it, as when its power fails."""
    while not any(line.startswith("ray::run") for line in children_of(raylet.pid).values()):
        time.sleep(0.005)
    for pid in (raylet.pid, *children_of(raylet.pid)):
        os.kill(pid, signal.SIGKILL)


def children_of(pid: int) -> dict[int, str]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}


def test_a_node_whose_cable_is_cut_is_made_up_for_by_the_others(nodes: Nodes, source: Path, tmp_path: Path) -> None:
    """The last test: the far host stays cut off."""
    if nodes.plug is None:
        pytest.skip("no network namespace can be made here, which takes root and iproute2")
    heard = 0

    def cut(event: object) -> None:
        nonlocal heard
        heard += isinstance(event, Progress)
        if heard == 10:
            link(nodes, "down")

    report = quantize(source, tmp_path / "out", nodes.address, notify=cut, size=1024)
    assert digest(tmp_path / "out") == alone(source, tmp_path, "FP8_DYNAMIC")
    assert report.cluster is not None
    assert not partial_folder(tmp_path / "out").exists()


def link(nodes: Nodes, state: str) -> None:
    assert nodes.plug is not None
    subprocess.run(["ip", "link", "set", nodes.plug, state], check=True)
