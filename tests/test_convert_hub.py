"""`fp8 convert org/name`: from a Hub on the loopback device, and dry runs that read headers and scales alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from fp8cli.commands.convert import ConvertRequest, Options, run
from fp8cli.formats import hub
from tests.dialects import load, make, same
from tests.loopback_hub import LoopbackHub, Repo

ID = "acme/tiny-deepseek"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """Serve the checkpoint, to this process only, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub, "_PAUSES", (0.0, 0.0))
    local = make(tmp_path / "local", "deepseek")
    with LoopbackHub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        running.repos[ID] = Repo()
        running.repos[ID].push({path.name: path.read_bytes() for path in local.iterdir()})
        yield running
        close_session()


def test_a_model_of_the_hub_becomes_what_its_local_copy_does_and_its_card_names_the_commit(
    server: LoopbackHub, tmp_path: Path
) -> None:
    options = Options(model=ID, out=tmp_path / "ours", download_bars=False)
    report = run(ConvertRequest(options=options, to="compressed-tensors"))
    local = Options(model=str(tmp_path / "local"), out=tmp_path / "theirs")
    same(load(report.out), load(run(ConvertRequest(options=local, to="compressed-tensors")).out))
    commit = server.repos[ID].branches["main"]
    assert report.revision == commit
    card = (report.out / "README.md").read_text()
    assert f"base_model: {ID}\n" in card
    assert commit in card


def test_a_dry_run_downloads_no_weights(server: LoopbackHub, tmp_path: Path) -> None:
    options = Options(model=ID, out=tmp_path / "out", dry_run=True)
    report = run(ConvertRequest(options=options, to="compressed-tensors"))
    local = Options(model=str(tmp_path / "local"), out=tmp_path / "out", dry_run=True)
    assert report.tensors == run(ConvertRequest(options=local, to="compressed-tensors")).tensors
    assert server.requests
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
