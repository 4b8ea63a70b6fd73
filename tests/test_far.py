"""Past one machine: from a Hub into a bucket, over two nodes, one of which is killed, with a disk smaller than either.

Everything is real but the network: Ray's nodes, S3's API, the Hub's, and a tmpfs that holds half of the checkpoint.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.core.clustering.admission import admit
from fp8cli.core.fetching.streaming import StreamOptions
from fp8cli.core.quantizing.crew import Unwatched
from tests.loopback_bucket import BUCKET, PROGRAM, LoopbackBucket, serving
from tests.loopback_hub import LoopbackHub, Repo
from tests.models import llama_config, save_model
from tests.starting import fp8

ID = "acme/far"
PLACE = f"s3://{BUCKET}/models/far-FP8"
FOLDER = "models/far-FP8"
DISK_BYTES = 2 * 2**20


@dataclass(frozen=True, kw_only=True)
class Far:
    local: Path
    hub: LoopbackHub
    bucket: LoopbackBucket
    environment: dict[str, str]
    address: str
    second: Any


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    """Set up a Hub with a model, an empty bucket, and a cluster of two nodes that reach both."""
    from ray.cluster_utils import Cluster

    config = llama_config(hidden_size=256, intermediate_size=512, num_hidden_layers=4, vocab_size=640)
    local = save_model(tmp_path_factory.mktemp("far") / "far", config, max_shard_size="700KB")
    with LoopbackHub() as hub, serving() as bucket, pytest.MonkeyPatch.context() as patch:
        hub.repos[ID] = Repo()
        hub.repos[ID].push({path.name: path.read_bytes() for path in local.iterdir()})
        environment = bucket.environment | {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        # Ray takes the signal for itself.
        before = signal.getsignal(signal.SIGTERM)
        # The head reads the Hub, and may not write to the bucket.
        cluster = Cluster(initialize_head=True, head_node_args=node | {"env_vars": {"AWS_ACCESS_KEY_ID": ""}})
        try:
            second = cluster.add_node(**node)
            signal.signal(signal.SIGTERM, before)
            yield Far(
                local=local,
                hub=hub,
                bucket=bucket,
                environment=environment,
                address=cluster.address,
                second=second,
            )
        finally:
            cluster.shutdown()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a tmpfs that neither the source nor the output fits into."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={DISK_BYTES}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("needs a user who may mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def hashes_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def hashes_in(facts: Any) -> dict[str, str]:
    return {name: file["sha256"] for name, file in facts["files"].items() if name.endswith(".safetensors")}


def wait_until(what: Any) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_shards_of_a_bucket_are_hashed_by_the_nodes_that_stream_them(far: Far, tmp_path: Path) -> None:
    for path in far.local.iterdir():
        far.bucket.client.upload_file(str(path), BUCKET, f"source/{path.name}")
    streaming = StreamOptions(stream=True, window="1MB")
    request = QuantizeRequest(
        model=f"s3://{BUCKET}/source", out=tmp_path / "out", cluster=f"ray={far.address}", streaming=streaming
    )
    report = run(request)
    provenance = json.loads((tmp_path / "out" / "fp8.json").read_text())
    assert hashes_in(provenance["source"]) == hashes_of(far.local)
    assert hashes_in(provenance) == hashes_of(tmp_path / "out")
    assert report.cluster is not None
    assert report.cluster.batches == report.shards
    # The head may not read the bucket.
    (warning,) = report.warnings
    assert "cannot read `s3://models/source`: no credentials" in warning


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_larger_than_the_disk_goes_from_the_hub_into_a_bucket_though_a_node_is_killed(
    far: Far, small_disk: Path, tmp_path: Path
) -> None:
    wanted = run(QuantizeRequest(model=str(far.local), out=tmp_path / "far-FP8"))
    sizes = [sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in (far.local, wanted.out)]
    assert min(sizes) > DISK_BYTES
    far.bucket.pause = 0.05
    words = ["quantize", f"hf://{ID}", "--stream", "--window", "1MB", "-o", PLACE, "--work-dir", str(small_disk)]
    words += ["--cluster", f"ray={far.address}", "--json"]
    started = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | far.environment,
    )
    raylet = far.second.all_processes["raylet"][0].process
    # In the middle: some shards are in the bucket, and most are not begun.
    wait_until(lambda: len(far.bucket.parts()) > 8 or started.poll() is not None)
    early = set(far.bucket.parts())
    time.sleep(0.5)
    assert started.poll() is None, started.communicate()
    os.kill(raylet.pid, signal.SIGKILL)
    out, err = started.communicate(timeout=300)
    assert started.returncode == 0, err
    report = json.loads(out)["result"]
    assert sorted(node["lost"] for node in report["cluster"]["nodes"]) == [False, True]
    head, second = sorted(report["cluster"]["nodes"], key=lambda node: bool(node["lost"]))
    assert head["files_sent"] == 0
    assert "credentials" in head["cannot_send"]
    assert second["files_sent"] > 0
    # What it had under way when it was killed may have to be sent again; what was there is not.
    sent = far.bucket.parts()
    assert {sent[part] for part in early} == {1}
    assert report["delivery"]["files"] == len(list(wanted.out.iterdir()))
    told_by_name = {"README.md", "fp8.json"}  # Which name the source.
    there = {name: text for name, text in far.bucket.contents(FOLDER).items() if name not in told_by_name}
    assert there == {path.name: path.read_bytes() for path in wanted.out.iterdir() if path.name not in told_by_name}
    assert far.bucket.uploads() == []
    # Every shard was hashed on its way by the node that read it, and not taken for what the Hub says it is.
    provenance = json.loads(far.bucket.contents(FOLDER)["fp8.json"])
    assert hashes_in(provenance["source"]) == hashes_of(far.local)
    assert not [name for name in provenance["source"]["hub_says"] if name.endswith(".safetensors")]
    assert list(small_disk.iterdir()) == []

    verified = fp8(tmp_path, "verify", PLACE, "--source", f"hf://{ID}", "--json", **far.environment)
    assert verified.code == 0, verified.out + verified.err
    assert verified.report["verdict"] == "matches"
    inspected = fp8(tmp_path, "inspect", PLACE, "--against", f"hf://{ID}", "--json", **far.environment)
    assert inspected.code == 0, inspected.out + inspected.err


def test_shards_are_admitted_all_at_once_where_nobody_keeps_them_waiting() -> None:
    names = tuple(f"model-{number:05}.safetensors" for number in range(2000))
    assert list(admit(Unwatched(), names)) == [names]
    assert list(admit(Unwatched(), ())) == []


def test_what_is_admitted_is_worked_at_while_others_wait_for_their_place() -> None:
    class Room:
        """Two at a time."""

        def __init__(self) -> None:
            self.begun: set[str] = set()

        def begins(self, shard: str) -> None:
            wait_until(lambda: len(self.begun) < 2)
            self.begun.add(shard)

        def finished(self, shard: str) -> None:
            self.begun.discard(shard)

        def abandon(self) -> None:
            raise AssertionError

    room = Room()
    seen: list[str] = []
    for wave in admit(room, tuple("abcdefg")):
        assert 1 <= len(wave) <= 2
        seen += wave
        for shard in wave:
            room.finished(shard)
    assert seen == list("abcdefg")


def test_who_refuses_a_shard_ends_the_work() -> None:
    class Full:
        def begins(self, shard: str) -> None:
            if shard == "b":
                raise OSError(28, "No space left on device")

        def finished(self, shard: str) -> None:
            raise AssertionError(shard)

        def abandon(self) -> None:
            raise AssertionError

    with pytest.raises(OSError, match="No space"):
        list(admit(Full(), ("a", "b")))
