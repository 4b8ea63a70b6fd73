"""`fp8 quantize -o hf://…` and `--push`: to a Hub on the loopback device that takes uploads."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fp8cli.commands.quantize import DeliveryOptions, QuantizeReport, QuantizeRequest, SendOptions, run
from fp8cli.core.delivering.ledger import LEDGER, Ledger
from fp8cli.errors import CannotRun, Fp8Error, Interrupted, UsageError
from fp8cli.formats import hub_uploads
from fp8cli.formats.staging import partial_folder
from tests.loopback_hub_uploads import Stumble, UploadHub, serving
from tests.models import llama_config, save_model

# huggingface_hub, to httpx, whenever it sends a file
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "tiny"
ID = f"acme/{NAME}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("hub") / "source", llama_config(), max_shard_size="300KB")


@pytest.fixture(scope="module")
def wanted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run to a folder of the same name makes."""
    out = tmp_path_factory.mktemp("local") / NAME
    run(QuantizeRequest(model=str(source), out=out))
    return contents(out)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with serving(tmp_path, monkeypatch) as running:
        yield running


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def deliver(source: Path, work: Path, place: str = f"hf://{ID}", **asked: object) -> QuantizeReport:
    options = DeliveryOptions(out=place, work_dir=work)
    return run(QuantizeRequest(model=str(source), delivery=options, **asked))  # type: ignore[arg-type]


def test_one_commit_brings_what_a_folder_would_hold_into_a_private_repository(
    hub: UploadHub, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    report = deliver(source, work)
    assert hub.contents(ID) == wanted
    assert hub.repos[ID].access == "private"
    assert len(hub.repos[ID].commits) == 2
    assert report.delivery is not None
    assert report.delivery.commit == hub.repos[ID].branches["main"]
    assert report.serve_command == f"vllm serve {ID}"
    assert list(work.iterdir()) == []


def test_push_beside_a_folder_keeps_the_folder_and_a_branch_and_a_public_one_can_be_had(
    hub: UploadHub, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / NAME
    options = DeliveryOptions(out=str(out), push=f"{ID}@fp8", options=SendOptions(public=True))
    report = run(QuantizeRequest(model=str(source), delivery=options))
    assert report.out == out
    assert hub.contents(ID, "fp8") == contents(out) == wanted
    assert hub.contents(ID) == {}
    assert hub.repos[ID].access == "public"


@pytest.mark.parametrize(
    ("method", "path", "stumble"),
    [
        ("POST", "/preupload/", 500),
        ("POST", "/objects/batch", "cut"),
        ("PUT", "/storage/", "cut"),
        ("PUT", "/storage/", "lost"),
        ("PUT", "/storage/", 503),
        ("POST", "/commit/", "cut"),
        ("POST", "/commit/", "lost"),
        ("POST", "/commit/", 502),
        ("POST", "/repos/create", 500),
    ],
)
def test_what_passes_is_survived(
    hub: UploadHub, source: Path, wanted: dict[str, bytes], tmp_path: Path, method: str, path: str, stumble: Stumble
) -> None:
    hub.stumble(method, path, stumble)
    hub.chunk_bytes = 2**16
    deliver(source, tmp_path / "work")
    assert hub.contents(ID) == wanted
    assert len(hub.repos[ID].commits) == 2


def test_a_hub_that_asks_to_wait_is_waited_for_as_long_as_it_says(
    hub: UploadHub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    wait = threading.Event.wait

    def waits(event: threading.Event, seconds: float | None = None) -> bool:
        pauses.append(seconds or 0.0)
        return wait(event, seconds)

    monkeypatch.setattr(threading.Event, "wait", waits)
    hub.retry_after = "1"
    hub.stumble("POST", "/commit/", 429)
    deliver(source, tmp_path / "work")
    assert any(0.9 < each <= 1.0 for each in pauses)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("hf_reader", "does not let you write"),
        ("hf_nobodys", "does not accept your access token"),
        ("", "without a token"),
    ],
)
def test_who_may_not_write_is_told_so_before_anything_is_made(
    hub: UploadHub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, words: str
) -> None:
    assert not hub.repos
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(CannotRun) as refused:
        deliver(source, tmp_path / "work")
    assert words in refused.value.message
    assert not token or token not in f"{refused.value.message}{refused.value.hint}"
    assert not list((tmp_path / "work").glob("*"))
    assert not list((tmp_path / "work").glob(".*"))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (409, "was changed by somebody else"),
        (412, "was changed by somebody else"),
        (413, "quota"),
        (429, "takes no more requests"),
        (500, "answers with HTTP 500"),
    ],
)
def test_what_is_not_survived_is_one_sentence_and_goes_on_without_sending_again(
    hub: UploadHub, source: Path, wanted: dict[str, bytes], tmp_path: Path, status: int, words: str
) -> None:
    hub.stumble("POST", "/commit/", *[status] * 10)
    with pytest.raises(CannotRun) as refused:
        deliver(source, tmp_path / "work")
    assert words in refused.value.message
    assert "Signature" not in f"{refused.value.message}{refused.value.hint}"
    assert hub.contents(ID) == {}
    hub._stumbles.clear()
    sent = hub.bytes_taken
    deliver(source, tmp_path / "work")
    assert hub.contents(ID) == wanted
    assert hub.bytes_taken == sent > 0


def test_a_run_that_ended_before_it_heard_of_its_own_commit_makes_no_second_one(
    hub: UploadHub, source: Path, wanted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def die(*_: object) -> str:
            raise KeyboardInterrupt

        hub.stumble("POST", "/commit/", "lost")
        patch.setattr(hub_uploads.HubDestination, "_is_made", die)
        with pytest.raises(Interrupted):
            deliver(source, tmp_path / "work")
    report = deliver(source, tmp_path / "work")
    assert hub.contents(ID) == wanted
    assert len(hub.repos[ID].commits) == 2
    assert report.delivery is not None
    assert report.delivery.commit == hub.repos[ID].branches["main"]


def test_a_repository_that_somebody_changed_meanwhile_is_left_alone(
    hub: UploadHub, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    hub.stumble("POST", "/commit/", *[500] * 10)
    with pytest.raises(CannotRun):
        deliver(source, tmp_path / "work")
    hub._stumbles.clear()
    theirs = hub.repos[ID].push({"README.md": b"mine"})
    with pytest.raises(CannotRun) as refused:
        deliver(source, tmp_path / "work")
    assert "changed" in refused.value.message
    assert hub.repos[ID].branches["main"] == theirs
    deliver(source, tmp_path / "work", overwrite=True)
    assert hub.contents(ID) == wanted


def test_what_the_hub_has_thrown_away_is_made_and_sent_again(
    hub: UploadHub, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    hub.stumble("POST", "/commit/", *[500] * 10)
    with pytest.raises(CannotRun):
        deliver(source, tmp_path / "work")
    ledger = Ledger.read(partial_folder(tmp_path / "work" / NAME) / LEDGER)
    assert all(entry.punched for entry in ledger.entries.values())
    hub._stumbles.clear()
    hub.storage.clear()
    deliver(source, tmp_path / "work")
    assert hub.contents(ID) == wanted


def test_a_repository_that_holds_something_is_replaced_only_when_asked(
    hub: UploadHub, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    deliver(source, tmp_path / "work", scheme="FP8_BLOCK")
    hub.repos[ID].push({**hub.repos[ID].commits[hub.repos[ID].branches["main"]], "old.safetensors": b"old"})
    with pytest.raises(UsageError) as refused:
        deliver(source, tmp_path / "work")
    assert "already" in refused.value.message
    deliver(source, tmp_path / "work", overwrite=True)
    assert hub.contents(ID) == wanted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (DeliveryOptions(out="hf://acme/a/b"), "is not the address of a repository"),
        (DeliveryOptions(out="hf://acme"), "is not the address of a repository"),
        (DeliveryOptions(push="a b/c"), "cannot be the name"),
        (DeliveryOptions(push="acme/\x1b[31m"), "cannot be the name"),
        (DeliveryOptions(out="s3://bucket/x", push=ID), "nothing left to send"),
        (DeliveryOptions(out="here", options=SendOptions(public=True)), "--public would have no effect"),
        (DeliveryOptions(out="s3://b/x", options=SendOptions(public=True)), "--public would have no effect"),
        (DeliveryOptions(out="here", push=ID, work_dir=Path("there")), "--work-dir would have no effect"),
        (DeliveryOptions(out="https://x/y"), "nothing can be written there"),
        (DeliveryOptions(out="carrier-pigeon://x/y"), "no kind of address"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(
    hub: UploadHub, source: Path, options: DeliveryOptions, words: str
) -> None:
    assert not hub.repos
    with pytest.raises(Fp8Error) as refused:
        run(QuantizeRequest(model=str(source), delivery=options))
    assert words in refused.value.message
    assert refused.value.hint
    assert "\x1b" not in refused.value.message
