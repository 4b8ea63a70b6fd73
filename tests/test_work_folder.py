"""The folder a run grows in: held by one process, gone on with after a kill, and never mixed up with another's."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from fp8cli.core.evaluating.work_folder import discard, hold, runs_errors
from fp8cli.errors import CannotRun

KEY = "0123456789abcdef" * 4

HOLDER = """
import sys, time
from pathlib import Path
from fp8cli.core.evaluating.work_folder import hold
with hold(Path(sys.argv[1]), sys.argv[2], anew=False) as work:
    (work.folder / "answers-0.jsonl").write_text("answers\\n")
    print(work.started.id, flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_dead_one_is_gone_on_from(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path), KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        begun = holder.stdout.readline().strip()
        refused = pytest.raises(CannotRun, match="another process is at this very evaluation")
        with refused, hold(tmp_path, KEY, anew=False):
            pass
        holder.kill()
    with hold(tmp_path, KEY, anew=False) as work:
        assert work.resumed
        assert work.started.id == begun
        assert (work.folder / "answers-0.jsonl").read_text("utf-8") == "answers\n"


def test_another_key_is_another_folder(tmp_path: Path) -> None:
    with hold(tmp_path, KEY, anew=False) as work, hold(tmp_path, KEY[::-1], anew=False) as other:
        assert work.folder != other.folder


def test_anew_throws_answers_away(tmp_path: Path) -> None:
    with hold(tmp_path, KEY, anew=False) as work:
        (work.folder / "answers-0.jsonl").write_text("answers\n", "utf-8")
        (work.folder / "tasks").mkdir()
    with hold(tmp_path, KEY, anew=True) as work:
        assert not work.resumed
        assert sorted(path.name for path in work.folder.iterdir()) == ["lock", "started.json"]


def test_what_only_a_whole_run_has_is_made_anew(tmp_path: Path) -> None:
    with hold(tmp_path, KEY, anew=False) as work:
        for name in ("answers-0.jsonl", "log-0.txt", "result.json", "samples_piqa.jsonl", "events-0.jsonl"):
            (work.folder / name).write_text("x", "utf-8")
        (work.folder / "fidelity").mkdir()
    with hold(tmp_path, KEY, anew=False) as work:
        found = sorted(path.name for path in work.folder.iterdir())
        assert found == ["answers-0.jsonl", "lock", "log-0.txt", "started.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": 1}'])
def test_a_folder_whose_beginning_cannot_be_read_is_begun_anew(tmp_path: Path, text: str) -> None:
    with hold(tmp_path, KEY, anew=False) as work:
        (work.folder / "answers-0.jsonl").write_text("answers of nobody knows what\n", "utf-8")
        (work.folder / "started.json").write_text(text, "utf-8")
    with hold(tmp_path, KEY, anew=False) as work:
        assert not work.resumed
        assert not (work.folder / "answers-0.jsonl").exists()


def test_what_was_lowered_is_remembered(tmp_path: Path) -> None:
    from dataclasses import replace

    with hold(tmp_path, KEY, anew=False) as work:
        work.remember(replace(work.started, batch_size=8, gpu_memory=0.68))
    with hold(tmp_path, KEY, anew=False) as work:
        assert (work.started.batch_size, work.started.gpu_memory) == (8, 0.68)
        discard(work)
    assert list((tmp_path / ".work").iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = pytest.raises(CannotRun, match=r"file/runs/\.work.* cannot be written: Not a directory")
    with refused as refusal, hold(tmp_path / "file" / "runs", KEY, anew=False):
        pass
    assert refusal.value.hint == "choose another runs folder with --runs"


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk quota is used up"), (errno.EROFS, "Read-only")],
)
def test_a_disk_that_takes_no_more_is_said(tmp_path: Path, number: int, words: str) -> None:
    import os

    with pytest.raises(CannotRun, match=words), runs_errors(tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path))
