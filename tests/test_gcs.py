"""`gs://` as source and as destination: from and to a Google Cloud Storage on loopback, which stumbles."""

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fp8cli.commands import inspect, push, verify
from fp8cli.commands.quantize import DeliveryOptions, QuantizeReport, QuantizeRequest, StreamOptions, run
from fp8cli.core.delivering.ledger import LEDGER, Ledger
from fp8cli.errors import BadInput, CannotRun, Fp8Error
from fp8cli.formats import bucket, patience, remote_folder
from fp8cli.formats.addresses import parse_address
from fp8cli.formats.bucket_errors import explain
from fp8cli.formats.gcs_requests import GcsRefusal
from fp8cli.formats.staging import partial_folder
from tests.loopback_gcs import BUCKET, TOKEN, LoopbackGcs, Stumble
from tests.loopback_hub import Break, Busy, Stall
from tests.models import llama_config, save_model
from tests.starting import fp8

pytest.importorskip("gcsfs", reason='pip install "fp8cli[gcs]"')

NAME = "tiny"
MODEL = f"gs://{BUCKET}/some/source"
PLACE = f"gs://{BUCKET}/models/{NAME}"
FOLDER = f"models/{NAME}"
NAMES_THE_SOURCE = {"README.md", "fp8.json"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = llama_config(hidden_size=256, intermediate_size=512, num_hidden_layers=4, vocab_size=640)
    return save_model(tmp_path_factory.mktemp("gcs") / "source", config, max_shard_size="700KB")


@pytest.fixture(scope="module")
def wanted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run from a folder to a folder makes."""
    out = tmp_path_factory.mktemp("local") / NAME
    run(QuantizeRequest(model=str(source), out=out))
    return contents(out)


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackGcs]:
    with LoopbackGcs() as running:
        yield running


@pytest.fixture
def store(server: LoopbackGcs, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackGcs:
    """A bucket with the source in it, which this process finds; parts of 64 KiB, and no time lost by waiting."""
    server.empty()
    for name, data in contents(source).items():
        server.put(f"some/source/{name}", data)
    server.least_part_bytes = 1
    (tmp_path / "home").mkdir()
    for name, value in server.environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket, "PART_BYTES", 2**16)
    monkeypatch.setattr(bucket, "_PAUSES", (0.01,) * 5)
    monkeypatch.setattr(bucket, "_FIRST_PAUSES", (0.01,) * 3)
    monkeypatch.setattr(patience, "PAUSES", (0.01,) * 4)
    monkeypatch.setattr(remote_folder, "FEW", (0.01,) * 2)
    monkeypatch.setattr(remote_folder, "READ_TIMEOUT", 1)
    return server


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_names(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out what names the source."""
    return {name: data for name, data in files.items() if name not in NAMES_THE_SOURCE}


def stream(out: Path, model: str = MODEL, **more: object) -> QuantizeReport:
    wish: dict[str, object] = {"piece_bytes": 2**18, "streaming": StreamOptions(window="2MiB", connections=4), **more}
    return run(QuantizeRequest(model=model, out=out, **wish))  # type: ignore[arg-type]


def deliver(source: Path, work: Path, place: str = PLACE, **asked: object) -> QuantizeReport:
    options = DeliveryOptions(out=place, work_dir=work)
    return run(QuantizeRequest(model=str(source), delivery=options, **asked))  # type: ignore[arg-type]


def refused_by(source: Path, work: Path) -> CannotRun:
    """Send what is refused, and wait for requests under way, which in a process of its own would end with it."""
    with pytest.raises(CannotRun) as refused:
        deliver(source, work)
    for thread in threading.enumerate():
        if thread.name in {"fp8-deliver", "fp8-send"}:
            thread.join()
    return refused.value


def test_what_is_streamed_from_a_bucket_is_what_a_folder_gives_and_of_one_generation(
    store: LoopbackGcs, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    report = stream(tmp_path / "out")
    written = contents(tmp_path / "out")
    assert without_names(written) == without_names(wanted)
    noted = json.loads(written["fp8.json"])["source"]["files"]
    shards = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.glob("*.safetensors")}
    assert {name: noted[name]["sha256"] for name in shards} == shards
    assert report.streamed is not None
    assert report.streamed.facts is not None
    assert report.streamed.facts.bytes_fetched == report.bytes_read
    read = [asked for asked in store.requests if asked.query.get("alt") == ["media"]]
    pinned = {name: str(stored.generation) for name, stored in store.objects.items()}
    assert read
    assert all(asked.query["ifGenerationMatch"] == [pinned[asked.name]] for asked in read)
    assert all(asked.span for asked in read)


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        ("GET .prefix", (Break(20), (503, "ServiceUnavailable"))),
        ("GET .alt=media .*config.json", (Break(0), (500, "InternalError"))),
        ("GET .alt=media .*00002.*bytes=0-", (Break(20), "cut")),
        ("GET .alt=media .*00003", (Break(100_000), Stall(50_000), Busy(429, "0.05"), (502, "BadGateway"))),
    ],
)
def test_a_stumble_in_any_phase_of_reading_is_survived(
    store: LoopbackGcs, wanted: dict[str, bytes], tmp_path: Path, phase: str, how: tuple[Stumble, ...]
) -> None:
    store.stumble(phase, *how)
    stream(tmp_path / "out")
    assert without_names(contents(tmp_path / "out")) == without_names(wanted)
    assert store.left_to_stumble == 0


def test_a_source_that_changes_while_it_is_read_is_refused_and_leaves_nothing(
    store: LoopbackGcs, tmp_path: Path
) -> None:
    last = max(name for name in store.objects if name.endswith(".safetensors"))
    data = store.objects[last].data

    def change(event: object) -> None:
        if type(event).__name__ == "Started":
            store.put(last, data[:-2] + b"\1\1")

    with pytest.raises(BadInput, match="was changed while it was being read"):
        run(QuantizeRequest(model=MODEL, out=tmp_path / "out", streaming=StreamOptions(window="2MiB")), change)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    # Of the same bytes, too: nobody can tell that from the outside.
    first = min(name for name in store.objects if name.endswith(".safetensors"))

    def touch(event: object) -> None:
        if type(event).__name__ == "Started":
            store.put(first, store.objects[first].data)

    with pytest.raises(BadInput, match="was changed while it was being read"):
        run(QuantizeRequest(model=MODEL, out=tmp_path / "out"), touch)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    ("model", "how", "words"),
    [
        (MODEL, (403, "AccessDenied"), f"`{MODEL}` does not let you read it: stumbled (403)"),
        (MODEL, (401, "AuthenticationRequired"), f"`{MODEL}` does not let you read it: stumbled (401)"),
        (f"gs://{BUCKET}/nothing", None, f"`gs://{BUCKET}/nothing` is not there"),
        ("gs://nowhere/nothing", None, "`gs://nowhere/nothing` is not there"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(
    store: LoopbackGcs, tmp_path: Path, model: str, how: Stumble | None, words: str
) -> None:
    if how is not None:
        store.stumble("GET", how)
    with pytest.raises(Fp8Error) as refused:
        stream(tmp_path / "out", model=model)
    assert refused.value.message == words
    assert refused.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_without_credentials_it_says_how_to_log_in_but_a_public_bucket_needs_none(
    store: LoopbackGcs, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSSPEC_GCS_TOKEN", "anon")
    from fsspec.config import conf

    monkeypatch.setitem(conf, "gcs", {"token": "anon"})
    with pytest.raises(CannotRun) as refused:
        stream(tmp_path / "out")
    assert refused.value.message == f"no credentials for `{MODEL}` were found"
    assert refused.value.hint == "log in with: gcloud auth application-default login"
    with pytest.raises(CannotRun) as refused:
        deliver(source, tmp_path / "work")
    assert refused.value.message == f"no credentials were found for `{PLACE}`"
    assert refused.value.hint == "gcloud auth application-default login"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    store.anyone = True
    assert stream(tmp_path / "out", dry_run=True).bytes_written > 0


def test_an_object_that_is_stored_compressed_is_refused_not_misread(store: LoopbackGcs, tmp_path: Path) -> None:
    store.put("some/source/config.json", b"{}" * 100, {"Content-Encoding": "gzip"})
    with pytest.raises(CannotRun, match=r"`config.json` in `gs://models/some/source` is not sent in parts"):
        stream(tmp_path / "out")


def test_what_is_sent_is_what_a_folder_would_hold_and_is_visible_only_when_all_is_there(
    store: LoopbackGcs, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    report = deliver(source, tmp_path)
    assert store.contents(FOLDER) == wanted
    assert report.out == PLACE
    assert report.delivery is not None
    assert report.delivery.bytes_sent == sum(map(len, wanted.values()))
    assert store.uploads == {}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    done = [asked.what for asked in store.requests]
    last_part = max(number for number, asked in enumerate(store.requests) if asked.part is not None)
    visible = [number for number, what in enumerate(done) if what.startswith(("POST ?uploadId", "PUT ? "))]
    assert min(visible) > last_part
    assert done[max(visible)] == f"PUT ? {FOLDER}/config.json"
    assert len(store.parts()) > 30
    assert set(store.parts().values()) == {1}
    # One that is there is replaced only when asked for; between the old one and the new one there is none.
    store.put(f"{FOLDER}/old.safetensors", b"old")
    with pytest.raises(Fp8Error, match="files already"):
        deliver(source, tmp_path)
    store.requests.clear()
    deliver(source, tmp_path, overwrite=True)
    assert store.contents(FOLDER) == wanted
    changes = [asked.what for asked in store.requests if asked.method == "DELETE" or "POST ?uploadId" in asked.what]
    assert changes[0] == f"DELETE ? {FOLDER}/config.json"


def test_a_stumble_in_every_phase_of_sending_changes_nothing(
    store: LoopbackGcs, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    for phase in ("POST .uploads", "PUT .partNumber", "POST .uploadId", "PUT . .*config.json"):
        store.stumble(phase, "cut", "lost", (503, "ServiceUnavailable"), Busy(429, "0.02"))
    store.stumble("GET .prefix", "cut", "lost")
    store.stumble("PUT .partNumber", (500, "InternalError"), (400, "BadDigest"))
    deliver(source, tmp_path)
    assert store.contents(FOLDER) == wanted
    assert not store.left_to_stumble
    # Of one that was begun, and of which nobody was told, nothing was sent.
    assert all(not upload.parts for upload in store.uploads.values())


def test_what_cannot_be_survived_is_one_sentence_nothing_is_visible_and_no_part_is_sent_twice_later(
    store: LoopbackGcs, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    store.stumble("PUT .partNumber=3 .*0000[39]", *[(403, "AccessDenied")] * 20)
    assert refused_by(source, tmp_path).message == f"access to `{PLACE}` is denied"
    assert store.contents(FOLDER) == {}
    store.recover()
    ledger = Ledger.read(partial_folder(tmp_path / NAME) / LEDGER)
    before = {(f"{FOLDER}/{name}", number) for name, upload in ledger.uploads().items() for number in upload.parts}
    assert len(before) > 1
    store.requests.clear()
    report = deliver(source, tmp_path)
    assert store.contents(FOLDER) == wanted
    assert not before & set(store.parts())
    assert set(store.parts().values()) == {1}
    assert report.delivery is not None
    assert report.delivery.bytes_resumed > 0
    assert store.uploads == {}


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (403, "<Error><Code>AccessDenied</Code></Error>", f"access to `{PLACE}` is denied"),
        (401, "<Error><Code>ExpiredToken</Code></Error>", "too old, or this machine's clock is wrong"),
        (401, '{"error": {"code": 401, "message": "Invalid Credentials"}}', f"access to `{PLACE}` is denied"),
        (429, '{"error": {"code": 429, "message": "rate"}}', f"`{PLACE}` takes no more requests for now (429)"),
        (503, "<html>", f"`{PLACE}` takes no more requests for now (503)"),
        (500, "", f"`{PLACE}` answers with an error of its own (500)"),
        (404, '{"error": {"message": "The specified bucket does not exist."}}', f"there is no bucket `{BUCKET}`"),
        (400, "<Error><Code>InvalidPart\x1b[31m</Code></Error>", f"`{PLACE}` cannot be written to: 400"),
        (400, "<Error><Code>NeverHeardOf</Code></Error>", f"`{PLACE}` cannot be written to: NeverHeardOf"),
        (200, '{"error": "invalid_grant"}', f"`{PLACE}` cannot be written to: 200"),
    ],
)
def test_each_answer_of_google_has_its_sentence(status: int, text: str, words: str) -> None:
    address = parse_address(PLACE)
    assert address is not None
    told = explain(GcsRefusal(status, {}, text), address)
    assert words in told.message
    assert told.hint


def test_what_the_store_has_forgotten_is_sent_again(
    store: LoopbackGcs, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    store.stumble("PUT .partNumber.*00003", *[(403, "AccessDenied")] * 20)
    refused_by(source, tmp_path)
    store.recover()
    store.uploads.clear()
    deliver(source, tmp_path)
    assert store.contents(FOLDER) == wanted


def test_restart_gives_up_what_was_sent(store: LoopbackGcs, source: Path, tmp_path: Path) -> None:
    store.stumble("PUT .partNumber.*00003", *[(403, "AccessDenied")] * 20)
    refused_by(source, tmp_path)
    assert store.uploads
    store.recover()
    run(QuantizeRequest(model=str(source), out=tmp_path / NAME, restart=True))
    assert store.uploads == {}
    assert store.contents(FOLDER) == {}


def test_the_real_command_goes_from_bucket_to_bucket_and_others_approve_of_the_result(
    store: LoopbackGcs, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    store.stumble("GET .alt=media .*00003", (503, "ServiceUnavailable"))
    done = fp8(tmp_path, "quantize", MODEL, "-o", PLACE, "--work-dir", tmp_path / "work", "--json")
    assert done.code == 0, done.err
    assert TOKEN not in done.out + done.err
    assert done.report["delivery"]["files"] == len(wanted)
    assert without_names(store.contents(FOLDER)) == without_names(wanted)
    assert verify.run(verify.VerifyRequest(checkpoint=PLACE, source=MODEL)).verdict == "matches"
    seen = inspect.run(inspect.InspectRequest(source=PLACE, against=MODEL))
    assert not [finding for finding in seen.findings if finding.status in {"fail", "warn"}]
    name = next(each for each in store.contents(FOLDER) if each.endswith(".safetensors"))
    data = store.objects[f"{FOLDER}/{name}"].data
    store.put(f"{FOLDER}/{name}", data[:-1] + bytes([data[-1] ^ 1]))
    assert verify.run(verify.VerifyRequest(checkpoint=PLACE)).verdict == "differs"


def test_a_checkpoint_that_was_made_before_is_pushed_as_it_is(
    store: LoopbackGcs, source: Path, wanted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = run(QuantizeRequest(model=str(source), out=tmp_path / NAME)).out
    report = push.run(push.PushRequest(folder=made, to=PLACE))
    assert report.delivery.address == PLACE
    assert store.contents(FOLDER) == wanted
    assert {path.name for path in tmp_path.iterdir()} == {"home", NAME}
