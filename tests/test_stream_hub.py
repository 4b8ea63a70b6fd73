"""`fp8 quantize org/name --stream`: from a Hub that stumbles to the same bytes, with a window of bounded size."""

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session, constants
from transformers import AutoModelForCausalLM

from fp8cli.commands.quantize import CalibrationOptions, QuantizeReport, QuantizeRequest, StreamOptions, run
from fp8cli.errors import BadInput, CannotRun, UsageError
from fp8cli.formats import patience
from fp8cli.formats.safetensors import lay_out
from fp8cli.formats.staging import partial_folder
from tests.loopback_hub import Break, Busy, Changed, Failure, File, LoopbackHub, Repo, Short, Stall
from tests.models import llama_config
from tests.starting import words_of
from tests.streamed import WINDOW, WINDOW_BYTES, contents, save_wide_model, watched_window

ID = "acme/wide"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide_model(tmp_path_factory.mktemp("stream") / "wide")


@pytest.fixture(scope="module")
def wanted(local: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What comes of the folder."""
    return contents(run(QuantizeRequest(model=str(local), out=tmp_path_factory.mktemp("wanted") / "out")).out)


@pytest.fixture
def server(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(patience, "PAUSES", (0.01,) * 4)
    with LoopbackHub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        running.repos[ID] = Repo()
        running.repos[ID].push({path.name: path.read_bytes() for path in local.iterdir()})
        yield running
        close_session()


def stream(out: Path, model: str = f"hf://{ID}", window: str = WINDOW, **more: object) -> QuantizeReport:
    options = StreamOptions(stream=True, window=window, connections=4)
    wish: dict[str, object] = {"piece_bytes": 2**20, **more}
    return run(QuantizeRequest(model=model, out=out, streaming=options, **wish))  # type: ignore[arg-type]


def weights_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.safetensors")]


def test_the_result_is_that_of_the_folder_and_the_source_is_never_stored(
    server: LoopbackHub, local: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    server.cdn = True
    with watched_window(out) as seen:
        report = stream(out)
    assert contents(out) == wanted
    # What came was hashed on its way: the Hub's word was compared, and is not needed.
    source = json.loads((out / "fp8.json").read_text())["source"]
    assert (source["name"], source["commit"]) == (ID, server.repos[ID].branches["main"])
    assert source["hub_says"] == []
    assert {name: facts["sha256"] for name, facts in source["files"].items()} == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in local.iterdir()
    }
    assert report.revision == server.repos[ID].branches["main"]
    assert f"base_model: {ID}\n" in (out / "README.md").read_text()
    assert not weights_in(tmp_path / "cache")
    assert not partial_folder(out).exists()
    streamed = report.streamed
    assert streamed is not None
    assert streamed.facts is not None
    # Every byte of the weights once, in requests that are few; a window that was used and never outgrown.
    assert streamed.facts.bytes_fetched == report.bytes_read
    assert streamed.facts.requests <= report.bytes_read // (8 * 2**20) + 2 * report.shards
    assert streamed.facts.asked_again == 0
    assert streamed.window_bytes == WINDOW_BYTES
    assert 0 < seen.peak_bytes <= WINDOW_BYTES
    assert WINDOW_BYTES / 2 < streamed.facts.window_peak_bytes <= WINDOW_BYTES
    assert sum(path.stat().st_size for path in local.glob("*.safetensors")) > 2 * WINDOW_BYTES


@pytest.mark.parametrize(
    "stumbles",
    [
        (500, 503),
        (Busy(429, "0.05"),),
        (Break(100_000), Break(0)),
        (Stall(70_000),),
        (Short(1_000_000), Short(0)),
    ],
    ids=str,
)
def test_a_stumble_is_survived_and_reading_goes_on_where_it_broke(
    server: LoopbackHub, wanted: dict[str, bytes], tmp_path: Path, stumbles: tuple[Failure, ...]
) -> None:
    server.fail("model-00002", *stumbles, inside=True)
    report = stream(tmp_path / "out")
    assert contents(report.out) == wanted
    assert report.streamed is not None
    assert report.streamed.facts is not None
    assert report.streamed.facts.bytes_fetched == report.bytes_read
    assert report.streamed.facts.asked_again >= len(stumbles)


@dataclass(frozen=True)
class Harmed(File):
    """Called by the hash of what it should be, but with one bit of the weights turned over on its way."""

    def slice(self, begin: int, end: int) -> bytes:
        data = bytearray(super().slice(begin, end))
        if begin <= self.size - 3 < begin + len(data):
            data[self.size - 3 - begin] ^= 1
        return bytes(data)


def test_a_body_that_was_corrupted_on_its_way_is_found_and_nothing_of_it_is_kept(
    server: LoopbackHub, local: Path, tmp_path: Path
) -> None:
    name = "model-00002-of-00003.safetensors"
    files: dict[str, bytes | File] = {path.name: path.read_bytes() for path in local.iterdir()}
    server.repos[ID].push(files | {name: Harmed((local / name).read_bytes())})
    true = hashlib.sha256((local / name).read_bytes()).hexdigest()
    with pytest.raises(BadInput, match=f"^`{name}` came with the SHA-256 [0-9a-f]{{64}}, and `{ID}` says {true}$"):
        stream(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not partial_folder(tmp_path / "out").exists()
    # Without hashes nothing is compared, which fp8.json says: the Hub's word is all that it has.
    stream(tmp_path / "out", hashed=False)
    assert name in json.loads((tmp_path / "out" / "fp8.json").read_text())["source"]["hub_says"]


def test_a_broken_connection_costs_no_byte_twice(server: LoopbackHub, wanted: dict[str, bytes], tmp_path: Path) -> None:
    server.fail("model-00001", Break(100_000), inside=True)
    assert contents(stream(tmp_path / "out").out) == wanted
    ranges = [request.headers["range"] for request in server.requests if "model-00001" in request.path]
    begins = [int(each.removeprefix("bytes=").split("-")[0]) for each in ranges]
    ends = [int(each.split("-")[1]) for each in ranges]
    torn = [(begin, end) for begin, end in zip(begins, ends, strict=True) if ends.count(end) > 1]
    assert len(torn) == 2
    assert torn[1][0] - torn[0][0] == 100_000


@pytest.mark.parametrize(
    ("failure", "error", "words"),
    [
        (401, CannotRun, "does not accept your access token"),
        (403, CannotRun, f"does not let you read `{ID}`"),
        (404, CannotRun, "answers with HTTP 404"),
        (Changed(), BadInput, f"`model-00002-of-00003.safetensors` of `{ID}` was changed while it was being read"),
        (Busy(429, "86400"), CannotRun, "asks to be left alone for 86,400 seconds"),
    ],
    ids=str,
)
def test_what_no_patience_helps_against_is_refused_at_once(
    server: LoopbackHub, tmp_path: Path, failure: Failure, error: type[Exception], words: str
) -> None:
    server.fail("model-00002", failure, inside=True)
    with pytest.raises(error) as refused:
        stream(tmp_path / "out")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()
    assert not (partial_folder(tmp_path / "out") / "window").exists()
    # A source that is another one by now is nothing to go on from.
    assert partial_folder(tmp_path / "out").exists() == (error is CannotRun)
    assert not server._failures


def test_a_hub_that_stays_broken_is_given_up_and_the_next_run_goes_on(
    server: LoopbackHub, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    server.fail("model-00003", *[503] * 100, inside=True)
    with pytest.raises(CannotRun, match="answers with HTTP 503"):
        stream(tmp_path / "out", workers=1)
    server.recover()
    server.forget()
    report = stream(tmp_path / "out")
    assert contents(report.out) == wanted
    assert report.bytes_resumed > 0
    assert report.streamed is not None
    assert report.streamed.facts is not None
    assert report.streamed.facts.bytes_fetched < report.bytes_read


def test_a_commit_that_is_not_the_one_it_was_begun_with_is_refused(server: LoopbackHub, tmp_path: Path) -> None:
    server.fail("model-00003", 404, inside=True)
    with pytest.raises(CannotRun):
        stream(tmp_path / "out", workers=1)
    name = "model-00001-of-00003.safetensors"
    files = dict(server.repos[ID].commits[server.repos[ID].branches["main"]])
    files[name] = File(files[name].head[:-2] + b"\0\0")
    server.repos[ID].push(files)
    with pytest.raises(CannotRun, match=f"the source has changed .`{name}`"):
        stream(tmp_path / "out")


def test_a_server_that_sends_no_parts_of_files_is_still_read(
    server: LoopbackHub, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    server.ranges = "ignored"
    assert contents(stream(tmp_path / "out").out) == wanted


def test_a_window_smaller_than_a_piece_is_as_large_as_the_piece_and_that_is_said(
    server: LoopbackHub, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    dry = stream(tmp_path / "out", window="1MB", dry_run=True, piece_bytes=4 * 2**20).streamed
    assert dry is not None
    assert dry.facts is None
    assert dry.window_bytes > dry.window_wanted_bytes == 1_000_000
    assert not server.paths("GET", "heldout")
    with watched_window(tmp_path / "out") as seen:
        report = stream(tmp_path / "out", window="1MB", piece_bytes=4 * 2**20)
    assert contents(report.out) == wanted
    assert seen.peak_bytes <= dry.window_bytes < WINDOW_BYTES


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (StreamOptions(stream=True), "--stream would have no effect: `{}` is here"),
        (StreamOptions(window="1GB"), "--window would have no effect: `{}` is here"),
    ],
)
def test_a_folder_here_is_not_streamed(local: Path, options: StreamOptions, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        run(QuantizeRequest(model=str(local), streaming=options))
    assert refused.value.message == words.format(local)


def test_what_loads_the_model_is_not_streamed(server: LoopbackHub, tmp_path: Path) -> None:
    assert server.url
    (tmp_path / "texts.jsonl").write_text('{"text": "once upon a time"}\n')
    data = CalibrationOptions(data=str(tmp_path / "texts.jsonl"), samples=1)
    with pytest.raises(CannotRun, match=r"calibrating needs the files of `acme/wide` here") as refused:
        stream(tmp_path / "out", scheme="FP8", calibration=data)
    assert refused.value.hint == ("leave --stream out, or fetch them first: hf download acme/wide --local-dir DIR")
    with pytest.raises(CannotRun, match=r"llm-compressor's engine needs the files"):
        stream(tmp_path / "out", scheme="FP8", calibration=data, engine="llmcompressor")
    with pytest.raises(UsageError, match=r"--connections would have no effect: the source is downloaded"):
        run(QuantizeRequest(model=ID, streaming=StreamOptions(connections=3)))
    with pytest.raises(UsageError, match=r"--connections 65 is not between 1 and 64"):
        run(QuantizeRequest(model=ID, streaming=StreamOptions(stream=True, connections=65)))


def begin(tmp_path: Path, server: LoopbackHub, *words: str) -> "subprocess.Popen[str]":
    environ = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = words_of(
        tmp_path, "quantize", ID, "--stream", "--window", "16MiB", "-o", str(tmp_path / "out"), "--json", *words
    )
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_journal(out: Path, lines: int) -> None:
    journal = partial_folder(out) / "journal"
    while not journal.exists() or len(journal.read_text().split("\n")) < lines:
        time.sleep(0.01)


def test_killed_and_interrupted_it_goes_on_and_fetches_what_is_left(
    server: LoopbackHub, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    server.pause = 0.004
    first = begin(tmp_path, server)
    wait_for_journal(out, 4)
    first.kill()
    first.communicate()
    assert not out.exists()
    assert list((partial_folder(out) / "window").iterdir())

    second = begin(tmp_path, server)
    wait_for_journal(out, len((partial_folder(out) / "journal").read_text().split("\n")) + 2)
    second.send_signal(signal.SIGINT)
    told, _ = second.communicate(timeout=60)
    assert second.returncode == 130
    assert "fp8 quantize" in json.loads(told)["error"]["hint"]
    assert not out.exists()
    assert not (partial_folder(out) / "window").exists()

    server.pause = 0
    third = begin(tmp_path, server)
    told, err = third.communicate(timeout=60)
    assert third.returncode == 0, err
    report = json.loads(told)["result"]
    assert contents(out) == wanted
    assert 0 < report["streamed"]["facts"]["bytes_fetched"] < report["bytes_read"]
    assert report["bytes_resumed"] > 0
    assert not partial_folder(out).exists()


def peak_memory(process: "subprocess.Popen[str]") -> int:
    """Wait for a process; return the most memory that it had, in bytes."""
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        process.stdout.read()
        told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, told
    return usage.ru_maxrss * 1024


@dataclass(frozen=True)
class Zeros(File):
    """Called by its true SHA-256, computed once."""

    @property
    def etag(self) -> str:
        return true_hash(self.head, self.zeros)


@cache
def true_hash(head: bytes, zeros: int) -> str:
    digest, mebibyte = hashlib.sha256(head), bytes(2**20)
    for begin in range(0, zeros, 2**20):
        digest.update(mebibyte[: zeros - begin])
    return digest.hexdigest()


def zeros() -> dict[str, bytes | File]:
    """A checkpoint of 400 MB that costs the server nothing: every weight is 0."""
    config = llama_config(hidden_size=1024, intermediate_size=4096, vocab_size=32000, num_hidden_layers=8)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head, header = lay_out((name, "BF16", tuple(each.shape)) for name, each in model.named_parameters())
    config.dtype, config.architectures = torch.bfloat16, ["LlamaForCausalLM"]
    weights = Zeros(head, zeros=header.file_bytes - len(head))
    return {"config.json": config.to_json_string().encode(), "model.safetensors": weights}


def test_neither_memory_nor_disk_grow_with_the_source(server: LoopbackHub, tmp_path: Path) -> None:
    server.repos[ID].push(zeros())
    base = peak_memory(begin(tmp_path, server, "--dry-run"))
    with watched_window(tmp_path / "out") as seen:
        peak = peak_memory(begin(tmp_path, server, "--max-memory", "32MiB"))
    assert sum(file.size for file in zeros().values() if isinstance(file, File)) > 3e8
    assert 0 < seen.peak_bytes <= 80 * 2**20
    assert peak - base < 120 * 2**20
