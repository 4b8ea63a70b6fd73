"""`fp8 quantize -o s3://…`: against moto's real S3 API on loopback, with every kind of accident."""

import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error
from safetensors.torch import load_file, save_file

from fp8cli.commands import convert, dequantize
from fp8cli.commands.quantize import DeliveryOptions, QuantizeReport, QuantizeRequest, run
from fp8cli.core.delivering.ledger import LEDGER, Ledger
from fp8cli.errors import BadInput, CannotRun, UsageError
from fp8cli.formats.addresses import parse_address
from fp8cli.formats.bucket_errors import explain
from fp8cli.formats.staging import partial_folder
from tests.loopback_bucket import BUCKET, PROGRAM, LoopbackBucket, environment_of, serving, small_parts
from tests.models import llama_config, save_model

NAME = "tiny"
PLACE = f"s3://{BUCKET}/models/{NAME}"
FOLDER = f"models/{NAME}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten shards or more, so that some are sent while others are made."""
    config = llama_config(hidden_size=256, intermediate_size=512, num_hidden_layers=4, vocab_size=640)
    return save_model(tmp_path_factory.mktemp("delivery") / "source", config, max_shard_size="700KB")


@pytest.fixture(scope="module")
def wanted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run to a folder of the same name makes."""
    out = tmp_path_factory.mktemp("local") / NAME
    run(QuantizeRequest(model=str(source), out=out))
    return contents(out)


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackBucket]:
    with serving() as bucket:
        yield bucket


@pytest.fixture
def bucket(server: LoopbackBucket, monkeypatch: pytest.MonkeyPatch) -> LoopbackBucket:
    """An empty bucket that this process finds."""
    client = server.client
    for name in server.contents():
        client.delete_object(Bucket=BUCKET, Key=name)
    for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()):
        client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
    server.requests.clear()
    server.recover()
    server.pause = 0.0
    small_parts(monkeypatch, server)
    return server


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def deliver(source: Path, work: Path, place: str = PLACE, **asked: object) -> QuantizeReport:
    options = DeliveryOptions(out=place, work_dir=work)
    return run(QuantizeRequest(model=str(source), delivery=options, **asked))  # type: ignore[arg-type]


def test_what_arrives_is_what_a_folder_would_hold_and_is_visible_only_when_all_is_there(
    bucket: LoopbackBucket, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    report = deliver(source, tmp_path)
    assert bucket.contents(FOLDER) == wanted
    assert report.out == PLACE
    assert report.delivery is not None
    assert report.delivery.files == len(wanted)
    assert report.delivery.bytes_sent == sum(map(len, wanted.values()))
    assert report.delivery.sha256 == {
        name: hashlib.sha256(text).hexdigest() for name, text in wanted.items() if name.endswith(".safetensors")
    }
    assert bucket.uploads() == []
    assert list(tmp_path.iterdir()) == []
    done = [asked.what for asked in bucket.requests]
    last_part = max(number for number, asked in enumerate(bucket.requests) if asked.part is not None)
    visible = [number for number, what in enumerate(done) if what.startswith(("POST ?uploadId", "PUT ? "))]
    assert min(visible) > last_part
    assert done[max(visible)] == f"PUT ? {FOLDER}/config.json"
    assert len(bucket.parts()) > 30
    assert set(bucket.parts().values()) == {1}


def test_the_disk_holds_a_bounded_number_of_shards(
    bucket: LoopbackBucket, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    bucket.pause = 0.05
    staged = partial_folder(tmp_path / NAME) / "checkpoint"
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            try:
                seen.append(sum(file.stat().st_blocks * 512 for file in staged.glob("*.safetensors")))
            except FileNotFoundError:
                continue

    looking = threading.Thread(target=look)
    looking.start()
    try:
        report = deliver(source, tmp_path, workers=1)
    finally:
        over.set()
        looking.join()
    assert report.delivery is not None
    assert report.delivery.window_bytes is not None
    # What stays of a shard that was sent: its header, its scales, what is too small for a hole, and broken pages.
    stays = report.shards * 2**16
    assert report.delivery.window_bytes < report.bytes_written / 2
    assert max(seen) <= report.delivery.window_bytes + stays
    assert max(seen) > report.bytes_written / report.shards
    assert report.delivery.bound == "sending"
    assert bucket.contents(FOLDER) == wanted


def test_a_connection_that_is_cut_in_every_phase_changes_nothing(
    bucket: LoopbackBucket, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    for phase in ("GET .*list-type", "POST .*uploads ", "PUT .*uploadId", "POST .*uploadId", "PUT . .*config.json"):
        bucket.stumble(phase, "cut", "lost")
    bucket.stumble("PUT .*uploadId", (500, "InternalError"), (503, "SlowDown"))
    deliver(source, tmp_path)
    assert bucket.contents(FOLDER) == wanted
    assert not bucket.left_to_stumble


def test_what_cannot_be_survived_is_one_sentence_and_goes_on_later(
    bucket: LoopbackBucket, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    bucket.stumble("PUT .*uploadId.*00003", *[(403, "ExpiredToken")] * 1000)
    with pytest.raises(CannotRun) as refused:
        deliver(source, tmp_path)
    assert "too old" in refused.value.message
    assert "hush-hush" not in f"{refused.value.message}{refused.value.hint}"
    assert bucket.contents() == {}
    bucket.recover()
    deliver(source, tmp_path)
    assert bucket.contents(FOLDER) == wanted


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDenied", "is denied"),
        ("403", "is denied"),
        ("InvalidAccessKeyId", "does not know the credentials"),
        ("ExpiredToken", "too old"),
        ("QuotaExceeded", "is full (QuotaExceeded)"),
        ("NoSuchBucket", f"there is no bucket `{BUCKET}`"),
        ("InternalError", "error of its own (InternalError)"),
        ("SlowDown", "takes no more requests for now (SlowDown)"),
        ("NeverHeardOf", "cannot be written to: NeverHeardOf"),
    ],
)
def test_each_answer_of_s3_has_its_sentence(code: str, words: str) -> None:
    address = parse_address(PLACE)
    assert address is not None
    problem = ClientError({"Error": {"Code": code, "Message": "at https://x?X-Amz-Signature=hush-hush"}}, "UploadPart")
    told = explain(translate_boto_error(problem), address)
    assert words in told.message
    assert told.hint
    assert "hush-hush" not in f"{told.message}{told.hint}"


def test_a_bucket_that_is_not_there_or_cannot_be_reached_is_said_to_be_so(
    bucket: LoopbackBucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotRun, match="there is no bucket `nowhere`"):
        deliver(source, tmp_path, place="s3://nowhere/at/all")
    assert len(bucket.requests) == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(CannotRun, match="cannot be reached"):
        deliver(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_holds_something_is_replaced_only_when_asked(
    bucket: LoopbackBucket, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    bucket.client.put_object(Bucket=BUCKET, Key=f"{FOLDER}/old.safetensors", Body=b"old")
    with pytest.raises(UsageError) as refused:
        deliver(source, tmp_path)
    assert "holds 1 files already" in refused.value.message
    with pytest.raises(UsageError) as refused:
        deliver(source, tmp_path, overwrite=True)
    assert "no checkpoint" in refused.value.message
    bucket.client.put_object(Bucket=BUCKET, Key=f"{FOLDER}/config.json", Body=b"{}")
    bucket.client.put_object(Bucket=BUCKET, Key=f"{FOLDER}-other/config.json", Body=b"{}")
    deliver(source, tmp_path, overwrite=True)
    assert bucket.contents(FOLDER + "/") == {f"{FOLDER}/{name}": text for name, text in wanted.items()}
    assert bucket.contents(f"{FOLDER}-other") == {"config.json": b"{}"}
    # Between the old one and the new one there was no checkpoint.
    changes = [asked.what for asked in bucket.requests if asked.method == "DELETE" or "POST ?uploadId" in asked.what]
    assert changes[0] == f"DELETE ? {FOLDER}/config.json"


def test_a_weight_that_is_broken_leaves_nothing_there_and_nothing_here(
    bucket: LoopbackBucket, source: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in source.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    last = max(broken.glob("*.safetensors"))
    tensors = load_file(last)
    name = next(each for each in sorted(tensors) if "proj" in each)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, last, metadata={"format": "pt"})
    work = tmp_path / "work"
    with pytest.raises(BadInput):
        deliver(broken, work)
    assert bucket.contents() == {}
    assert bucket.uploads() == []
    assert list(work.iterdir()) == []


def test_a_dry_run_looks_and_sends_nothing(bucket: LoopbackBucket, source: Path, tmp_path: Path) -> None:
    report = deliver(source, tmp_path, dry_run=True)
    assert report.delivery is None
    assert {asked.method for asked in bucket.requests} == {"GET"}
    assert list(tmp_path.iterdir()) == []


def test_conversions_are_sent_as_quantizations_are(bucket: LoopbackBucket, source: Path, tmp_path: Path) -> None:
    made = run(QuantizeRequest(model=str(source), out=tmp_path / "made", scheme="FP8_BLOCK")).out
    assert isinstance(made, Path)
    for name, convert_it in (
        ("deepseek", lambda options: convert.run(convert.ConvertRequest(options=options, to="deepseek"))),
        ("back", lambda options: dequantize.run(dequantize.DequantizeRequest(options=options, dtype="float32"))),
    ):
        here = convert_it(convert.Options(model=str(made), out=tmp_path / "here" / name)).out
        work = tmp_path / "work" / name
        delivery = DeliveryOptions(out=f"s3://{BUCKET}/{name}", work_dir=work)
        report = convert_it(convert.Options(model=str(made), delivery=delivery))
        assert report.out == f"s3://{BUCKET}/{name}"
        assert report.delivery is not None
        assert bucket.contents(name) == contents(here)
        assert list(work.iterdir()) == []
    assert bucket.uploads() == []


def start(bucket: LoopbackBucket, source: Path, work: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, "quantize", str(source), "-o", PLACE, "--work-dir", str(work), *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment_of(bucket))


def wait_for_parts(bucket: LoopbackBucket, ledger: Path, shards: int) -> Ledger:
    """Wait until so many shards are there as a whole."""
    for _ in range(3000):
        read = Ledger.read(ledger)
        if sum(entry.sha256 is not None for entry in read.entries.values()) >= shards:
            return read
        time.sleep(0.01)
    raise AssertionError(bucket.requests[-5:])


def test_after_a_kill_no_part_is_sent_twice(
    bucket: LoopbackBucket, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    bucket.pause = 0.1
    ledger = partial_folder(tmp_path / NAME) / LEDGER
    running = start(bucket, source, tmp_path)
    wait_for_parts(bucket, ledger, 3)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    known = Ledger.read(ledger)
    assert bucket.contents() == {}
    assert any(entry.punched for entry in known.entries.values())
    before = {(f"{FOLDER}/{name}", number) for name, upload in known.uploads().items() for number in upload.parts}
    assert len(before) > 6
    bucket.requests.clear()
    bucket.pause = 0.0
    report = deliver(source, tmp_path)
    assert bucket.contents(FOLDER) == wanted
    assert not before & set(bucket.parts())
    assert set(bucket.parts().values()) == {1}
    assert report.delivery is not None
    assert report.delivery.bytes_resumed > 0


def test_what_the_server_has_forgotten_is_made_and_sent_again(
    bucket: LoopbackBucket, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    # The smallest one is made last.
    last = min((name for name in wanted if name.endswith(".safetensors")), key=lambda name: len(wanted[name]))
    bucket.stumble(f"PUT .*uploadId.*{last}", *[(403, "AccessDenied")] * 1000)
    with pytest.raises(CannotRun):
        deliver(source, tmp_path, workers=1)
    ledger = Ledger.read(partial_folder(tmp_path / NAME) / LEDGER)
    punched = [name for name, entry in ledger.entries.items() if entry.punched]
    assert punched
    for upload in bucket.client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]:
        bucket.client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
    # Cut short once more, when the lost weights are being made again.
    with pytest.raises(CannotRun):
        deliver(source, tmp_path, workers=1)
    bucket.recover()
    deliver(source, tmp_path)
    assert bucket.contents(FOLDER) == wanted


def test_a_run_cut_short_while_it_commits_goes_on(
    bucket: LoopbackBucket, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    bucket.stumble("PUT . .*config.json", *[(403, "AccessDenied")] * 1000)
    with pytest.raises(CannotRun):
        deliver(source, tmp_path)
    half = bucket.contents(FOLDER)
    assert half
    assert "config.json" not in half
    bucket.recover()
    bucket.requests.clear()
    deliver(source, tmp_path)
    assert bucket.contents(FOLDER) == wanted
    assert not bucket.parts()


def test_another_destination_does_not_go_on_with_what_was_sent_elsewhere(
    bucket: LoopbackBucket, source: Path, tmp_path: Path
) -> None:
    bucket.stumble("PUT .*uploadId.*00005", *[(403, "AccessDenied")] * 1000)
    with pytest.raises(CannotRun):
        deliver(source, tmp_path)
    with pytest.raises(CannotRun) as refused:
        deliver(source, tmp_path, place=f"s3://{BUCKET}/elsewhere/{NAME}")
    assert "the destination" in refused.value.message
    with pytest.raises(CannotRun) as refused:
        run(QuantizeRequest(model=str(source), out=tmp_path / NAME))
    assert "the destination" in refused.value.message
    assert bucket.uploads()
    # --restart gives up what was sent there, even for a folder.
    bucket.recover()
    run(QuantizeRequest(model=str(source), out=tmp_path / NAME, restart=True))
    assert bucket.uploads() == []


def test_ctrl_c_ends_it_at_once_and_keeps_what_was_sent(
    bucket: LoopbackBucket, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    bucket.pause = 0.1
    running = start(bucket, source, tmp_path, "--workers", "1")
    wait_for_parts(bucket, partial_folder(tmp_path / NAME) / LEDGER, 2)
    bucket.pause = 30.0
    time.sleep(0.3)  # Long enough that workers wait for room, and senders for a server that does not answer.
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=20)
    assert running.returncode == 130
    assert told.count("error:") == 1
    assert "interrupted; what is done is kept in" in told
    assert "Traceback" not in told
    assert bucket.contents() == {}
    bucket.pause = 0.0
    deliver(source, tmp_path)
    assert bucket.contents(FOLDER) == wanted


def test_two_runs_to_one_place_do_not_meet(bucket: LoopbackBucket, source: Path, tmp_path: Path) -> None:
    bucket.pause = 0.2
    running = start(bucket, source, tmp_path)
    try:
        wait_for_parts(bucket, partial_folder(tmp_path / NAME) / LEDGER, 1)
        with pytest.raises(CannotRun) as refused:
            deliver(source, tmp_path)
    finally:
        running.kill()
        running.communicate()
    assert "another run is writing" in refused.value.message
