"""From a Hub into a bucket over a Ray cluster, with a disk smaller than the checkpoint, one node killed on the way.

python -m tests.far_run [--layers 12] [--disk 200]

Everything is real but the network: two Ray nodes on this machine, S3's API and the Hub's on loopback, and a tmpfs (in
MB) for what lies on a disk in between; mounting it takes root. Prints what `fp8 quantize`, `fp8 verify` and
`fp8 inspect --against` print, and how full the disk was at most.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.loopback_bucket import BUCKET, LoopbackBucket, serving
from tests.loopback_hub import LoopbackHub, Repo
from tests.models import llama_config, save_model

ID: Final = "acme/far"
PLACE: Final = f"s3://{BUCKET}/far-FP8"
STORE_BYTES: Final = 80 * 2**20
FP8: Final = (sys.executable, "-m", "fp8cli")
_MB: Final = 10**6


def main() -> None:
    """Set it all up, run the three commands, and take it down again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="layers of the model, 34 MB each  [default: 12]")
    parser.add_argument("--disk", type=int, default=200, help="MB of the tmpfs  [default: 200]")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fp8-far-")))
        sizes = {"hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 4096}
        config = llama_config(**sizes, num_hidden_layers=options.layers)
        local = save_model(folder / "far", config, max_shard_size="40MB")
        hub = stack.enter_context(LoopbackHub())
        bucket = stack.enter_context(serving())
        hub.repos[ID] = Repo()
        hub.repos[ID].push({path.name: path.read_bytes() for path in local.iterdir()})
        os.environ.update(bucket.environment)
        os.environ.update(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_HOME=str(folder / "home"))
        disk = stack.enter_context(small_disk(folder / "disk", options.disk))
        address, second = stack.enter_context(two_nodes())
        say(f"source: {size_of(local) / _MB:,.0f} MB; disk: {options.disk:,} MB")
        words = ["quantize", f"hf://{ID}", "--stream", "--window", "64MiB", "-o", PLACE, "--work-dir", str(disk)]
        with watched(disk) as seen:
            started = show_and_start([*words, "--cluster", f"ray={address}"])
            kill_when(second, bucket, started)
            code = started.wait()
        say(f"(exit code {code}; the disk held {max(seen) / _MB:,.0f} MB at most, and holds {size_of(disk):,} B)")
        for rest in (["verify", PLACE, "--source", f"hf://{ID}"], ["inspect", PLACE, "--against", f"hf://{ID}"]):
            say(f"(exit code {show_and_start(rest).wait()})")


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a tmpfs of that size."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes * _MB}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def two_nodes() -> Iterator[tuple[str, Any]]:
    """Begin a cluster of two nodes; yield its address, and the one that is not its head."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        yield cluster.address, cluster.add_node(**node)
    finally:
        cluster.shutdown()


@contextmanager
def watched(disk: Path) -> Iterator[list[int]]:
    """Look, all the time, at what lies on the disk."""
    seen, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            there = os.statvfs(disk)
            seen.append((there.f_blocks - there.f_bfree) * there.f_frsize)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def kill_when(node: Any, bucket: LoopbackBucket, started: "subprocess.Popen[bytes]") -> None:
    """Kill a node once some shards are in the bucket."""
    while len(bucket.parts()) < 8:
        if started.poll() is not None:
            return
        time.sleep(0.01)
    raylet = node.all_processes["raylet"][0].process
    os.kill(raylet.pid, signal.SIGKILL)
    say("(a node was killed)")


def show_and_start(words: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start `fp8 WORDS` on this terminal."""
    say(f"$ fp8 {' '.join(words)}")
    return subprocess.Popen([*FP8, *words])


def say(line: str) -> None:
    """Print a line, before what other processes print."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
