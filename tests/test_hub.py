"""Models on the Hub, against a real HTTP server on the loopback device (see loopback_hub.py).

huggingface_hub reads its settings from the environment when it is imported, long before a test runs, so a test
changes the constants that it keeps them in; one test sets the environment of a process of its own. The oracles
are the safetensors library, huggingface_hub's own idea of an id, and what the server saw and sent.
"""

import json
import os
import pty
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from fp8cli.errors import BadInput, CannotRun, Fp8Error, UsageError
from fp8cli.formats import hub
from fp8cli.formats.checkpoint import LocalFile, LocalFolder, open_checkpoint
from fp8cli.formats.remote_headers import FIRST_BYTES
from fp8cli.formats.sources import resolve_anything, resolve_source
from tests.loopback_hub import Break, File, LoopbackHub, Repo

ID = "acme/tiny"
TOKEN = "hf_thisIsASecretThatNobodyMaySee"  # noqa: S105 -- no server but the one in loopback_hub.py knows it
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()
BIG = 50_000_000


def shard(tensors: dict[str, int], padding: int = 0) -> File:
    """A shard by hand: int8 tensors of that many zeros, its header padded with spaces."""
    offset, entries = 0, {}
    for name, size in tensors.items():
        entries[name] = {"dtype": "I8", "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries).encode() + b" " * padding
    return File(struct.pack("<Q", len(text)) + text, zeros=offset)


def index_of(weight_map: dict[str, str]) -> bytes:
    return json.dumps({"weight_map": weight_map}).encode()


SHARDED: dict[str, bytes | File] = {
    ".gitattributes": b"*.safetensors filter=lfs",
    "LICENSE": b"all of it yours",
    "README.md": b"a model",
    "config.json": CONFIG,
    "consolidated.safetensors": shard({"again": 3_000_000}),
    "extra/notes [1].txt": b"brackets",
    "model-00001-of-00002.safetensors": shard({"a": 1_000_000}),
    "model-00002-of-00002.safetensors": shard({"b": 2_000_000}),
    "model.safetensors.index.json": index_of(
        {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    ),
    "onnx/model.onnx": File(b"onnx", zeros=4_000_000),
    "original/params.json": b"{}",
    "pytorch_model.bin": File(b"PK", zeros=5_000_000),
    "tiny.Q4.gguf": File(b"GGUF", zeros=6_000_000),
    "tokenizer.json": b"{}",
}
NEEDED = {
    "LICENSE",
    "README.md",
    "config.json",
    "extra/notes [1].txt",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A running Hub with nothing on it, which this process asks, with an empty cache and no token."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub, "_PAUSES", (0.0, 0.0))
    with LoopbackHub() as running:
        ask(running.url, monkeypatch)
        yield running
        close_session()


def ask(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def publish(server: LoopbackHub, files: dict[str, bytes | File], repo_id: str = ID) -> Repo:
    repo = server.repos.setdefault(repo_id, Repo())
    repo.push(files)
    return repo


def single(weights: File) -> dict[str, bytes | File]:
    return {"config.json": CONFIG, "model.safetensors": weights}


def error_of(repo: hub.HubRepo) -> Fp8Error:
    """What `fp8 quantize` would end with. None of it may hold the token."""
    with pytest.raises(Fp8Error) as caught:
        hub.download(repo)
    assert TOKEN not in f"{caught.value.message} {caught.value.hint}"
    assert not caught.value.message.endswith(".")
    assert "\n" not in caught.value.message
    return caught.value


# Which model is meant


@pytest.mark.parametrize("name", ["org/model", "model"])
def test_a_folder_goes_before_a_model_of_the_same_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    assert resolve_source(name) == LocalFolder(Path(name))


@pytest.mark.parametrize("name", ["gpt2", "acme/tiny", "Qwen/Qwen3-0.6B", "a/b_c.d-e", "_x/y_", "1/2", "a" * 96])
def test_what_is_no_folder_and_looks_like_an_id_is_one(name: str) -> None:
    validate_repo_id(name)
    assert resolve_source(name, "v1") == hub.HubRepo(name, "v1")


@pytest.mark.parametrize("name", ["a--b", "a..b", "a/b.git", "-a/b", "a/b-", "a b", "", "a/ü!", "a" * 97])
def test_what_huggingface_hub_refuses_as_an_id_is_refused(name: str) -> None:
    with pytest.raises(HFValidationError):
        validate_repo_id(name)
    with pytest.raises(BadInput, match="neither a folder here nor the id of a model on the Hub"):
        resolve_source(name)


@pytest.mark.parametrize("name", ["./model", "../model", "/models/tiny", "~/tiny", "a/b/c", "model/", "a/b/"])
def test_what_looks_like_a_path_is_never_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        resolve_source(name)


def test_an_address_is_refused_with_what_to_give_instead() -> None:
    with pytest.raises(BadInput, match=r"`https://huggingface\.co/acme/tiny` is an address") as caught:
        resolve_source("https://huggingface.co/acme/tiny")
    assert caught.value.hint == "give the Hub id alone, as ORG/NAME"


def test_a_file_or_a_dangling_link_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights").write_bytes(b"")
    with pytest.raises(BadInput, match="`weights` is a file, not a checkpoint folder"):
        resolve_source("weights")
    Path("link").symlink_to("gone")
    with pytest.raises(BadInput, match="`link` is a link to something that is gone"):
        resolve_source("link")


def test_a_file_can_be_looked_at_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.safetensors").write_bytes(b"")
    assert resolve_anything("x.safetensors") == LocalFile(Path("x.safetensors"))
    assert resolve_anything(".") == LocalFolder(Path())
    with pytest.raises(UsageError, match=r"`x\.safetensors` is a file here, and a file has no revisions"):
        resolve_anything("x.safetensors", "v1")


def test_a_revision_can_stand_behind_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_anything("acme/tiny@refs/pr/1") == hub.HubRepo("acme/tiny", "refs/pr/1")
    assert resolve_anything("acme/tiny", "v1") == hub.HubRepo("acme/tiny", "v1")
    Path("here@v1").mkdir()
    assert resolve_anything("here@v1") == LocalFolder(Path("here@v1"))
    with pytest.raises(UsageError, match="`acme/tiny@v1` names a revision already"):
        resolve_anything("acme/tiny@v1", "v2")
    with pytest.raises(BadInput, match=r"`\./gone@v1` does not exist"):
        resolve_anything("./gone@v1")


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "x" * 5000])
def test_a_path_that_cannot_be_opened_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="cannot be opened"):
        resolve_source(name)


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder has no revisions"):
        resolve_source(str(tmp_path), "v1")


def test_a_local_source_loads_no_hub_library(tmp_path: Path) -> None:
    program = (
        "import sys; from fp8cli.formats.sources import resolve_source as find; find(sys.argv[1]); find('a/b');"
        "sys.exit('huggingface_hub' in sys.modules or 'httpx' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)


# Headers by range


def test_a_header_costs_kilobytes_and_one_listing(server: LoopbackHub, tmp_path: Path) -> None:
    weights = shard({"a": BIG - 10, "b": 10})
    publish(server, single(weights))
    checkpoint = open_checkpoint(hub.HubRepo(ID))
    assert server.bytes_sent < 1_000_000
    assert len(server.paths("GET", "/api/")) == 1
    assert len(server.paths("GET", "model.safetensors")) == 1

    path = tmp_path / "model.safetensors"
    path.write_bytes(weights.slice(0, weights.size))
    with safe_open(path, "np") as oracle:
        assert {name: list(tensor.shape) for name, tensor in checkpoint.tensors.items()} == {
            name: oracle.get_slice(name).get_shape()
            for name in oracle.keys()  # noqa: SIM118 -- it is no dict
        }
    assert checkpoint.shards[0].header.file_bytes == weights.size


@pytest.mark.parametrize("ranges", ["honoured", "ignored"])
def test_a_long_header_takes_a_second_request(server: LoopbackHub, ranges: str) -> None:
    server.ranges = ranges  # type: ignore[assignment]
    publish(server, single(shard({"a": BIG}, padding=3 * FIRST_BYTES)))
    header = hub.HubRepo(ID).header("model.safetensors")
    assert [tensor.name for tensor in header.tensors] == ["a"]
    asked = [request.headers["range"] for request in server.requests if "model.safetensors" in request.path]
    assert asked == [f"bytes=0-{FIRST_BYTES - 1}", f"bytes={FIRST_BYTES}-{header.data_begin - 1}"]


def test_a_server_that_ignores_ranges_is_cut_off(server: LoopbackHub) -> None:
    server.ranges = "ignored"
    publish(server, single(shard({"a": 4 * BIG})))
    checkpoint = open_checkpoint(hub.HubRepo(ID))
    assert list(checkpoint.tensors) == ["a"]
    # What lies in the buffers of the two ends was sent, too.
    assert server.bytes_sent < BIG / 2


def test_a_server_that_sends_another_range_is_not_believed(server: LoopbackHub) -> None:
    server.ranges = "shifted"
    publish(server, single(shard({"a": 10})))
    assert "does not answer as a Hugging Face Hub does" in error_of(hub.HubRepo(ID)).message


def test_all_shards_of_an_index_are_read_and_compared_as_in_a_folder(server: LoopbackHub, tmp_path: Path) -> None:
    publish(server, SHARDED)
    for name, file in SHARDED.items():
        path = tmp_path / "local" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.slice(0, file.size) if isinstance(file, File) else file)
    there, here = open_checkpoint(hub.HubRepo(ID)), open_checkpoint(LocalFolder(tmp_path / "local"))
    assert there.tensors == here.tensors
    assert there.side_files == here.side_files
    assert there.left_behind == here.left_behind
    assert there.config == here.config
    assert not server.paths("GET", "consolidated")


def test_a_file_shorter_than_the_listing_says_is_reported(server: LoopbackHub) -> None:
    repo = publish(server, single(shard({"a": 10}, padding=10_000)))
    source = hub.HubRepo(ID)
    assert source.files()["model.safetensors"] > 10_000
    repo.commits[source.commit] = {name: File(file.head[:500]) for name, file in repo.commits[source.commit].items()}
    with pytest.raises(
        CannotRun, match=r"`model\.safetensors` of `acme/tiny` ends at byte 500, before its header does"
    ):
        source.header("model.safetensors")


def test_an_empty_shard_is_no_reason_to_ask_for_bytes(server: LoopbackHub) -> None:
    publish(server, single(File(b"")))
    assert (
        error_of(hub.HubRepo(ID)).message == "`model.safetensors` is 0 bytes long, too short for a safetensors header"
    )
    assert not server.paths("GET", "model.safetensors")


def test_a_giant_config_is_refused_before_it_is_fetched(server: LoopbackHub) -> None:
    publish(server, {"config.json": File(b"{", zeros=2**40), "model.safetensors": shard({"a": 10})})
    assert error_of(hub.HubRepo(ID)).message == "`config.json` is 1,099,511,627,777 bytes long, which no such file is"
    assert not server.paths("GET", "config.json")


@pytest.mark.parametrize("failure", [503, Break(after=20)])
def test_a_server_that_stumbles_once_is_asked_again(server: LoopbackHub, failure: int | Break) -> None:
    publish(server, single(shard({"a": BIG})))
    server.fail("/api/models", failure)
    server.fail("model.safetensors", failure, failure)
    assert list(open_checkpoint(hub.HubRepo(ID)).tensors) == ["a"]
    assert len(server.paths("GET", "model.safetensors")) == 3


def test_a_server_that_stays_broken_is_named(server: LoopbackHub) -> None:
    publish(server, single(shard({"a": 10})))
    server.fail("/api/models", *[500] * 3)
    found = error_of(hub.HubRepo(ID))
    assert found.message == f"{server.url} answers with HTTP 500 Internal Server Error"


# Another host, and the token


def test_the_token_goes_to_the_hub_and_never_to_its_cdn(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cdn = True
    server.tokens = {TOKEN}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    publish(server, SHARDED)
    folder = hub.download(hub.HubRepo(ID))
    assert set(folder.files()) == NEEDED
    sent_to = {"hub": set[str | None](), "cdn": set[str | None]()}
    for request in server.requests:
        place = "cdn" if request.host.startswith("localhost") else "hub"
        sent_to[place].add(request.headers.get("authorization"))
    assert sent_to == {"hub": {f"Bearer {TOKEN}"}, "cdn": {None}}


def test_a_private_model_opens_with_a_token_that_is_saved(server: LoopbackHub) -> None:
    server.tokens = {TOKEN}
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
    repo = publish(server, single(shard({"a": 10})))
    repo.access, repo.readers = "private", {TOKEN}
    assert set(hub.download(hub.HubRepo(ID)).files()) == {"config.json", "model.safetensors"}


# One commit


def test_everything_comes_from_the_commit_of_the_first_answer(server: LoopbackHub) -> None:
    repo = publish(server, SHARDED)
    source = hub.HubRepo(ID)
    first = source.commit
    repo.push({"config.json": b'{"changed": true}', "model.safetensors": shard({"c": 10})})
    checkpoint = open_checkpoint(source)
    folder = hub.download(source)
    assert list(checkpoint.tensors) == ["a", "b"]
    assert source.commit == first == folder.path.name
    assert (folder.path / "config.json").read_bytes() == CONFIG
    assert hub.HubRepo(ID).commit != first
    assert all(first in path for path in server.paths("GET", "/resolve/"))


@pytest.mark.parametrize("by", ["branch", "refs/pr/1", "commit"])
def test_a_revision_is_a_branch_a_reference_or_a_commit(
    server: LoopbackHub, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    repo = publish(server, single(shard({"main": 10})))
    commit = repo.push(single(shard({"other": 10})), "other" if by == "commit" else by)
    revision = commit if by == "commit" else by
    source = hub.HubRepo(ID, revision)
    assert source.commit == commit
    assert source.label == f"{ID}@{revision}"
    assert list(open_checkpoint(hub.download(source)).tensors) == ["other"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.HubRepo(ID, revision).commit == commit


# Downloads


def test_a_download_fetches_what_a_quantization_reads_and_no_more(server: LoopbackHub) -> None:
    publish(server, SHARDED)
    told: list[hub.Downloading] = []
    source = hub.HubRepo(ID)
    folder = hub.download(source, told.append)
    assert set(folder.files()) == NEEDED
    assert server.bytes_sent < 3_000_000 + 4 * FIRST_BYTES
    checkpoint = open_checkpoint(folder)
    assert {tensor.name: tensor.bytes for tensor in checkpoint.tensors.values()} == {"a": 1_000_000, "b": 2_000_000}
    # The config and the index are there already: the headers could not be read without them.
    [event] = told
    assert (event.repo_id, event.commit, event.files) == (ID, source.commit, len(NEEDED) - 2)
    assert 3_000_000 < event.bytes < 3_001_000


def test_a_second_download_fetches_nothing(server: LoopbackHub) -> None:
    publish(server, SHARDED)
    first = hub.download(hub.HubRepo(ID))
    server.forget()
    told: list[hub.Downloading] = []
    assert hub.download(hub.HubRepo(ID), told.append) == first
    assert server.bytes_sent < 3 * FIRST_BYTES
    assert told == []


def test_a_new_commit_with_the_same_shards_fetches_only_what_changed(server: LoopbackHub) -> None:
    repo = publish(server, SHARDED)
    hub.download(hub.HubRepo(ID))
    repo.push({**SHARDED, "README.md": b"a better model"})
    told: list[hub.Downloading] = []
    folder = hub.download(hub.HubRepo(ID), told.append)
    assert [(event.files, event.bytes) for event in told] == [(1, 14)]
    assert (folder.path / "README.md").read_bytes() == b"a better model"


def test_what_was_downloaded_is_found_offline(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, SHARDED)
    online = hub.HubRepo(ID)
    folder = hub.download(online)
    server.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = hub.HubRepo(ID)
    assert offline.commit == online.commit
    assert open_checkpoint(offline).tensors == open_checkpoint(folder).tensors
    assert hub.download(offline) == folder
    assert server.requests == []


def test_a_broken_connection_is_taken_up_where_it_broke(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    publish(server, single(shard({"a": 2_000_000})))
    source = hub.HubRepo(ID)
    open_checkpoint(source)
    server.forget()
    server.fail("model.safetensors", Break(after=1_500_000))
    folder = hub.download(source)
    assert server.bytes_sent < 2_100_000
    assert any("range" in request.headers for request in server.requests if request.method == "GET")
    assert list(open_checkpoint(folder).tensors) == ["a"]


def test_a_failed_download_keeps_the_shards_that_are_finished(
    server: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, SHARDED)
    source = hub.HubRepo(ID)
    open_checkpoint(source)
    server.fail("00002-of-00002", *[500] * 3)
    found = error_of(source)
    assert found.message == f"{server.url} answers with HTTP 500 Internal Server Error"
    assert found.hint == "run the command again later: finished files are kept"

    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "`model-00002-of-00002.safetensors` is missing" in error_of(hub.HubRepo(ID, source.commit)).message

    server.recover()
    server.forget()
    told: list[hub.Downloading] = []
    folder = hub.download(source, told.append)
    assert [event.files for event in told] == [1]
    assert server.paths("GET", "00001-of-00002") == []
    assert set(folder.files()) == NEEDED


def test_a_download_that_cannot_fit_is_not_begun(server: LoopbackHub) -> None:
    publish(server, single(shard({"a": 2**60})))
    found = error_of(hub.HubRepo(ID))
    assert isinstance(found, CannotRun)
    assert "downloading `acme/tiny` takes 1,152,921,504.61 GB, and `" in found.message
    assert found.hint == "make room, or set HF_HOME to a folder on a larger disk"
    assert not any(
        request.method == "GET" and "range" not in request.headers and "model.s" in request.path
        for request in server.requests
    )


def test_a_disk_that_takes_no_more_is_one_sentence(server: LoopbackHub) -> None:
    publish(server, single(shard({"a": 3_000_000})))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        found = error_of(hub.HubRepo(ID))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found.message == f"`{ID}` does not fit into `{constants.HF_HUB_CACHE}`: File too large"
    assert "set HF_HOME to a folder on a larger disk" in str(found.hint)


def test_a_cache_that_cannot_be_made_is_named(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, single(shard({"a": 10})))
    blocked = Path(constants.HF_HUB_CACHE).with_name("file")
    blocked.write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(blocked / "cache"))
    found = error_of(hub.HubRepo(ID))
    assert "cannot be written: Not a directory" in found.message
    assert found.hint == "set HF_HOME to a folder you can write to"


def test_blobs_that_caches_share_are_read_through_two_links(server: LoopbackHub) -> None:
    publish(server, single(shard({"a": 1_000})))
    folder = hub.download(hub.HubRepo(ID))
    # What huggingface_hub 1.33 does with files from Xet storage: one store for all repositories of the cache.
    blob = (folder.path / "model.safetensors").resolve()
    store = Path(constants.HF_HUB_CACHE) / "blobs" / "ab" / ("ab" * 32)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(os.path.relpath(store, blob.parent))
    assert list(open_checkpoint(folder).tensors) == ["a"]


# What can go wrong


def test_a_model_that_does_not_exist(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    found = error_of(hub.HubRepo("acme/nothing"))
    assert isinstance(found, BadInput)
    assert found.message == f"`acme/nothing` is neither a folder here nor a model that {server.url} shows you"
    assert found.hint == "check the name; if the model is private, log in first: hf auth login"
    server.tokens = {TOKEN}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = error_of(hub.HubRepo("acme/nothing"))
    assert found.hint == "check the name; if the model is private, your token needs access to it"


def test_a_private_model_looks_like_none_to_strangers(server: LoopbackHub) -> None:
    publish(server, single(shard({"a": 10}))).access = "private"
    assert "is neither a folder here nor a model" in error_of(hub.HubRepo(ID)).message


def test_a_revision_that_does_not_exist(server: LoopbackHub) -> None:
    publish(server, single(shard({"a": 10})))
    found = error_of(hub.HubRepo(ID, "v9"))
    assert isinstance(found, BadInput)
    assert found.message == "`acme/tiny` has no revision `v9`"
    assert found.hint == f"leave --revision out, or choose one from {server.url}/acme/tiny/commits/main"


def test_a_gated_model(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, single(shard({"a": 10}))).access = "gated"
    found = error_of(hub.HubRepo(ID))
    assert isinstance(found, CannotRun)
    assert found.message == "`acme/tiny` is gated: its authors let in only those who accept its terms"
    assert found.hint == f"accept them on {server.url}/acme/tiny, then log in: hf auth login"
    server.tokens = {TOKEN}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = error_of(hub.HubRepo(ID))
    assert found.hint == f"accept them on {server.url}/acme/tiny, with the account your token belongs to"


def test_a_token_that_is_not_accepted(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, single(shard({"a": 10})))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = error_of(hub.HubRepo(ID))
    assert found.message == f"{server.url} does not accept your access token"
    assert found.hint == "log in again: hf auth login; HF_TOKEN, if set, goes before it"


@pytest.mark.parametrize("end", ["\v", "…"])
def test_a_token_that_no_header_can_carry_is_not_shown(
    server: LoopbackHub, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    publish(server, single(shard({"a": 10})))
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}{end}{TOKEN}")
    assert error_of(hub.HubRepo(ID)).message == "the Hub access token holds characters that no token has"
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "{url} does not let you read `acme/tiny`"),
        (429, "{url} takes no more requests from you for now (HTTP 429)"),
        (504, "{url} answers with HTTP 504 Gateway Timeout"),
    ],
)
def test_other_refusals_name_the_server(server: LoopbackHub, status: int, message: str) -> None:
    publish(server, single(shard({"a": 10})))
    server.fail("model.safetensors", *[status] * 3)
    assert error_of(hub.HubRepo(ID)).message == message.format(url=server.url)


def test_a_server_that_no_one_answers_for(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        ask(f"http://user:{TOKEN}@127.0.0.1:{port}", monkeypatch)
        found = error_of(hub.HubRepo(ID))
    assert server.requests == []
    assert found.message == f"http://127.0.0.1:{port} cannot be reached for `acme/tiny`: [Errno 111] Connection refused"
    assert "HF_HUB_OFFLINE=1" in str(found.hint)


def test_a_network_that_goes_away_before_the_download(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, SHARDED)
    source = hub.HubRepo(ID)
    open_checkpoint(source)
    ask("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    assert "http://127.0.0.1:9 cannot be reached for `acme/tiny`" in error_of(source).message


def test_an_endpoint_that_is_no_address(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("hub.example", monkeypatch)
    assert "hub.example cannot be reached for `acme/tiny`: Request URL is missing" in error_of(hub.HubRepo(ID)).message
    assert server.requests == []


def test_a_login_page_is_no_hub(server: LoopbackHub) -> None:
    server.page = b"<html>Welcome to the hotel</html>"
    found = error_of(hub.HubRepo(ID))
    assert found.message == f"{server.url} does not answer as a Hugging Face Hub does"


def test_a_mirror_that_hides_the_sizes_is_no_hub(server: LoopbackHub) -> None:
    server.sizes = False
    publish(server, single(shard({"a": 10})))
    assert error_of(hub.HubRepo(ID)).message == f"{server.url} does not answer as a Hugging Face Hub does"


def test_a_file_that_vanishes_is_the_repositorys_fault(server: LoopbackHub) -> None:
    repo = publish(server, single(shard({"a": 10})))
    source = hub.HubRepo(ID)
    repo.commits[source.commit] = {}
    assert error_of(source).message == f"`acme/tiny` lists a file that {server.url} does not have"


def test_a_model_that_is_not_in_the_cache_cannot_be_had_offline(
    server: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, single(shard({"a": 10})))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = error_of(hub.HubRepo(ID, "v1"))
    assert found.message == f"HF_HUB_OFFLINE is set, and `acme/tiny` is not in the cache `{constants.HF_HUB_CACHE}`"
    assert found.hint == "fetch it once: HF_HUB_OFFLINE=0 hf download acme/tiny --revision v1"
    assert server.requests == []


# As a user sets it up


PROGRAM = """
import sys
from fp8cli.formats import hub
from fp8cli.formats.sources import resolve_source
from fp8cli.errors import Fp8Error
try:
    print(hub.download(resolve_source("acme/tiny"), progress=sys.argv[1] == "bars").path)
except Fp8Error as problem:
    print(problem.message)
"""


def environment_for(server: LoopbackHub, home: Path, **settings: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return mine | {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, **settings}


def run(
    server: LoopbackHub, home: Path, progress: str = "bars", *, terminal: bool = False, **settings: str
) -> tuple[str, str]:
    """Download in a process of its own; return its output and what it showed on stderr, a pipe or a terminal."""
    environment = environment_for(server, home, **settings)
    reader, writer = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(writer, (24, 100))
    command = [sys.executable, "-c", PROGRAM, progress]
    with os.fdopen(reader, "rb", buffering=0) as shown_on:
        finished = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=writer, text=True, check=True, timeout=60
        )
        os.close(writer)
        shown = b""
        try:
            while piece := shown_on.read(4096):
                shown += piece
        except OSError:
            pass  # Linux says so when the other end of a terminal is closed.
    return finished.stdout.strip(), shown.decode()


def test_the_environment_decides_on_server_cache_token_and_offline_mode(server: LoopbackHub, tmp_path: Path) -> None:
    server.tokens = {TOKEN}
    repo = publish(server, SHARDED)
    repo.access, repo.readers = "private", {TOKEN}
    path = str(tmp_path / "home" / "hub" / "models--acme--tiny" / "snapshots" / repo.branches["main"])
    assert run(server, tmp_path / "home") == (path, "")
    assert set(LocalFolder(Path(path)).files()) == NEEDED
    server.forget()
    assert run(server, tmp_path / "home", HF_HUB_OFFLINE="1") == (path, "")
    assert server.requests == []


@pytest.mark.parametrize(("progress", "shows"), [("bars", True), ("none", False)])
def test_bars_are_shown_on_a_terminal_if_wanted(
    server: LoopbackHub, tmp_path: Path, progress: str, shows: bool
) -> None:
    server.tokens = {TOKEN}
    publish(server, SHARDED)
    path, shown = run(server, tmp_path / "home", progress, terminal=True)
    assert Path(path).is_dir()
    assert ("Fetching 2 files" in shown) is shows
    assert (shown != "") is shows


def test_an_interrupt_ends_a_download_without_waiting_for_its_shards(server: LoopbackHub, tmp_path: Path) -> None:
    server.tokens = {TOKEN}
    server.pause = 0.02
    publish(server, single(shard({"a": BIG})))
    program = [sys.executable, "-c", PROGRAM, "none"]
    with subprocess.Popen(program, env=environment_for(server, tmp_path), stderr=subprocess.PIPE, text=True) as process:
        while server.bytes_sent < 1_000_000:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert shown.endswith("KeyboardInterrupt\n")
    assert server.bytes_sent < BIG / 2
