"""Nodes send shards: no part twice whoever goes on, no credential on the way, and this machine where no node can.

What a node does is done here by the function that Ray would call there; a real cluster is in test_far.
"""

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fp8cli.core.clustering.carrier import Carrier, travels
from fp8cli.core.clustering.errand_labour import _send
from fp8cli.core.clustering.errand_messages import ErrandFailed, Order, SendDone, SendOrder, Sight
from fp8cli.core.clustering.errands import Answer
from fp8cli.core.clustering.sending_notes import NodeNotes, read_notes, with_notes
from fp8cli.errors import CannotRun, Fp8Error, Interrupted
from fp8cli.formats.addresses import Address, parse_address
from fp8cli.formats.destinations import SendOptions, Sent, Standing, Upload, open_destination
from tests.loopback_bucket import BUCKET, LoopbackBucket, serving, small_parts
from tests.loopback_hub_uploads import serving as hub_serving

PART = 2**16
SIZE = 5 * PART + 1000
NAME = "model.safetensors"
PLACE = Address(scheme="s3", path=f"{BUCKET}/out")


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackBucket]:
    with serving() as bucket:
        yield bucket


@pytest.fixture
def bucket(server: LoopbackBucket, monkeypatch: pytest.MonkeyPatch) -> LoopbackBucket:
    small_parts(monkeypatch, server)
    server.requests.clear()
    server.recover()
    return server


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / NAME
    path.write_bytes(bytes(number % 251 for number in range(SIZE)))
    return path


@dataclass
class Node:
    """Does an errand at once, or in another way that a test wants."""

    do: Callable[[SendOrder], Answer]
    orders: list[SendOrder] = field(default_factory=list)
    muted: list[str] = field(default_factory=list)

    def ask(self, order: Callable[[int], Order]) -> "Future[Answer]":
        made = order(len(self.orders))
        assert isinstance(made, SendOrder)
        self.orders.append(made)
        promise: Future[Answer] = Future()
        try:
            promise.set_result(self.do(made))
        except Fp8Error as problem:
            promise.set_exception(problem)
        return promise

    def mute(self, node: str, name: str, reason: str) -> None:
        self.muted.append(f"{node} {name} {reason}")


@dataclass
class Books:
    """A ledger of one file."""

    upload: Upload | None = None
    parts: list[int] = field(default_factory=list)
    count: int = 0
    before: int = 0

    def begun(self, upload: Upload) -> None:
        self.upload = upload

    def about_to_send(self) -> None:
        pass

    def part(self, number: int, tag: str) -> None:
        assert tag
        self.parts.append(number)

    def sent(self, count: int, *, before: bool = False) -> None:
        self.count += count
        self.before += count if before else 0


def carrier(node: Node, folder: Path, place: Address = PLACE) -> Carrier:
    return Carrier(
        errands=node,  # type: ignore[arg-type]  # what it asks of `Errands`
        sight=lambda: Sight(shared=folder, token="token", code="code"),
        notes=folder / "sent",
        address=place,
        options=SendOptions(),
        destination=open_destination(place, SendOptions()),
    )


def at_once(order: SendOrder) -> Answer:
    done = _send(order, "1", "one")
    assert isinstance(done, SendDone)
    return done


def commit(upload: Upload, file: Path, sha256: str) -> None:
    sent = Sent(name=NAME, file=file, upload=upload, sha256=sha256)
    open_destination(PLACE, SendOptions()).commit([sent], {}, Standing(files=()))


def test_a_node_sends_what_this_machine_began_and_will_finish(
    bucket: LoopbackBucket, shard: Path, tmp_path: Path
) -> None:
    node, books = Node(at_once), Books()
    upload, sha256 = carrier(node, tmp_path).send(NAME, shard, None, books)
    assert sha256 == hashlib.sha256(shard.read_bytes()).hexdigest()
    assert books.upload is not None
    assert upload.id == books.upload.id
    assert sorted(books.parts) == [1, 2, 3, 4, 5, 6]
    assert (books.count, books.before) == (SIZE, 0)
    commit(upload, shard, sha256)
    assert bucket.contents("out") == {NAME: shard.read_bytes()}
    assert b"hush-hush" not in pickle.dumps(node.orders[0])


def test_who_goes_on_after_a_node_that_died_sends_no_part_that_is_there(
    bucket: LoopbackBucket, shard: Path, tmp_path: Path
) -> None:
    def dies(order: SendOrder) -> Answer:
        before = with_notes(order.before, read_notes(order.notes, order.file))
        assert before is not None
        destination = open_destination(PLACE, SendOptions())
        # As it would with two parts of a file that goes on: then its power fails.
        short = tmp_path / "short"
        short.write_bytes(shard.read_bytes()[: 2 * PART])
        destination.send(NAME, short, before, NodeNotes(order.notes, order.file, before))
        return at_once(order)

    books = Books()
    upload, sha256 = carrier(Node(dies), tmp_path).send(NAME, shard, None, books)
    assert sorted(books.parts) == [1, 2, 3, 4, 5, 6]
    assert books.count == SIZE
    assert set(bucket.parts().values()) == {1}
    assert sha256 == hashlib.sha256(shard.read_bytes()).hexdigest()
    assert len(upload.parts) == 6


def test_another_run_goes_on_where_a_node_of_the_last_one_was(
    bucket: LoopbackBucket, shard: Path, tmp_path: Path
) -> None:
    first = Books()

    def ends(order: SendOrder) -> Answer:
        _send(order, "1", "one")
        raise Interrupted("the run was killed before it heard of that")

    with pytest.raises(Interrupted):
        carrier(Node(ends), tmp_path).send(NAME, shard, None, first)
    assert first.parts == []
    second = Books()
    carrier(Node(at_once), tmp_path).send(NAME, shard, first.upload, second)
    assert second.upload is None
    assert sorted(second.parts) == [1, 2, 3, 4, 5, 6]
    assert (second.count, second.before) == (SIZE, SIZE)
    assert set(bucket.parts().values()) == {1}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_node_puts_a_shard_into_the_storage_of_the_hub_and_this_machine_makes_the_commit(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Address(scheme="hf", path="acme/out")
    with hub_serving(tmp_path, monkeypatch) as hub:
        destination = open_destination(place, SendOptions())
        standing = destination.prepare(destination.look())
        commits = len(hub.repos["acme/out"].commits)
        books = Books()
        upload, sha256 = carrier(Node(at_once), tmp_path, place).send(NAME, shard, None, books)
        assert (books.upload, books.count) == (None, SIZE)
        assert hub.contents("acme/out") == {}
        destination.commit([Sent(name=NAME, file=shard, upload=upload, sha256=sha256)], {}, standing)
        assert hub.contents("acme/out") == {NAME: shard.read_bytes()}
        assert len(hub.repos["acme/out"].commits) == commits + 1


@pytest.mark.parametrize("ends", ["failed", "alone"])
def test_what_no_node_can_send_this_machine_sends(
    bucket: LoopbackBucket, shard: Path, tmp_path: Path, ends: str
) -> None:
    def cannot(order: SendOrder) -> Answer:
        if ends == "alone":
            raise CannotRun("no node of the cluster can work any more")
        return ErrandFailed(number=order.number, node="", name="", message="no node can send")

    books = Books()
    upload, sha256 = carrier(Node(cannot), tmp_path).send(NAME, shard, None, books)
    assert books.count == SIZE
    assert set(bucket.parts().values()) == {1}
    commit(upload, shard, sha256)
    assert bucket.contents("out") == {NAME: shard.read_bytes()}


def test_a_node_that_sends_to_another_place_of_that_name_is_found_out(
    bucket: LoopbackBucket, shard: Path, tmp_path: Path
) -> None:
    def elsewhere(order: SendOrder) -> Answer:
        assert order.before is not None
        upload = Upload(id=order.before.id, part_bytes=PART, parts={number: f'"{number}"' for number in range(1, 7)})
        return SendDone(
            number=order.number, node="1", name="one", bytes=order.bytes, upload=upload, sha256="0" * 64, seconds=1.0
        )

    node, books = Node(elsewhere), Books()
    upload, sha256 = carrier(node, tmp_path).send(NAME, shard, None, books)
    assert node.muted == [f"1 one what it sent of `{NAME}` is not at `s3://{BUCKET}/out`"]
    assert sha256 == hashlib.sha256(shard.read_bytes()).hexdigest()
    commit(upload, shard, sha256)
    assert bucket.contents("out") == {NAME: shard.read_bytes()}


def test_a_node_that_comes_back_from_the_dead_spoils_nothing_that_another_one_has_sent(
    bucket: LoopbackBucket, shard: Path, tmp_path: Path
) -> None:
    def dies_and_comes_back(order: SendOrder) -> Answer:
        before = with_notes(order.before, read_notes(order.notes, order.file))
        assert before is not None
        of_the_dead = NodeNotes(order.notes, order.file, before)
        answer = at_once(order)
        # Another one has sent all, and the file was given up.
        emptied = tmp_path / "emptied"
        emptied.write_bytes(bytes(SIZE))
        with pytest.raises(CannotRun, match=f"another node sends `{NAME}` by now"):
            open_destination(PLACE, SendOptions()).send(NAME, emptied, before, of_the_dead)
        return answer

    upload, sha256 = carrier(Node(dies_and_comes_back), tmp_path).send(NAME, shard, None, Books())
    commit(upload, shard, sha256)
    assert bucket.contents("out") == {NAME: shard.read_bytes()}


def test_notes_of_other_files_of_other_uploads_and_torn_ones_count_for_nothing(tmp_path: Path) -> None:
    upload = Upload(id="mark/1", part_bytes=PART)
    for file, begun in ((NAME, upload), ("other.safetensors", upload), (NAME, Upload(id="mark/2", part_bytes=PART))):
        NodeNotes(tmp_path, file, begun).part(len(file) % 7 + 1, f"tag of {file} in {begun.id}")
    (noted,) = [path for path in tmp_path.iterdir() if "tag of model.safetensors in mark/1" in path.read_text()]
    whole = json.loads(noted.read_text())
    noted.write_text(noted.read_text() + json.dumps(whole | {"part": 9})[:-4])
    found = with_notes(upload, read_notes(tmp_path, NAME))
    assert found == Upload(id="mark/1", part_bytes=PART, parts={whole["part"]: f"tag of {NAME} in mark/1"})
    assert with_notes(None, read_notes(tmp_path, NAME)) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3://models/out", True),
        ("hf://acme/out", True),
        ("sftp://me:secret@host/out", False),
        ("https://host/out?signature=secret", False),
        ("file:///tmp/out", False),
    ],
)
def test_a_place_with_a_secret_in_its_name_or_on_one_machine_is_told_to_no_node(text: str, told: bool) -> None:
    address = parse_address(text)
    assert address is not None
    assert travels(address) is told
