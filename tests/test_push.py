"""`fp8 push`: what is sent, what is refused, what the card says."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest

from fp8cli.commands.push import PushReport, PushRequest, read_comparison, run
from fp8cli.commands.quantize import QuantizeRequest
from fp8cli.commands.quantize import run as quantize
from fp8cli.core.delivering.delivery_events import BytesSent
from fp8cli.errors import BadInput, CannotRun, Fp8Error, UsageError
from fp8cli.render.comparison_markdown import comparison_to_markdown
from fp8cli.render.document import result_document, to_text
from tests import comparisons
from tests.loopback_hub_uploads import UploadHub, serving
from tests.models import llama_config, save_model
from tests.starting import fp8

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # as in test_delivery_hub

ID = "acme/tiny"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    source = save_model(folder / "source", llama_config(), max_shard_size="300KB")
    quantize(QuantizeRequest(model=str(source), out=folder / "tiny"))
    return folder / "tiny"


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return copytree(made, tmp_path / "tiny")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with serving(tmp_path, monkeypatch) as running:
        yield running


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def push(folder: Path, to: str = ID, **asked: object) -> PushReport:
    return run(PushRequest(folder=folder, to=to, work_dir=folder.parent / "work", **asked))  # type: ignore[arg-type]


def test_all_files_arrive_as_they_are_and_hidden_ones_stay(hub: UploadHub, checkpoint: Path) -> None:
    wanted = contents(checkpoint)
    (checkpoint / ".cache").mkdir()
    (checkpoint / ".cache" / "secret").write_text("mine")
    (checkpoint / ".env").write_text("mine")
    report = push(checkpoint, message="Made on a Monday")
    assert hub.contents(ID) == wanted
    assert hub.repos[ID].access == "private"
    assert report.card == "its own"
    assert {row.name for row in report.files} == set(wanted)
    assert not list((checkpoint.parent / "work").iterdir())


def test_a_dry_run_sends_nothing(hub: UploadHub, checkpoint: Path) -> None:
    report = push(checkpoint, dry_run=True)
    assert report.bytes == sum(map(len, contents(checkpoint).values()))
    assert not hub.repos
    assert not hub.paths("POST")


def cut_short(folder: Path) -> None:
    shard = max(folder.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 100)


def lose_a_shard(folder: Path) -> None:
    max(folder.glob("*.safetensors")).unlink()


def spoil_a_side_file(folder: Path) -> None:
    (folder / "generation_config.json").write_text("<html>")


def lose_the_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize("spoil", [cut_short, lose_a_shard, spoil_a_side_file, lose_the_config])
def test_a_damaged_checkpoint_is_not_sent(hub: UploadHub, checkpoint: Path, spoil: object) -> None:
    assert callable(spoil)
    spoil(checkpoint)
    with pytest.raises(BadInput) as refused:
        push(checkpoint)
    assert "is damaged" in refused.value.message
    assert "fp8 inspect" in (refused.value.hint or "")
    assert not hub.requests


def test_a_checkpoint_that_changes_while_it_is_sent_does_not_become_visible(hub: UploadHub, checkpoint: Path) -> None:
    def touch(event: object) -> None:
        if isinstance(event, BytesSent):
            (checkpoint / "recipe.yaml").write_text("changed: true")

    request = PushRequest(folder=checkpoint, to=ID, work_dir=checkpoint.parent / "work")
    with pytest.raises(BadInput, match="was changed while it was being sent"):
        run(request, touch)
    assert hub.contents(ID) == {}
    assert not list((checkpoint.parent / "work").iterdir())


def test_the_measured_table_goes_into_the_card_and_the_folder_stays_as_it_is(hub: UploadHub, checkpoint: Path) -> None:
    file = checkpoint.parent / "compare.json"
    report = comparisons.report(comparisons.several())
    file.write_text(to_text(result_document("compare", report)))
    compared = read_comparison(file)
    assert compared == report.comparison
    before = contents(checkpoint)
    measured = comparison_to_markdown(compared)
    pushed = push(checkpoint, comparison=compared, measured=measured)
    assert contents(checkpoint) == before
    own = before["README.md"].decode().rstrip("\n")
    assert hub.contents(ID)["README.md"].decode() == f"{own}\n\n{measured}"
    assert pushed.card == "its own, with the comparison"
    assert "none of them is called tiny" in pushed.warnings[0]


def test_without_a_card_none_is_made_up(hub: UploadHub, checkpoint: Path) -> None:
    (checkpoint / "README.md").unlink()
    assert push(checkpoint).card == "none"
    assert "README.md" not in hub.contents(ID)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"result": {"comparison": {}}}', '{"result": null}'])
def test_what_is_no_comparison_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "compare.json"
    file.write_text(text)
    with pytest.raises(BadInput) as refused:
        read_comparison(file)
    assert "is not a comparison" in refused.value.message
    assert "fp8 compare" in (refused.value.hint or "")


def test_an_interrupted_push_goes_on_without_sending_again(hub: UploadHub, checkpoint: Path) -> None:
    hub.stumble("POST", "/commit/", *[500] * 10)
    with pytest.raises(CannotRun):
        push(checkpoint)
    hub._stumbles.clear()
    sent = hub.bytes_taken
    push(checkpoint)
    assert hub.contents(ID) == contents(checkpoint)
    assert hub.bytes_taken == sent > 0
    with pytest.raises(UsageError, match="already"):
        push(checkpoint)


@pytest.mark.parametrize(
    ("to", "asked", "words"),
    [
        ("acme", {}, "is not the address of a repository"),
        ("a b/c", {}, "cannot be the name"),
        ("acme/x@main", {"revision": "other"}, "names a branch already"),
        ("s3://bucket/x", {"revision": "other"}, "--revision would have no effect"),
        ("s3://bucket/x", {"public": True, "message": "x"}, "--public and --message would have no effect"),
    ],
)
def test_what_makes_no_sense_is_refused(
    hub: UploadHub, checkpoint: Path, to: str, asked: dict[str, object], words: str
) -> None:
    assert not hub.repos
    with pytest.raises(Fp8Error) as refused:
        push(checkpoint, to, **asked)
    assert words in refused.value.message


def test_the_command_itself_sends_to_a_folder_by_address(made: Path, tmp_path: Path) -> None:
    place = f"file://{tmp_path}/there/tiny"
    run = fp8(tmp_path, "push", made, place, "--work-dir", tmp_path / "work")
    assert (run.code, run.err, run.loaded) == (0, "", ["numpy"])
    assert run.out.splitlines()[0] == f"{made} → {place}"
    assert run.out.splitlines()[-1] == place
    assert contents(tmp_path / "there" / "tiny") == contents(made)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["tiny"]
    again = fp8(tmp_path, "push", made, place, "--json", "--work-dir", tmp_path / "work")
    assert again.code == 2
    assert "already" in json.loads(again.out)["error"]["message"]
