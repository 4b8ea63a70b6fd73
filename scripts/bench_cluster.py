"""Measure `--cluster ray` on this machine, and work the plan of a 2-TB model through for up to 1,000 nodes.

    python scripts/bench_cluster.py [FOLDER]

Measured: a checkpoint of 4 GB, whose weights are holes in its files so that no disk has to be read, on a node with
room for 1, 2 and 4 tasks at once, beside the same on this machine without a cluster; and what a batch costs that moves
next to nothing, handed out one by one and in bundles. Nothing is hashed. Simulated (core.clustering.schedule): the real
batches of a dense 2-TB model's headers, at the rates measured. FOLDER takes the checkpoints, 3 GB at most; by default a
temporary one.
"""

import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from unittest.mock import patch

import bench_machine
from ray.cluster_utils import Cluster

from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.core.clustering.batches import cut_batches
from fp8cli.core.clustering.schedule import Rates, simulate
from fp8cli.core.clustering.slots import Slots, share_nodes
from fp8cli.core.making.planning import Wish, plan_checkpoint
from fp8cli.core.quantizing.choices import choose
from fp8cli.core.quantizing.modifiers import Modifiers
from fp8cli.core.quantizing.pieces import cut
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import PIECE_BYTES
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.formats.safetensors import lay_out

GB: Final = 10**9
NODES: Final = (1, 2, 4, 10, 100, 1000, 4000)
CPUS_PER_NODE: Final = 2
SLOW_CORES: Final = (0.5 * GB, 0.1 * GB)
"""Bytes a second of a core whose share of the storage is what bounds it: 1 TB/s and 0.2 TB/s for 1,000 nodes."""
BUNDLE: Final = 31
"""Batches that a relay hands out on a cluster of 1,000 nodes."""
TINY_BYTES: Final = 256


@dataclass(frozen=True, kw_only=True)
class Size:
    """A dense Llama."""

    layers: int
    hidden: int
    intermediate: int
    shard_bytes: int


MEASURED: Final = Size(layers=5, hidden=4096, intermediate=14336, shard_bytes=GB)
SIMULATED: Final = Size(layers=188, hidden=20480, intermediate=71680, shard_bytes=5 * GB)
KV: Final = 1024
VOCABULARY: Final = 128_256


def main() -> None:
    """Print a table of what was measured, and one of what follows from it."""
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="fp8-bench-cluster-", dir=place))
    try:
        machine = bench_machine.hardware()
        print(f"{datetime.now(UTC):%Y-%m-%d}, {machine['cores']} cores ({machine['processor']}), {machine['memory']}\n")
        print()
        scale(folder, *measure(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path) -> tuple[float, Rates, Rates]:
    """Return the bytes a second of one slot, and what batches cost: handed out one by one, and in bundles.

    All of it is printed. The driver's are processor time, of this process and of the one that speaks Ray.
    """
    source = write_model(folder / "measured", MEASURED)
    bundled = Path(__file__).parent.parent / "fp8cli" / "bundled" / "stories-llama"
    print("| tasks at once | read plus written | with Ray | efficiency | without |")
    print("|---:|---:|---:|---:|---:|")
    rates: list[float] = []
    with cluster(cpus=4) as address:
        quantize(bundled, folder, address=address)  # Its workers have then loaded everything once.
        for slots in (1, 2, 4):
            here = quantize(source, folder, workers=slots)[1]
            moved, seconds, _ = quantize(source, folder, workers=slots, address=address)
            rates.append(moved / seconds)
            efficiency = rates[-1] / rates[0] / slots
            print(f"| {slots} | {moved / GB:.2f} GB | {seconds:.2f} s | {efficiency:.0%} | {here:.2f} s |")
        print()
        before = driver_time()
        quantize(bundled, folder, workers=CPUS_PER_NODE, address=address)
        few = driver_time() - before
        singly = measure_batches(bundled, folder, address, rates[0], few)
        with patch.object(Slots, "bundle", BUNDLE):
            bundled_rates = measure_batches(bundled, folder, address, rates[0], few)
    return rates[0], singly, replace(bundled_rates, batch_seconds=singly.batch_seconds)


def measure_batches(source: Path, folder: Path, address: str, slot_rate: float, few: float) -> Rates:
    """Return what batches of next to nothing cost a slot and the driver, beyond a run that has `few`, in seconds.

    What the driver spends on waiting counts too.
    """
    before = driver_time()
    _, seconds, batches = quantize(source, folder, workers=CPUS_PER_NODE, address=address, batch_bytes=TINY_BYTES)
    rates = Rates(
        slot_bytes_per_second=slot_rate,
        batch_seconds=CPUS_PER_NODE * seconds / batches,
        driver_seconds=(driver_time() - before - few) / batches,
    )
    together = Slots(count=1, cpus=1, workers=1, memory_bytes=1).bundle
    print(
        f"{batches:,} batches of {TINY_BYTES} bytes on {CPUS_PER_NODE} slots, {together} handed out at a time: "
        f"{rates.batch_seconds * 1000:.1f} ms of a slot for each, {rates.driver_seconds * 1000:.2f} ms of the driver"
    )
    return rates


def driver_time() -> float:
    """Seconds of processor time of this process, and of the processes it has started and seen the end of."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def quantize(
    source: Path,
    folder: Path,
    *,
    workers: int | None = None,
    address: str | None = None,
    batch_bytes: int | None = None,
) -> tuple[int, float, int]:
    """Make a checkpoint; return bytes read plus written, seconds of the work itself, and the number of batches."""
    out = folder / "out"
    request = QuantizeRequest(
        model=str(source),
        out=out,
        workers=workers,
        cluster=None if address is None else f"ray={address}",
        batch_bytes=batch_bytes,
        hashed=False,
        piece_bytes=PIECE_BYTES if batch_bytes is None else batch_bytes,
    )
    os.sync()
    report = run(request)
    shutil.rmtree(out)
    moved = report.bytes_read + report.bytes_written
    if report.cluster is None:
        return moved, report.seconds, 0
    return moved, report.cluster.work_seconds, report.cluster.batches


@contextmanager
def cluster(*, cpus: int) -> Iterator[str]:
    """Run a Ray node with so many slots for a time."""
    node = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    running = Cluster(initialize_head=True, head_node_args=node)
    try:
        yield str(running.address)
    finally:
        running.shutdown()


def scale(folder: Path, slot_rate: float, singly: Rates, bundled: Rates) -> None:
    """Print how the batches of a 2-TB model spread over many nodes of two cores."""
    plan = plan_of(write_model(folder / "simulated", SIMULATED))
    pieces = cut(plan, PIECE_BYTES)
    moved = plan.bytes_read + plan.bytes_written
    print(
        f"{plan.bytes_read / 10**12:.2f} TB of BF16, {moved / 10**12:.2f} TB read plus written, "
        f"{len(pieces):,} pieces; {slot_rate / GB:.2f} GB/s per core, {singly.batch_seconds * 1000:.1f} ms lost per "
        f"batch, {singly.driver_seconds * 1000:.2f} ms of the driver per batch, "
        f"{bundled.driver_seconds * 1000:.2f} ms in bundles\n"
    )
    columns = "".join(f" at {rate / GB:g} GB/s per core | efficiency |" for rate in SLOW_CORES)
    print(f"| nodes | slots | batches | largest | work | efficiency |{columns}")
    print("|---:|---:|---:|---:|---:|---:|" + "---:|---:|" * len(SLOW_CORES))
    for nodes in NODES:
        slots = share_nodes(plan, [CPUS_PER_NODE] * nodes, workers=None, memory_bytes=2**30)
        sizes = [batch.moved_bytes for batch in cut_batches(plan, pieces, slots=slots.count)]
        rates = singly if slots.bundle == 1 else bundled
        cells = []
        for rate in (slot_rate, *SLOW_CORES):
            schedule = simulate(
                sizes, slots=slots.count, rates=replace(rates, slot_bytes_per_second=rate * slots.workers)
            )
            cells.append(f"{schedule.seconds:,.1f} s | {schedule.efficiency:.1%}")
        print(f"| {nodes:,} | {slots.count:,} | {len(sizes):,} | {max(sizes) / GB:.2f} GB | {' | '.join(cells)} |")
    largest = max(shard.header.file_bytes for shard in plan.shards)
    print(f"\nthe largest shard of the output has {largest / GB:.2f} GB: one node reads it for its SHA-256")


def plan_of(source: Path) -> Plan:
    """Plan what `fp8 quantize` would by default."""
    choice = choose("FP8_DYNAMIC", None, Modifiers())
    wish = Wish(model=str(source), choice=choice, dtype="auto", targets=("Linear",), ignore=(), default_ignore=True)
    return plan_checkpoint(open_checkpoint(LocalFolder(source)), wish)[0]


def write_model(folder: Path, size: Size) -> Path:
    """Write a checkpoint whose weights are holes: it takes no disk, and reads as zeros."""
    folder.mkdir()
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    held = 0
    for name, shape in shapes(size):
        length = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        if held and held + length > size.shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append((name, "BF16", shape))
        held += length
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        head, header = lay_out(tensors, {"format": "pt"})
        file.write_bytes(head)
        os.truncate(file, header.file_bytes)
        weight_map |= {name: file.name for name, _, _ in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": size.layers,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_attention_heads": size.hidden // 128,
        "num_key_value_heads": KV // 128,
        "head_dim": 128,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def shapes(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name the tensors."""
    hidden, wide = size.hidden, size.intermediate
    linears: Sequence[tuple[str, int, int]] = (
        ("self_attn.q_proj", hidden, hidden),
        ("self_attn.k_proj", KV, hidden),
        ("self_attn.v_proj", KV, hidden),
        ("self_attn.o_proj", hidden, hidden),
        ("mlp.gate_proj", wide, hidden),
        ("mlp.up_proj", wide, hidden),
        ("mlp.down_proj", hidden, wide),
    )
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for layer in range(size.layers):
        yield f"model.layers.{layer}.input_layernorm.weight", (hidden,)
        yield f"model.layers.{layer}.post_attention_layernorm.weight", (hidden,)
        for name, rows, columns in linears:
            yield f"model.layers.{layer}.{name}.weight", (rows, columns)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (VOCABULARY, hidden)


if __name__ == "__main__":
    main()
