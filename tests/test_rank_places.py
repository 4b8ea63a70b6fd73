"""Which rank of a calibration goes to which node, and who may say that memory does."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fp8cli.core.calibrating.ordering import CalibrationOptions, order_calibration
from fp8cli.core.calibrating.outlook import check_calibration, estimate_memory, settle
from fp8cli.core.clustering.messages import NodeFacts
from fp8cli.core.clustering.rank_host import interface_of
from fp8cli.core.clustering.rank_places import place_ranks
from fp8cli.core.quantizing.choices import choose
from fp8cli.core.sampling.data import BUNDLED_MODEL, BUNDLED_STORIES
from fp8cli.errors import CannotRun
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from tests.calibrated import plan_of

GIB = 2**30


def node(name: str, *, cpus: int = 8, gpus: int = 0, memory: int | None = 64 * GIB) -> NodeFacts:
    return NodeFacts(node=f"id-{name}", name=name, problem=None, cpus=cpus, gpu_slots=gpus, memory_bytes=memory)


def counts(nodes: list[NodeFacts], ranks: int, **wishes: Any) -> Counter[str]:
    settings: dict[str, Any] = {"device": "auto", "memory_bytes": GIB, **wishes}
    return Counter(place.name for place in place_ranks(nodes, ranks, **settings))


def test_ranks_are_spread_and_share_the_processors_of_their_node() -> None:
    places = place_ranks([node("a"), node("b", cpus=4)], 3, device="auto", memory_bytes=GIB)
    assert Counter(place.name for place in places) == {"a": 2, "b": 1}
    assert {(place.name, place.cpus, place.gpus) for place in places} == {("a", 4, 0), ("b", 4, 0)}


def test_gpus_are_for_all_ranks_or_for_none() -> None:
    nodes = [node("a", gpus=2), node("b"), node("c", gpus=1)]
    places = place_ranks(nodes, 3, device="auto", memory_bytes=GIB)
    assert Counter(place.name for place in places) == {"a": 2, "c": 1}
    assert all(place.gpus == 1 for place in places)
    assert counts(nodes, 3, device="cpu") == {"a": 1, "b": 1, "c": 1}
    with pytest.raises(CannotRun, match=r"4 processes need a GPU and 1\.00 GiB of memory each, .* places for 3: `a` 2"):
        counts(nodes, 4)


def test_a_node_takes_no_more_ranks_than_its_memory_holds() -> None:
    nodes = [node("small", memory=3 * GIB), node("unknown", memory=None, cpus=2)]
    assert counts(nodes, 3, memory_bytes=2 * GIB) == {"small": 1, "unknown": 2}
    with pytest.raises(CannotRun, match=r"4 processes need a processor and 2\.00 GiB of memory each") as refusal:
        counts(nodes, 4, memory_bytes=2 * GIB)
    assert refusal.value.hint is not None
    assert "--calibration-processes" in refusal.value.hint


def test_the_memory_of_this_machine_is_not_judged_for_processes_of_others(tmp_path: Path) -> None:
    options = CalibrationOptions(data=str(BUNDLED_STORIES), processes=200)
    plan, checkpoint = plan_of(BUNDLED_MODEL, "FP8"), open_checkpoint(LocalFolder(BUNDLED_MODEL))
    for on_cluster, status in ((False, "failed"), (True, "not checked")):
        found = order_calibration(options, choose("FP8", None), model=BUNDLED_MODEL, on_cluster=on_cluster)
        assert found is not None
        order = settle(found, plan, checkpoint, root=tmp_path)
        assert 0 < order.process_bytes < GIB
        (tmp_path / "proc" / "self").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {GIB // 1024} kB\nMemAvailable: {GIB // 1024} kB\n")
        (tmp_path / "proc" / "self" / "cgroup").write_text("")
        (tmp_path / "proc" / "self" / "mountinfo").write_text("")
        check, _ = check_calibration(order, estimate_memory(order, plan, checkpoint, root=tmp_path), root=tmp_path)
        assert (check.name, check.status) == ("calibration memory", status)


def test_one_process_stays_here_whatever_the_cluster() -> None:
    options = CalibrationOptions(data=str(BUNDLED_STORIES))
    order = order_calibration(options, choose("FP8", None), model=BUNDLED_MODEL, on_cluster=True)
    assert order is not None
    assert not order.placed


def test_the_interface_of_an_address_is_named() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None
