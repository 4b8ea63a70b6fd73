"""The parts of a delivery one by one: the ledger, the window, holes, threads, and places that move files."""

import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import fsspec
import pytest

from fp8cli.commands.quantize import DeliveryOptions, QuantizeRequest, run
from fp8cli.core.delivering.ledger import Ledger
from fp8cli.core.delivering.ordering import disk_window
from fp8cli.core.delivering.shards import ShardSender
from fp8cli.errors import CannotRun, Interrupted, UsageError
from fp8cli.formats.destinations import Notes, SendOptions, Sent, Standing, Upload, name_destination, open_destination
from fp8cli.formats.holes import punch, takes_holes
from fp8cli.formats.moved_files import MovedFiles
from fp8cli.formats.waiting_threads import for_each
from tests.calibrated import MODEL, plan_of
from tests.models import llama_config, save_model


def test_the_ledger_reads_what_it_wrote_whatever_was_torn_off(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "delivery")
    ledger.open("s3://bucket/x", "run")
    ledger.begun("a", Upload(id="1", part_bytes=5))
    ledger.part("a", 2, "two")
    ledger.begun("b", Upload(id="2", part_bytes=5))
    sent = Sent(name="b", file=Path("b"), upload=Upload(id="2", part_bytes=5, parts={1: "one"}), sha256="00")
    ledger.whole(sent, punched=True)
    ledger.forgotten("b")
    whole = ledger.path.read_text()
    assert Ledger.read(ledger.path).entries == ledger.entries
    assert ledger.entries["b"].lost
    for length in range(0, len(whole), 3):
        ledger.path.write_text(whole[:length])
        torn = Ledger.read(ledger.path)
        torn.part("a", 9, "nine") if "a" in torn.entries else torn.begun("a", Upload(id="9"))
        assert Ledger.read(ledger.path).entries == torn.entries


def test_a_hole_gives_its_place_back_and_leaves_the_rest(tmp_path: Path) -> None:
    if not takes_holes(tmp_path):
        pytest.skip("this file system has no holes")
    file = tmp_path / "file"
    file.write_bytes(b"\xff" * 2**20)
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())
        before = os.fstat(opened.fileno()).st_blocks
        assert punch(opened.fileno(), 1000, 2**20 - 1000)
        assert os.fstat(opened.fileno()).st_blocks < before / 4
    assert file.read_bytes() == b"\xff" * 1000 + bytes(2**20 - 2000) + b"\xff" * 1000
    assert list(tmp_path.iterdir()) == [file]


def test_the_first_error_of_many_threads_is_raised_and_ends_them() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 5:
            raise ValueError(number)
        done.append(number)

    with pytest.raises(ValueError, match="5"):
        for_each(iter(range(10_000)), work, threads=3)
    assert len(done) < 10_000
    for_each(range(20), lambda number: done.append(-number), threads=3)
    assert set(range(-19, 0)) <= set(done)


class Slow:
    """A place that takes a file when it is told to."""

    def __init__(self) -> None:
        self.may = threading.Semaphore(0)
        self.label = "slow://place"
        self.problem: Exception | None = None

    def send(self, name: str, file: Path, before: Upload | None, notes: Notes) -> tuple[Upload, str]:
        del before
        self.may.acquire()
        if self.problem is not None:
            raise self.problem
        notes.sent(file.stat().st_size)
        return Upload(id=name), "00"

    def look(self) -> Standing | None:
        return None

    def prepare(self, standing: Standing | None) -> Standing:
        return standing or Standing(files=())

    def holds(self, name: str, size: int, upload: Upload) -> bool:
        return bool(name and size and upload)

    def commit(self, large: Sequence[Sent], small: Mapping[str, Path], standing: Standing) -> str | None:
        del large, small, standing
        return None

    def abort(self, uploads: Mapping[str, Upload]) -> None:
        del uploads


@pytest.fixture
def slow(tmp_path: Path) -> tuple[Slow, ShardSender]:
    """Four shards of 100 bytes, of which two and a half fit into the window."""
    place = Slow()
    for name in "abcd":
        (tmp_path / name).write_bytes(bytes(100))
    sender = ShardSender(
        destination=place,
        ledger=Ledger(tmp_path / "delivery"),
        folder=tmp_path,
        sizes=dict.fromkeys("abcd", 100),
        weights={},
        window_bytes=250,
        notify=lambda _: None,
    )
    sender.start()
    return place, sender


def begin_later(sender: ShardSender, shard: str) -> tuple[threading.Thread, list[BaseException | None]]:
    """Let another thread begin a shard; the list holds how that ended."""
    ended: list[BaseException | None] = []

    def begin() -> None:
        try:
            sender.begins(shard)
            ended.append(None)
        except (CannotRun, Interrupted) as problem:
            ended.append(problem)

    thread = threading.Thread(target=begin)
    thread.start()
    time.sleep(0.05)
    return thread, ended


def test_a_shard_begins_when_one_that_was_sent_makes_room(slow: tuple[Slow, ShardSender]) -> None:
    place, sender = slow
    sender.begins("a")
    sender.begins("b")
    sender.begins("a")
    thread, ended = begin_later(sender, "c")
    assert not ended
    sender.finished("b")
    assert not ended
    place.may.release()
    thread.join(10)
    assert ended == [None]
    for name in "acd":
        sender.finished(name)
        place.may.release()
    assert [sent.name for sent in sender.wait()] == list("abcd")
    assert sender.waited_seconds > 0


def test_who_waits_for_room_is_told_what_went_wrong(slow: tuple[Slow, ShardSender]) -> None:
    place, sender = slow
    place.problem = CannotRun("the place burned down")
    sender.begins("a")
    sender.begins("b")
    thread, ended = begin_later(sender, "c")
    sender.finished("a")
    place.may.release()
    thread.join(10)
    assert ended == [place.problem]
    with pytest.raises(CannotRun, match="burned down"):
        sender.wait()


def test_on_a_cluster_as_many_shards_may_be_made_as_the_disk_has_room_for(tmp_path: Path) -> None:
    plan = plan_of(MODEL, "FP8_DYNAMIC")
    (shard,) = (each.header.file_bytes for each in plan.shards)
    assert disk_window(plan, tmp_path, workers=1) == 3 * shard
    assert disk_window(plan, tmp_path, workers=64) == 8 * shard
    room = disk_window(plan, tmp_path, workers=None)
    assert room is not None
    free = shutil.disk_usage(tmp_path).free
    assert 0.8 * free < room < free


def test_who_waits_for_room_is_let_go_when_it_is_stopped(slow: tuple[Slow, ShardSender]) -> None:
    _, sender = slow
    sender.begins("a")
    sender.begins("b")
    thread, ended = begin_later(sender, "c")
    sender.stop()
    thread.join(10)
    assert isinstance(ended[0], Interrupted)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("moved") / "source", llama_config(), max_shard_size="300KB")


def contents(place: str) -> dict[str, bytes]:
    """What fsspec itself finds there, whole folder."""
    files, path = fsspec.url_to_fs(place)
    return {name.removeprefix(f"{path}/"): files.cat_file(name) for name in files.find(path)}


def test_any_file_system_of_fsspec_can_be_written_to(source: Path, tmp_path: Path) -> None:
    run(QuantizeRequest(model=str(source), out=tmp_path / "here" / "tiny"))
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "here" / "tiny").iterdir()}
    for place in ("memory://some/where/tiny", f"file://{tmp_path}/there/tiny"):
        options = DeliveryOptions(out=place, work_dir=tmp_path / "work")
        run(QuantizeRequest(model=str(source), delivery=options))
        assert contents(place) == wanted
        with pytest.raises(UsageError, match="already"):
            run(QuantizeRequest(model=str(source), delivery=options))
        with fsspec.open(f"{place}/old.safetensors", "wb") as old:
            old.write(b"old")
        run(QuantizeRequest(model=str(source), delivery=options, overwrite=True))
        assert contents(place) == wanted
        assert set(contents(place.rpartition("/")[0])) == {f"tiny/{name}" for name in wanted}


def test_what_grows_for_a_whole_bucket_is_hidden_inside_it() -> None:
    class Bucketed(MovedFiles):
        _place = (fsspec.filesystem("memory"), "bucket")

    address = name_destination("memory://bucket")
    assert address is not None
    place = Bucketed(address)
    assert place._hidden("shard") == "bucket/.fp8-partial/shard"
    fsspec.filesystem("memory").pipe_file("bucket/.fp8-partial/shard", b"half")
    fsspec.filesystem("memory").pipe_file("bucket/config.json", b"{}")
    assert place.look() == Standing(files=("config.json",))


def test_what_was_not_moved_yet_is_moved_by_the_next_run(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "there" / "tiny"
    blocker = place / "config.json" / "in-the-way"
    options = DeliveryOptions(out=f"file://{place}", work_dir=tmp_path / "work")
    blocker.parent.mkdir(parents=True)
    with pytest.raises(CannotRun):
        run(QuantizeRequest(model=str(source), delivery=options))
    assert not (place / "config.json").is_file()
    blocker.parent.rmdir()
    run(QuantizeRequest(model=str(source), delivery=options))
    assert (place / "config.json").is_file()
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    for place, extra in (("gs://bucket/x", "gcs"), ("s3://bucket/x", "s3")):
        address = name_destination(place)
        assert address is not None
        with pytest.raises(CannotRun) as refused:
            open_destination(address, SendOptions()).look()
        assert refused.value.hint == f'pip install "fp8cli[{extra}]"'
