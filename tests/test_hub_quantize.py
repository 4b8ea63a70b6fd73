"""`fp8 quantize org/name`: from a Hub on the loopback device to a finished checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.errors import CannotRun
from fp8cli.formats import hub
from tests.loopback_hub import LoopbackHub, Repo
from tests.models import llama_config, save_model

ID = "acme/tiny-llama"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(
        tmp_path_factory.mktemp("hub") / "tiny-llama",
        llama_config(hidden_size=256, intermediate_size=1024, vocab_size=2048),
        max_shard_size="2MB",
    )
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "pytorch_model.bin").write_bytes(b"\0" * 3_000_000)
    return folder


@pytest.fixture
def server(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """Serve the checkpoint, to this process only, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub, "_PAUSES", (0.0, 0.0))
    with LoopbackHub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        running.repos[ID] = Repo()
        running.repos[ID].push({path.name: path.read_bytes() for path in local.iterdir()})
        yield running
        close_session()


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files, but for the two that name the source."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in {"README.md", "fp8.json"}}


def test_a_dry_run_costs_headers_only(server: LoopbackHub, local: Path, tmp_path: Path) -> None:
    report = run(QuantizeRequest(model=ID, out=tmp_path / "out", dry_run=True))
    assert report.revision == server.repos[ID].branches["main"]
    assert report.counts == run(QuantizeRequest(model=str(local), out=tmp_path / "out", dry_run=True)).counts
    shards = [path for path in local.iterdir() if path.name.endswith(".safetensors")]
    assert server.bytes_sent < 300_000 * len(shards) < sum(path.stat().st_size for path in shards)
    assert not server.paths("GET", "pytorch_model.bin")


def test_the_result_is_that_of_the_local_folder_and_names_its_commit(
    server: LoopbackHub, local: Path, tmp_path: Path
) -> None:
    ours = run(QuantizeRequest(model=ID, out=tmp_path / "a" / "tiny", download_bars=False)).out
    theirs = run(QuantizeRequest(model=str(local), out=tmp_path / "b" / "tiny")).out
    assert contents(ours) == contents(theirs)
    card = (ours / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert f"base_model: {ID}\n" in card
    assert server.repos[ID].branches["main"] in card
    assert not server.paths("GET", "pytorch_model.bin")


def test_the_default_output_is_named_after_the_repository(
    server: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.repos
    monkeypatch.chdir(tmp_path)
    assert run(QuantizeRequest(model=ID, download_bars=False)).out == Path("tiny-llama-FP8-dynamic")


def test_offline_the_cache_is_enough_and_without_it_the_way_out_is_named(
    server: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = contents(run(QuantizeRequest(model=ID, out=tmp_path / "a" / "tiny", download_bars=False)).out)
    server.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert contents(run(QuantizeRequest(model=ID, out=tmp_path / "b" / "tiny", download_bars=False)).out) == wanted
    assert not server.requests
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(CannotRun) as refused:
        run(QuantizeRequest(model=ID, out=tmp_path / "c"))
    assert refused.value.hint
    assert json.dumps(refused.value.message).isascii()
