"""What the engine reads and what it tells: no byte that it did not ask for, and every file once when it is whole."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from family_matrix import FAMILIES

from fp8cli.core.quantizing import engine
from fp8cli.core.quantizing.crew import ShardWatch
from fp8cli.core.quantizing.engine import Progress, execute
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import plan_resources
from fp8cli.core.quantizing.supply import Line, LocalSupply, Supply
from fp8cli.errors import BadInput, Interrupted
from fp8cli.formats.ranges import Range
from fp8cli.formats.staging import Piece, Staging, stage
from tests.calibrated import plan_of
from tests.families import save_family
from tests.models import ODD, llama_config, save_model

TINY_PIECES = 4096


class Holes:
    """A supply whose files hold nothing but what was asked for: everything else is 0xFF, which is NaN in BF16."""

    def __init__(self, source: Path, window: Path) -> None:
        self.source, self.window, self.released = source, window, 0
        window.mkdir()
        for shard in source.glob("*.safetensors"):
            (window / shard.name).write_bytes(b"\xff" * shard.stat().st_size)

    def path(self, shard: str) -> Path:
        return self.window / shard

    def mode(self, shard: str) -> int:
        return LocalSupply(lambda name: self.source / name).mode(shard)

    def line_up(self, plan: Plan, pieces: Sequence[Piece]) -> Line:
        return LocalSupply(lambda name: self.source / name).line_up(plan, pieces)

    def fetch(self, ranges: Sequence[Range]) -> None:
        for shard, begin, end in ranges:
            with (self.source / shard).open("rb") as whole, (self.window / shard).open("r+b") as window:
                whole.seek(begin)
                window.seek(begin)
                window.write(whole.read(end - begin))

    def release(self, ranges: Sequence[Range]) -> None:
        self.released += len(ranges)


class Heard:
    """A watch that writes down what it is told, and looks whether it is true."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.sizes = {shard.name: shard.header.file_bytes for shard in plan.shards}
        self.folder = folder
        self.begun: set[str] = set()
        self.whole: dict[str, bytes] = {}

    def begins(self, shard: str) -> None:
        assert shard not in self.whole
        self.begun.add(shard)

    def finished(self, shard: str) -> None:
        assert shard not in self.whole
        self.whole[shard] = (self.folder / shard).read_bytes()

    def abandon(self) -> None:
        raise AssertionError


def write(
    plan: Plan,
    supply: Supply,
    out: Path,
    *,
    watch: Callable[[Staging], ShardWatch] | None = None,
    notify: Callable[[Progress], None] = lambda _: None,
) -> dict[str, bytes]:
    """Carry a plan out without publishing; return the shards."""
    resources = plan_resources(
        plan, device="cpu", workers=3, max_memory="1GiB", cpus=os.cpu_count() or 1, piece_bytes=TINY_PIECES
    )
    with stage(out, {"the plan": plan.fingerprint()}, restart=False) as staging:
        execute(plan, supply, staging, resources, notify, watch=watch and watch(staging))
        return {file.name: file.read_bytes() for file in staging.checkpoint.glob("*.safetensors")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("supply") / "source", llama_config(**ODD), max_shard_size="300KB")


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_byte_is_read_that_was_not_asked_for(tmp_path: Path, scheme: str, dtype: torch.dtype) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), dtype, max_shard_size="300KB")
    plan = plan_of(source, scheme)
    wanted = write(plan, LocalSupply(lambda name: source / name), tmp_path / "wanted")
    holes = Holes(source, tmp_path / "window")
    assert write(plan, holes, tmp_path / "out") == wanted
    assert holes.released > len(plan.tensors)


@pytest.mark.filterwarnings("ignore:Casting complex values")  # transformers, of what this family's rotation keeps
def test_neither_is_one_of_experts_that_are_stored_as_their_transpose(tmp_path: Path) -> None:
    family = next(each for each in FAMILIES if each.architecture == "Llama4ForConditionalGeneration")
    source = save_family(family, tmp_path / "source")
    plan = plan_of(source, "FP8_DYNAMIC")
    assert any(tensor.stride is not None for tensor in plan.tensors)
    wanted = write(plan, LocalSupply(lambda name: source / name), tmp_path / "wanted")
    assert write(plan, Holes(source, tmp_path / "window"), tmp_path / "out") == wanted


def test_every_shard_is_told_of_once_when_it_is_whole_and_in_the_journal(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source, "FP8_DYNAMIC")
    heard: list[Heard] = []

    def watch(staging: Staging) -> Heard:
        heard.append(Heard(plan, staging.checkpoint))
        return heard[-1]

    supply = LocalSupply(lambda name: source / name)
    wanted = write(plan, supply, tmp_path / "out", watch=watch)
    assert heard[0].whole == wanted
    assert heard[0].begun == set(wanted)
    # All of it is in the journal: another run has nothing to do, and tells of every file all the same.
    assert write(plan, supply, tmp_path / "out", watch=watch) == wanted
    assert heard[1].whole == wanted
    assert heard[1].begun == set()


def test_nothing_is_written_to_a_shard_before_the_watch_lets_it_begin(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(source, "FP8_DYNAMIC")
    untouched: dict[str, bytes] = {}
    prepare = engine.prepare_files

    def prepared(*told: object) -> None:
        prepare(*told)  # type: ignore[arg-type]
        folder = told[2]
        assert isinstance(folder, Path)
        untouched.update({file.name: file.read_bytes() for file in folder.glob("*.safetensors")})

    monkeypatch.setattr(engine, "prepare_files", prepared)
    seen: dict[str, bytes] = {}

    class Looks(Heard):
        def begins(self, shard: str) -> None:
            super().begins(shard)
            seen.setdefault(shard, (self.folder / shard).read_bytes())

    # One worker: with more, another may be in the file already when it is looked at a second time.
    write(plan, LocalSupply(lambda name: source / name), tmp_path / "out", watch=lambda it: Looks(plan, it.checkpoint))
    assert seen == untouched


def test_a_weight_that_is_damaged_ends_the_run_though_other_workers_wait_for_room(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), max_shard_size="300KB")
    plan = plan_of(source, "FP8_DYNAMIC")
    # In the largest file, which is begun first.
    sizes = Counter[str]()
    for tensor in plan.tensors:
        sizes[tensor.shard] += tensor.source.bytes
    largest = sizes.most_common(1)[0][0]
    damaged = next(tensor for tensor in plan.tensors if tensor.action == "quantize" and tensor.shard == largest)
    with (source / damaged.source_shard).open("r+b") as file:
        file.seek(damaged.source.begin)
        file.write(b"\xc0\x7f")

    class Full(Heard):
        """Has room for one shard, ever."""

        over = threading.Event()

        def begins(self, shard: str) -> None:
            if shard != damaged.shard:
                assert self.over.wait(60)
                message = "let go"
                raise Interrupted(message)

        def abandon(self) -> None:
            self.over.set()

    supply = LocalSupply(lambda name: source / name)
    with pytest.raises(BadInput, match="holds NaN at row 0, column 0"):
        write(plan, supply, tmp_path / "out", watch=lambda staging: Full(plan, staging.checkpoint))
