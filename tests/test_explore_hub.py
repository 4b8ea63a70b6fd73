"""`fp8 explore org/name`: a model of a Hub on the loopback device, fetched and measured."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from fp8cli.commands.explore import ExploreRequest, run
from fp8cli.core.sampling.data import BUNDLED_MODEL, BUNDLED_STORIES
from fp8cli.errors import BadInput, UsageError
from fp8cli.formats import hub
from tests.loopback_hub import LoopbackHub, Repo

ID = "acme/stories"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """Serve the bundled model, to this process only, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub, "_PAUSES", (0.0, 0.0))
    with LoopbackHub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        running.repos[ID] = Repo()
        files = (path for path in BUNDLED_MODEL.iterdir() if path.suffix in {".json", ".safetensors"})
        running.repos[ID].push({path.name: path.read_bytes() for path in files})
        yield running
        close_session()


def test_without_texts_no_weight_is_asked_of_the_hub(server: LoopbackHub) -> None:
    with pytest.raises(UsageError, match="there are no texts to measure `acme/stories` on"):
        run(ExploreRequest(model=ID))
    assert server.requests
    assert server.bytes_sent < (BUNDLED_MODEL / "model.safetensors").stat().st_size / 4


def test_a_name_that_the_hub_does_not_know_is_told_so_before_texts_are_asked_for(server: LoopbackHub) -> None:
    with pytest.raises(BadInput, match="`nope`"):
        run(ExploreRequest(model="nope"))
    assert server.requests


@pytest.mark.slow
def test_a_model_of_the_hub_is_measured_and_the_next_command_names_it(server: LoopbackHub) -> None:
    report = run(
        ExploreRequest(model=ID, schemes=("fp8_dynamic",), data=str(BUNDLED_STORIES), samples=4, download_bars=False)
    )
    assert report.revision == server.repos[ID].branches["main"]
    assert report.next_command == f"fp8 quantize {ID} --scheme FP8_DYNAMIC"
    (row,) = report.rows
    assert row.kl is not None
    assert 0 < row.kl < 0.01
