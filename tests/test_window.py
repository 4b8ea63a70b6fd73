"""The window by itself: whatever its size, the bytes are those of files here, and it is never outgrown."""

import hashlib
import os
import random
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from family_matrix import FAMILIES
from safetensors.torch import load_file, save_file

from fp8cli.core.fetching import window_supply
from fp8cli.core.fetching.blocks import PAGE_BYTES, Blocks
from fp8cli.core.fetching.duplicates import same_elsewhere
from fp8cli.core.fetching.window_files import WindowFiles
from fp8cli.core.fetching.window_hashing import ShardToHash
from fp8cli.core.fetching.window_supply import WindowSupply
from fp8cli.core.quantizing.engine import check_duplicates, execute
from fp8cli.core.quantizing.pieces import cut, source_ranges
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import plan_resources
from fp8cli.core.quantizing.supply import LocalSupply, Supply
from fp8cli.errors import BadInput, CannotRun
from fp8cli.formats import patience
from fp8cli.formats.addresses import Address
from fp8cli.formats.holes import takes_holes
from fp8cli.formats.patience import Stopped
from fp8cli.formats.remote_folder import RemoteFolder
from fp8cli.formats.staging import Piece, stage
from tests.calibrated import plan_of
from tests.families import save_family
from tests.models import ODD, llama_config, qwen2_config, save_model
from tests.streamed import watched_window

BLOCK_BYTES = 4 * PAGE_BYTES
PIECE_BYTES = 8192


def write(plan: Plan, supply: Supply, out: Path) -> dict[str, bytes]:
    """Carry a plan out without publishing; return the shards."""
    resources = plan_resources(
        plan, device="cpu", workers=3, max_memory="1GiB", cpus=os.cpu_count() or 1, piece_bytes=PIECE_BYTES
    )
    with stage(out, {"the plan": plan.fingerprint()}, restart=False) as staging:
        execute(plan, supply, staging, resources, lambda _: None)
        return {file.name: file.read_bytes() for file in staging.checkpoint.glob("*.safetensors")}


def write_and_hash(plan: Plan, supply: WindowSupply, out: Path) -> Mapping[str, str]:
    """Do so, and wait for the hashes, which may be what fails first."""
    write(plan, supply, out)
    return supply.hashes()


def least_of(plan: Plan) -> int:
    """What the largest piece needs."""
    pieces = cut(plan, PIECE_BYTES)
    blocks = Blocks(plan, pieces, block_bytes=BLOCK_BYTES)
    return max(blocks.size_of(source_ranges(plan.tensors[piece[0]], piece)) for piece in pieces)


def hashes_in(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every shard, by hashlib."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def window_of(source: Path, out: Path, window_bytes: int, told: Mapping[str, str] | None = None) -> WindowSupply:
    told = told or {}
    return WindowSupply(
        # A file system like any other to fsspec.
        place=RemoteFolder(Address(scheme="file", path=str(source))),
        folder=out.parent / f".{out.name}.fp8-partial" / "window",
        out=out,
        connections=3,
        window_bytes=window_bytes,
        hashing={
            path.name: ShardToHash(bytes=path.stat().st_size, told=told.get(path.name))
            for path in source.glob("*.safetensors")
        },
        block_bytes=BLOCK_BYTES,
    )


def check(plan: Plan, source: Path, tmp_path: Path, *, times_least: int) -> WindowSupply:
    wanted = write(plan, LocalSupply(lambda name: source / name), tmp_path / "wanted")
    out, room = tmp_path / "out", times_least * least_of(plan)
    supply = window_of(source, out, room)
    with watched_window(out) as seen:
        assert write(plan, supply, out) == wanted
        assert supply.hashes() == hashes_in(source)
    assert not list(supply.folder.iterdir())
    facts = supply.facts()
    assert facts is not None
    assert facts.window_peak_bytes <= room
    assert seen.peak_bytes <= room
    supply.close()
    assert not supply.folder.exists()
    return supply


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
@pytest.mark.parametrize("times_least", [1, 8])
def test_a_window_as_large_as_the_largest_piece_is_enough(tmp_path: Path, scheme: str, times_least: int) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), max_shard_size="300KB")
    plan = plan_of(source, scheme)
    facts = check(plan, source, tmp_path, times_least=times_least).facts()
    assert facts is not None
    assert facts.bytes_fetched == plan.bytes_read
    assert facts.asked_again == 0


@pytest.mark.filterwarnings("ignore:Casting complex values")  # transformers, of what this family's rotation keeps
def test_pieces_that_lie_all_over_each_other_are_enough_for_it_too(tmp_path: Path) -> None:
    family = next(each for each in FAMILIES if each.architecture == "Llama4ForConditionalGeneration")
    source = save_family(family, tmp_path / "source")
    plan = plan_of(source, "FP8_DYNAMIC")
    assert any(tensor.stride is not None for tensor in plan.tensors)
    check(plan, source, tmp_path, times_least=1)


@pytest.mark.parametrize("times_least", [1, 2])
def test_whatever_the_order_of_the_work_every_shard_is_hashed_and_the_window_stays_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times_least: int
) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), max_shard_size="300KB")
    assert len(hashes_in(source)) > 2
    plan = plan_of(source, "FP8_DYNAMIC")

    def shuffled(_: Plan, pieces: Iterable[Piece]) -> list[Piece]:
        return random.Random(7).sample(list(pieces), len(list(pieces)))

    monkeypatch.setattr(window_supply, "in_order", shuffled)
    facts = check(plan, source, tmp_path, times_least=times_least).facts()
    assert facts is not None
    # What had to make room before its turn was read once more.
    assert facts.bytes_for_hashes > 0


def test_what_an_earlier_run_has_done_is_read_again_for_the_hash(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), max_shard_size="300KB")
    plan = plan_of(source, "FP8_DYNAMIC")
    supply = window_of(source, tmp_path / "out", 4 * least_of(plan))
    line = supply.line_up(plan, [])
    assert line.take(None) is None
    line.stop()
    assert supply.hashes() == hashes_in(source)
    facts = supply.facts()
    assert facts is not None
    assert facts.bytes_for_hashes == sum(path.stat().st_size for path in source.glob("*.safetensors"))
    supply.close()


def test_a_shard_that_is_not_what_the_server_says_is_refused(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", llama_config(**ODD), max_shard_size="300KB")
    plan = plan_of(source, "FP8_DYNAMIC")
    told = hashes_in(source)
    harmed = max(told)
    told[harmed] = "0" * 64
    supply = window_of(source, tmp_path / "out", 4 * least_of(plan), told)
    with pytest.raises(BadInput, match=f"^`{harmed}` came with the SHA-256 .*, and `file://.*` says 0{{64}}$"):
        write_and_hash(plan, supply, tmp_path / "out")
    supply.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fp8-hash")]


def test_a_source_that_is_cut_short_is_refused_and_nothing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PAUSES", (0.01,))
    source = save_model(tmp_path / "source", llama_config(), max_shard_size="300KB")
    plan = plan_of(source, "FP8_DYNAMIC")
    shard = max(source.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 10)
    supply = window_of(source, tmp_path / "out", 2**22)
    with pytest.raises(CannotRun, match=f"`{shard.name}` in `file://.*` ends at byte .*, inside its weights"):
        write(plan, supply, tmp_path / "out")
    supply.close()
    assert not supply.folder.exists()


def test_a_tied_head_that_is_stored_twice_is_compared_where_it_lies(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", qwen2_config(vocab_size=40_000))
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    plan = plan_of(source, "FP8_DYNAMIC")
    assert plan.duplicates == (("lm_head.weight", "model.embed_tokens.weight"),)

    def check() -> None:
        place = RemoteFolder(Address(scheme="file", path=str(source)))
        check_duplicates(plan, partial(same_elsewhere, place=place, connections=2))

    check()
    # The last number of 10 MB, which another request brings than the first.
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="holds different values for the two"):
        check()


def test_a_file_that_is_not_the_one_that_was_listed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"before")
    (tmp_path / "b").write_bytes(b"before")
    place = RemoteFolder(Address(scheme="file", path=str(tmp_path)))
    assert place.files() == {"a": 6, "b": 6}
    before = place.state(["a"])
    (tmp_path / "b").write_bytes(b"after all")
    assert place.state(["a"]) == before
    with pytest.raises(BadInput, match=r"`b` in `file://.*` was changed while it was being read"):
        place.state(["a", "b"])
    (tmp_path / "a").unlink()
    with pytest.raises(BadInput, match="`a` in"):
        place.state(["a"])


def test_a_block_is_given_back_though_it_is_open_and_another_one_stays(tmp_path: Path) -> None:
    files = WindowFiles(tmp_path / "window")
    span = (10 * PAGE_BYTES, 18 * PAGE_BYTES)
    for block in (("a/b", 0), ("a/b", 1)):
        files.begin(block, span)
        with files.writing(block) as write:
            write(span[0] + 5, b"x" * (8 * PAGE_BYTES - 5))
    first, second = (files.file(("a/b", number)).path for number in (0, 1))
    with first.open("rb") as reading:
        files.give_back(("a/b", 0))
        assert os.fstat(reading.fileno()).st_blocks == 0
    assert list((tmp_path / "window").iterdir()) == [second]
    assert second.read_bytes() == bytes(5) + b"x" * (8 * PAGE_BYTES - 5)
    # What comes again is not taken for what was there.
    files.begin(("a/b", 0), span)
    assert files.file(("a/b", 0)).path not in {first, second}
    with files.writing(("a/b", 1)) as write:
        files.close()
        assert not (tmp_path / "window").exists()
        with pytest.raises(Stopped):
            write(0, b"late")
    with pytest.raises(Stopped):
        files.begin(("a/b", 2), span)
    assert not (tmp_path / "window").exists()


@pytest.fixture
def no_holes(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system that can make no holes in files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "ramfs", "ramfs", str(disk)], check=False).returncode:
        pytest.skip("needs a user who may mount a ramfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_file_system_without_holes_holds_no_more_than_one_with_them(no_holes: Path, tmp_path: Path) -> None:
    assert not takes_holes(no_holes)
    source = save_model(tmp_path / "source", llama_config(**ODD), max_shard_size="300KB")
    facts = check(plan_of(source, "FP8_BLOCK"), source, no_holes, times_least=1).facts()
    assert facts is not None
    assert facts.window_peak_bytes < sum(path.stat().st_size for path in source.glob("*.safetensors")) / 2
