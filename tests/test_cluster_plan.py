"""A plan cut for a cluster, and what is foreseen of it: no piece is lost, no batch is a straggler, times add up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8cli.core.clustering.batches import LEAST_BYTES, cut_batches, excerpt, moved_bytes, wanted_batches, whole_shards
from fp8cli.core.clustering.choice import ClusterChoice, read_cluster, refuse_device
from fp8cli.core.clustering.fitness import odd_ones, why_unfit
from fp8cli.core.clustering.messages import NodeFacts
from fp8cli.core.clustering.outlook import foresee_cluster
from fp8cli.core.clustering.report import ClusterReport
from fp8cli.core.clustering.schedule import Rates, simulate
from fp8cli.core.clustering.slots import Slots, share_nodes
from fp8cli.core.quantizing.crew import Crew, ShardWatch
from fp8cli.core.quantizing.engine import execute
from fp8cli.core.quantizing.pieces import cut, source_bytes
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import PIECE_BYTES, SCRATCH_BYTES_PER_ELEMENT, Resources, plan_resources
from fp8cli.core.quantizing.supply import LocalSupply
from fp8cli.errors import UsageError
from fp8cli.formats.staging import Harm, Piece, Staging, stage
from tests import sparse
from tests.calibrated import made_up, plan_of
from tests.models import ODD, llama_config, save_model

GB = 10**9


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """Plans of a 30-GB model of holes, most of it in an embedding of 16 GB and in a few matrices of 1 GB."""
    sizes = {"layers": 4, "vocabulary": 10**6, "hidden": 8192, "intermediate": 65536, "kv": 1024}
    shapes = [(name, "BF16", shape) for name, _, shape in sparse.llama(**sizes) if not name.endswith("_scale")]
    config = sparse.llama_config(**sizes)
    del config["quantization_config"]
    source = sparse.write_checkpoint(tmp_path_factory.mktemp("plan") / "source", shapes, config)
    return {scheme: plan_of(source, scheme) for scheme in ("FP8_DYNAMIC", "FP8_BLOCK", "FP8")}


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK", "FP8"])
@settings(max_examples=25)
@given(slots=st.integers(1, 3000), piece_mib=st.integers(16, 200), skipped=st.integers(0, 300))
def test_every_piece_is_in_one_batch_and_no_batch_is_much_larger_than_its_share(
    plans: dict[str, Plan], scheme: str, slots: int, piece_mib: int, skipped: int
) -> None:
    plan = plans[scheme]
    pieces = cut(plan, piece_mib * 2**20)[skipped:]
    batches = cut_batches(plan, pieces, slots=slots)
    assert sorted(piece for batch in batches for piece in batch.pieces) == sorted(pieces)
    sizes = [sum(moved_bytes(plan.tensors[piece[0]], piece) for piece in batch.pieces) for batch in batches]
    assert [batch.moved_bytes for batch in batches] == sizes
    largest = max((moved_bytes(plan.tensors[piece[0]], piece) for piece in pieces), default=0)
    share = max(LEAST_BYTES, -(-sum(sizes) // wanted_batches(slots)))
    assert max(sizes, default=0) < share + max(largest, 1)
    assert len(batches) <= wanted_batches(slots) <= max(4 * slots, 1)


def test_what_is_moved_adds_up_to_what_is_read_and_written(plans: dict[str, Plan]) -> None:
    for plan in plans.values():
        moved = sum(moved_bytes(plan.tensors[piece[0]], piece) for piece in cut(plan, PIECE_BYTES))
        headers = plan.bytes_written - sum(plan.bytes_after.values())
        assert moved == pytest.approx(plan.bytes_read + plan.bytes_written - headers, rel=1e-5)


def test_an_excerpt_describes_the_same_pieces(plans: dict[str, Plan]) -> None:
    plan = plans["FP8_BLOCK"]
    pieces = cut(plan, PIECE_BYTES)[-7:]
    part, numbered = excerpt(plan, pieces)
    assert len(part.tensors) < len(plan.tensors)
    for here, there in zip(pieces, numbered, strict=True):
        assert part.tensors[there[0]] == plan.tensors[here[0]]
        assert here[1:] == there[1:]
        assert source_bytes(part.tensors[there[0]], there) == source_bytes(plan.tensors[here[0]], here)


def test_whoever_hashes_what_it_streams_gets_whole_shards(plans: dict[str, Plan]) -> None:
    plan = plans["FP8_BLOCK"]
    pieces = cut(plan, PIECE_BYTES)
    batches = whole_shards(plan, pieces)
    assert sorted(piece for batch in batches for piece in batch.pieces) == sorted(pieces)
    shards = [{plan.tensors[number].shard for number, _, _ in batch.pieces} for batch in batches]
    assert all(len(each) == 1 for each in shards)
    assert set.union(*shards) == {shard.name for shard in plan.shards}
    assert len(batches) == len(plan.shards)
    sizes = [sum(moved_bytes(plan.tensors[piece[0]], piece) for piece in batch.pieces) for batch in batches]
    assert [batch.moved_bytes for batch in batches] == sizes


def test_batches_go_out_in_bundles_where_there_are_many_tasks_and_one_by_one_elsewhere() -> None:
    of = {count: Slots(count=count, cpus=1, workers=1, memory_bytes=1).bundle for count in (1, 2, 63, 64, 200, 1000)}
    assert of == {1: 1, 2: 1, 63: 1, 64: 2, 200: 7, 1000: 32}


def test_shards_that_nobody_read_as_a_whole_are_told_of() -> None:
    report = ClusterReport(
        address=None,
        start_seconds=1.0,
        work_seconds=1.0,
        batches=9,
        slots=8,
        cpus_per_task=1,
        shards_not_hashed=3,
        nodes=(),
    )
    assert report.warnings == (
        "fp8.json has no SHA-256 of 3 shards of the source: the tasks were too many for each to read whole ones",
    )
    assert replace(report, shards_not_hashed=0).warnings == ()


def test_a_giant_is_begun_first(plans: dict[str, Plan]) -> None:
    # With one scale for a whole tensor, one of 1 GB is a single piece.
    plan = plans["FP8"]
    sizes = [batch.moved_bytes for batch in cut_batches(plan, cut(plan, PIECE_BYTES), slots=200)]
    assert sizes[0] == max(sizes) > 1.5 * GB
    assert max(sizes[len(sizes) // 2 :]) < GB


@given(
    sizes=st.lists(st.integers(1, 10**9), min_size=1, max_size=60),
    slots=st.integers(1, 20),
    batch=st.floats(0, 0.1),
    driver=st.floats(0, 0.1),
)
def test_no_schedule_beats_its_slots_its_driver_or_its_largest_batch(
    sizes: Sequence[int], slots: int, batch: float, driver: float
) -> None:
    rates = Rates(slot_bytes_per_second=10**8, batch_seconds=batch, driver_seconds=driver)
    schedule = simulate(sizes, slots=slots, rates=rates)
    whole = [size / 10**8 + batch for size in sizes]
    least = max(sum(whole) / slots, driver * len(sizes), *whole)
    assert schedule.seconds >= least * (1 - 1e-9)
    # Graham's bound for a list, and the driver's whole time on top.
    assert schedule.seconds <= (sum(whole) / slots + max(whole) + driver * len(sizes)) * (1 + 1e-9)
    assert 0 < schedule.efficiency <= 1 + 1e-9


def test_a_schedule_that_can_be_worked_out_by_hand() -> None:
    rates = Rates(slot_bytes_per_second=10, batch_seconds=0.5, driver_seconds=1.0)
    # Handed out at 1, 2, 3, 4; two slots: 1 to 2.5, 2 to 3.5, 3 to 4.5, 4 to 5.5.
    schedule = simulate([10, 10, 10, 10], slots=2, rates=rates)
    assert schedule.seconds == 5.5
    assert schedule.efficiency == 2.0 / 5.5


def test_storage_that_does_not_keep_up_is_shared() -> None:
    rates = Rates(slot_bytes_per_second=10, batch_seconds=0, driver_seconds=0, storage_bytes_per_second=20)
    schedule = simulate([10] * 8, slots=8, rates=rates)
    assert schedule.seconds == 4.0
    assert schedule.efficiency == 0.25


@given(
    cpus=st.lists(st.integers(1, 256), min_size=1, max_size=50),
    workers=st.none() | st.integers(1, 64),
    memory=st.integers(2**20, 2**34),
)
def test_caps_of_memory_and_workers_hold_on_every_node(
    plans: dict[str, Plan], cpus: Sequence[int], workers: int | None, memory: int
) -> None:
    plan = plans["FP8_DYNAMIC"]
    least = plan.widest_tile_elements * SCRATCH_BYTES_PER_ELEMENT
    memory = max(memory, least)
    slots = share_nodes(plan, cpus, workers=workers, memory_bytes=memory)
    for each in cpus:
        tasks = each // slots.cpus
        assert tasks * slots.memory_bytes <= memory
        assert workers is None or tasks * slots.workers <= max(workers, tasks)
    assert slots.count == sum(each // slots.cpus for each in cpus) > 0
    assert slots.memory_bytes // slots.workers >= least


def test_a_large_cluster_gives_its_tasks_more_processors(plans: dict[str, Plan]) -> None:
    plan = plans["FP8_DYNAMIC"]
    assert share_nodes(plan, [64] * 2, workers=None, memory_bytes=2**34).cpus == 1
    large = share_nodes(plan, [64] * 1000, workers=None, memory_bytes=2**34)
    assert (large.cpus, large.workers, large.count) == (63, 63, 1000)


def test_up_to_ten_nodes_are_foreseen_to_be_faster_and_a_small_model_is_not_worth_it(plans: dict[str, Plan]) -> None:
    plan = plans["FP8_DYNAMIC"]
    resources = plan_resources(plan, device="cpu", workers=None, max_memory="1GiB", cpus=2)
    choice = ClusterChoice(address=None)
    large = foresee_cluster(plan, choice, resources, workers=None, cpus=2, local_seconds=60.0)
    times = [row.seconds for row in large.rows[:4]]
    assert times == sorted(times, reverse=True)
    assert large.rows[0].efficiency > 0.95
    assert large.warning is None
    small = foresee_cluster(plan, choice, resources, workers=None, cpus=2, local_seconds=5.0)
    assert small.warning is not None
    assert "not worth it" in small.warning


def test_what_the_option_says() -> None:
    assert read_cluster(None) is None
    assert read_cluster("ray", {}) == ClusterChoice(address=None)
    assert read_cluster("ray", {"RAY_ADDRESS": "head:6379"}) == ClusterChoice(address="head:6379")
    assert read_cluster("ray=local", {"RAY_ADDRESS": "head:6379"}) == ClusterChoice(address=None)
    assert read_cluster("ray=auto", {}) == ClusterChoice(address="auto")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dask", "--cluster `dask` is no cluster"),
        ("ray=", "--cluster `ray=` is no cluster"),
        ("ray=ray://head:10001", "`ray://head:10001` is an address for Ray's client, whose machine is no part of the"),
    ],
)
def test_what_the_option_cannot_mean(text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_cluster(text, {})
    assert refused.value.message.startswith(message)


def test_a_gpu_by_number_is_none_of_a_cluster() -> None:
    refuse_device("cuda")
    with pytest.raises(UsageError, match="names a GPU of one machine"):
        refuse_device("cuda:1")


class Twice:
    """A labour that does every piece twice, from the last to the first."""

    def __init__(self, staging: Staging, supply: LocalSupply, resources: Resources) -> None:
        self.staging, self.supply, self.resources = staging, supply, resources
        self.asked = 0

    def carry_out(
        self, plan: Plan, pieces: Sequence[Piece], finished: Callable[[Mapping[Piece, Harm]], None], watch: ShardWatch
    ) -> None:
        del watch
        self.asked = len(pieces)
        for piece in reversed(pieces):
            part, numbered = excerpt(plan, [piece])
            heard: dict[Piece, Harm] = {}
            for _ in range(2):
                crew = Crew(
                    plan=part,
                    supply=self.supply,
                    folder=self.staging.checkpoint,
                    out=self.staging.out,
                    resources=self.resources,
                    finished=heard.__setitem__,
                )
                crew.carry_out(numbered)
            finished({piece: heard[numbered[0]]})


@pytest.mark.parametrize("scheme", ["FP8", "FP8_BLOCK"])
def test_pieces_may_be_done_elsewhere_twice_and_in_any_order_beside_scales_that_were_calibrated_here(
    tmp_path: Path, scheme: str
) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), max_shard_size="300KB")
    plan = plan_of(source, scheme)
    supply, scales = LocalSupply(lambda name: source / name), made_up(plan)
    resources = plan_resources(plan, device="cpu", workers=2, max_memory="1GiB", cpus=2, piece_bytes=4096)

    def shards(out: Path, *, elsewhere: bool) -> tuple[dict[str, bytes], int]:
        with stage(out, {"the plan": plan.fingerprint()}, restart=False) as staging:
            labour = Twice(staging, supply, resources) if elsewhere else None
            execute(plan, supply, staging, resources, lambda _: None, scales=scales, labour=labour)
            made = {file.name: file.read_bytes() for file in staging.checkpoint.glob("*.safetensors")}
        return made, 0 if labour is None else labour.asked

    wanted, _ = shards(tmp_path / "here", elsewhere=False)
    made, asked = shards(tmp_path / "out", elsewhere=True)
    assert made == wanted
    assert asked == len(cut(plan, 4096))
    # All of it is in the journal.
    assert shards(tmp_path / "out", elsewhere=True) == (wanted, 0)


@cache
def sound(**changes: object) -> NodeFacts:
    facts: dict[str, object] = {
        "node": "a1", "name": "host/a1", "problem": None, "python": "3.12.1", "fp8": "1", "code": "c", "ray": "2",
        "torch": "2.13.0", "kernel": "avx2", "cpus": 2, "disk_free_bytes": 10 * GB,
    }  # fmt: skip
    return NodeFacts(**(facts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"kernel": None}, None),
        ({"problem": "does not answer within 60 seconds"}, "does not answer within 60 seconds"),
        ({"fp8": "2"}, "has fp8 2, and this machine has 1"),
        ({"code": "d"}, "has another fp8 1: its code is not the same"),
        ({"source_problem": "cannot see `a` in `/b`"}, "cannot see `a` in `/b`"),
        ({"folder_problem": "sees another `/o`"}, "sees another `/o`"),
        ({"disk_free_bytes": GB}, "sees 1.00 GB of free disk, of 2.00 needed"),
    ],
)
def test_what_makes_a_node_unfit(changes: dict[str, object], reason: str | None) -> None:
    facts = sound(**changes)
    assert why_unfit(facts, version="1", code="c", wrote=True, needed_bytes=2 * GB) == reason


def test_a_node_whose_sign_is_not_seen_here_writes_elsewhere() -> None:
    reason = why_unfit(sound(), version="1", code="c", wrote=False, needed_bytes=0)
    assert reason == "writes to another folder than the one this machine sees"


def test_the_odd_one_out_is_shown_with_what_the_others_have() -> None:
    nodes = {"a": sound(), "b": sound(), "c": sound(python="3.11.7", kernel=None), "d": sound(problem="is away")}
    assert odd_ones(nodes) == {"c": ("python is 3.11.7, elsewhere 3.12.1", "kernel is none, elsewhere avx2")}
