"""`fp8 verify` of what lies on the Hub, read by ranges from a server on the loopback device, and of a source there."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

import fp8cli
from fp8cli.commands.quantize import QuantizeRequest
from fp8cli.commands.quantize import run as quantize
from fp8cli.commands.verify import VerifyReport, VerifyRequest, run
from fp8cli.core.verifying import streaming
from fp8cli.errors import CannotRun, ExitCode
from fp8cli.formats import hub
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.provenance import read_provenance
from tests.loopback_hub import Break, LoopbackHub, Repo

MODEL = Path(fp8cli.__file__).parent / "bundled" / "stories-llama"
SOURCE, RESULT = "acme/stories", "acme/stories-FP8"
WEIGHTS = "model.safetensors"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """Serve the bundled model, to this process only, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(hub, "_PAUSES", (0.0, 0.0))
    # So that files of this size take several requests.
    monkeypatch.setattr(streaming, "RANGE_BYTES", 100_000)
    with LoopbackHub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        running.repos[SOURCE], running.repos[RESULT] = Repo(), Repo()
        running.repos[SOURCE].push(files_of(MODEL))
        yield running
        close_session()


@pytest.fixture
def made(server: LoopbackHub, tmp_path: Path) -> Path:
    assert server.repos
    return quantize(QuantizeRequest(model=SOURCE, out=tmp_path / "out", download_bars=False)).out


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def verify(checkpoint: str | Path, source: str | None = None) -> VerifyReport:
    return run(VerifyRequest(checkpoint=str(checkpoint), source=source))


def differences(report: VerifyReport) -> dict[str, str]:
    return {verdict.name: verdict.status for verdict in report.files if verdict.status != "matches"}


def test_the_commit_is_named_and_hashes_are_those_by_which_the_cache_calls_its_files(
    server: LoopbackHub, made: Path
) -> None:
    source = read_provenance(LocalFolder(made)).source
    assert (source.name, source.commit) == (SOURCE, server.repos[SOURCE].branches["main"])
    assert WEIGHTS in source.hub_says
    wanted = {name: hashlib.sha256(content).hexdigest() for name, content in files_of(MODEL).items()}
    assert {name: facts.sha256 for name, facts in source.files.items()} == wanted


def test_a_checkpoint_on_the_hub_is_read_by_ranges_and_nothing_of_it_is_kept(
    server: LoopbackHub, made: Path, tmp_path: Path
) -> None:
    server.repos[RESULT].push(files_of(made) | {".gitattributes": b"*.safetensors filter=lfs"})
    server.forget()
    report = verify(RESULT)
    assert (report.verdict, report.path) == ("matches", f"{RESULT}@{server.repos[RESULT].branches['main']}")
    size = (made / WEIGHTS).stat().st_size
    assert len(server.paths("GET", WEIGHTS)) == -(-size // 100_000)
    assert not list((tmp_path / "cache").rglob(f"*{RESULT.replace('/', '--')}*/**/*.safetensors"))


def test_a_changed_and_a_cut_file_on_the_hub_are_found(server: LoopbackHub, made: Path) -> None:
    files = files_of(made)
    weights = bytearray(files[WEIGHTS])
    weights[-1] ^= 1
    server.repos[RESULT].push(files | {WEIGHTS: bytes(weights), "tokenizer.json": files["tokenizer.json"][:-1]})
    report = verify(RESULT)
    assert differences(report) == {WEIGHTS: "other bytes", "tokenizer.json": "other size"}
    assert report.exit_code == ExitCode.NEGATIVE


def test_a_server_that_stumbles_is_asked_again_and_one_that_stays_down_is_no_difference(
    server: LoopbackHub, made: Path
) -> None:
    server.repos[RESULT].push(files_of(made))
    server.fail(WEIGHTS, 503, Break(50_000))
    assert verify(RESULT).verdict == "matches"
    server.fail(WEIGHTS, *[503] * 1000)
    report = verify(RESULT)
    assert (differences(report), report.exit_code) == ({WEIGHTS: "unreadable"}, ExitCode.COULD_NOT_RUN)


def test_the_source_is_checked_at_the_commit_that_was_read(server: LoopbackHub, made: Path) -> None:
    server.repos[SOURCE].push(files_of(MODEL) | {WEIGHTS: b"something else"})
    report = verify(made, SOURCE)
    assert report.source is not None
    assert (report.verdict, report.source.path) == ("matches", f"{SOURCE}@{report.source_commit}")
    assert verify(made, f"{SOURCE}@main").verdict == "differs"


def test_a_repository_without_fp8_json_is_refused_before_a_file_is_read(server: LoopbackHub) -> None:
    server.forget()
    with pytest.raises(CannotRun, match=r"has no `fp8\.json`"):
        verify(SOURCE)
    assert not server.paths("GET", WEIGHTS)


def test_a_blob_of_the_cache_that_was_changed_does_not_match_what_the_hub_says(made: Path, tmp_path: Path) -> None:
    assert verify(made, SOURCE).verdict == "matches"
    (shard,) = (tmp_path / "cache").rglob(f"snapshots/*/{WEIGHTS}")
    os.truncate(shard.resolve(), shard.stat().st_size - 1)
    report = verify(made, str(shard.parent))
    assert report.source is not None
    assert [verdict.name for verdict in report.source.files if verdict.status == "other size"] == [WEIGHTS]
