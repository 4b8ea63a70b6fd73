"""The hidden folder, its lock and its journal."""

import errno
import json
import os
import sys
import threading
from pathlib import Path

import pytest

from fp8cli.errors import CannotRun, Fp8Error, UsageError
from fp8cli.formats.staging import check_output, discard, partial_folder, stage

IDENTITY = {"the scheme": "FP8_DYNAMIC", "the source": {"a.safetensors": [10, 20]}}


def begin(out: Path, identity: dict[str, object] = IDENTITY, *, restart: bool = False) -> dict:
    """Open a run, record nothing, and return what an earlier run had done."""
    with stage(out, identity, restart=restart) as staging:
        return dict(staging.done)


def test_a_published_output_appears_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with stage(out, IDENTITY, restart=False) as staging:
        staging.write_file("config.json", b"{}")
        staging.write_file("code/model.py", b"pass")
        assert not out.exists()
        staging.publish(overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert (out / "config.json").read_bytes() == b"{}"
    assert (out / "code" / "model.py").read_bytes() == b"pass"


def test_finished_pieces_and_their_harm_are_remembered(tmp_path: Path) -> None:
    with stage(tmp_path / "out", IDENTITY, restart=False) as staging:
        staging.record({(0, 0, 64): (0, -1), (0, 64, 128): (3, 70)})
        staging.record({(1, 0, 64): (0, -1)})
    assert begin(tmp_path / "out") == {(0, 0, 64): (0, -1), (0, 64, 128): (3, 70), (1, 0, 64): (0, -1)}


def test_a_line_torn_by_a_kill_is_ignored_and_later_lines_count(tmp_path: Path) -> None:
    with stage(tmp_path / "out", IDENTITY, restart=False) as staging:
        staging.record({(0, 0, 64): (0, -1)})
    journal = partial_folder(tmp_path / "out") / "journal"
    with journal.open("a") as file:
        file.write("[[0,64,12")
    with stage(tmp_path / "out", IDENTITY, restart=False) as staging:
        assert dict(staging.done) == {(0, 0, 64): (0, -1)}
        staging.record({(1, 0, 5): (0, -1)})
    assert begin(tmp_path / "out") == {(0, 0, 64): (0, -1), (1, 0, 5): (0, -1)}


@pytest.mark.parametrize("damage", ["", "{", "\0\0\0\0", '{"version": 1, "inode'])
def test_a_journal_that_never_got_its_first_line_means_a_fresh_start(tmp_path: Path, damage: str) -> None:
    begin(tmp_path / "out")
    (partial_folder(tmp_path / "out") / "journal").write_text(damage)
    (partial_folder(tmp_path / "out") / "checkpoint" / "junk").write_text("from who knows where")
    with stage(tmp_path / "out", IDENTITY, restart=False) as staging:
        assert not staging.done
        assert list(staging.checkpoint.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("the scheme", "FP8_BLOCK", "the scheme was `FP8_DYNAMIC` and is `FP8_BLOCK`"),
        ("the source", {"a.safetensors": [10, 21]}, "the source has changed (`a.safetensors`)"),
    ],
)
def test_going_on_with_something_else_is_refused_with_the_way_out(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    begin(tmp_path / "out")
    with pytest.raises(CannotRun) as refused:
        begin(tmp_path / "out", {**IDENTITY, key: value})
    assert refused.value.message.endswith(words)
    assert "--restart" in str(refused.value.hint)
    assert begin(tmp_path / "out", {**IDENTITY, key: value}, restart=True) == {}


def test_a_second_run_to_the_same_output_is_refused(tmp_path: Path) -> None:
    with stage(tmp_path / "out", IDENTITY, restart=False), pytest.raises(CannotRun, match="another run is writing"):
        begin(tmp_path / "out", restart=True)


def test_after_a_kill_between_swap_and_clean_up_the_old_output_is_not_taken_for_the_new(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")
    with stage(out, IDENTITY, restart=False) as staging:
        staging.record({(0, 0, 1): (0, -1)})
        staging.write_file("config.json", b"new")
        # What publish does, up to the swap: then the power goes.
        kept = staging.folder.rename(tmp_path / "kept")
    (kept / "checkpoint").rename(tmp_path / "new")
    out.rename(kept / "checkpoint")
    (tmp_path / "new").rename(out)
    kept.rename(partial_folder(out))
    with stage(out, IDENTITY, restart=False) as staging:
        assert not staging.done
        assert list(staging.checkpoint.iterdir()) == []
    assert (out / "config.json").read_text() == "new"


def test_overwrite_swaps_the_old_output_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")
    (out / "stale.safetensors").write_text("old")
    with stage(out, IDENTITY, restart=False) as staging:
        staging.write_file("config.json", b"new")
        staging.publish(overwrite=True)
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert (out / "config.json").read_text() == "new"
    assert not partial_folder(out).exists()


def test_files_and_folders_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with stage(tmp_path / "out", IDENTITY, restart=False) as staging:
            staging.write_file("config.json", b"{}")
            staging.publish(overwrite=False)
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out" / "config.json").stat().st_mode & 0o777 == 0o640


def test_an_existing_output_is_refused_but_an_empty_folder_is_no_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    check_output(out, overwrite=False, source=None)
    (out / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="exists already"):
        check_output(out, overwrite=False, source=None)
    check_output(out, overwrite=True, source=None)


def test_overwrite_touches_nothing_but_checkpoints(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    link = tmp_path / "link"
    link.symlink_to(home)
    file = tmp_path / "file"
    file.write_text("x")
    for out in (home, link, file):
        with pytest.raises(UsageError, match="not a checkpoint folder"):
            check_output(out, overwrite=True, source=None)


def test_the_source_and_the_folders_above_it_are_never_the_output(tmp_path: Path) -> None:
    source = tmp_path / "models" / "llama"
    source.mkdir(parents=True)
    for out in (source, source / ".." / "llama", tmp_path / "models", tmp_path):
        with pytest.raises(UsageError, match="replace its own source"):
            check_output(out, overwrite=True, source=source)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fp8Error) as refused:
        begin(tmp_path / "file" / "out")
    assert "cannot be written" in refused.value.message


def test_discard_removes_what_an_unfinished_run_left(tmp_path: Path) -> None:
    begin(tmp_path / "out")
    assert json.loads((partial_folder(tmp_path / "out") / "journal").read_text().split("\n")[0])["version"] == 1
    discard(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ghost", [".nfs0000000000a1b2c300000001", ".fuse_hidden0000000100000002"])
def test_a_folder_that_a_network_keeps_for_an_open_file_goes_when_that_is_closed(tmp_path: Path, ghost: str) -> None:
    """As NFS and FUSE do it: a file that is removed while it is open gets another name, and goes a while later."""
    out = tmp_path / "out"
    with stage(out, IDENTITY, restart=False) as staging:
        staging.write_file("config.json", b"{}")
        staging.publish(overwrite=False)
        partial_folder(out).mkdir()
        (partial_folder(out) / ghost).touch()
        gone = threading.Timer(0.2, (partial_folder(out) / ghost).unlink)
        gone.start()
    gone.join()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_in_which_another_run_has_begun_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with stage(out, IDENTITY, restart=False):
        discard(out)
    partial_folder(out).mkdir()
    with pytest.raises(OSError, match="stop"), stage(out, IDENTITY, restart=False):
        raise OSError("stop")
    assert (partial_folder(out) / "journal").is_file()


def test_an_output_comes_back_where_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that has no exchange, and says no more of a folder in the way than EPERM, as over SFTP."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")
    rename = Path.rename
    refused = [1, 3]
    calls = iter(range(1, 100))

    def by_hand(path: Path, target: Path) -> Path:
        if next(calls) in refused:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", by_hand)
    monkeypatch.setattr(sys, "platform", "freebsd")
    with pytest.raises(PermissionError), stage(out, IDENTITY, restart=False) as staging:
        staging.publish(overwrite=True)
    assert (out / "config.json").read_text() == "old"
    refused[:] = [5]
    with stage(out, IDENTITY, restart=False) as staging:
        staging.write_file("config.json", b"new")
        staging.publish(overwrite=True)
    assert (out / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
