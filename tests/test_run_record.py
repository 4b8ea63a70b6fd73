"""Records of runs: written whole, read strictly, found below a runs folder."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fp8cli.core.evaluating.runs import check_label, find_records, labels
from fp8cli.errors import BadInput, UsageError
from fp8cli.formats.run_record import RECORD_VERSION, read_record, write_record
from tests.hand_made_records import a_record

Fields = dict[str, Any]


def test_a_record_reads_as_it_was_written(tmp_path: Path) -> None:
    record = a_record(notes=("a note, and \x1b[31m",), groups={"group": ("fp8_stories",)})
    path = write_record(record, tmp_path)
    assert path.name == "run_2026-11-24T10-00-00.000000.json"
    assert read_record(path) == record
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_fields_of_a_later_time_are_passed_over(tmp_path: Path) -> None:
    path = write_record(a_record(), tmp_path)
    fields = json.loads(path.read_text("utf-8"))
    fields["mood"] = fields["speed"]["mood"] = "good"
    path.write_text(json.dumps(fields), "utf-8")
    assert read_record(path) == a_record()


def _set(fields: Fields, *place: str, value: object) -> None:
    for key in place[:-1]:
        fields = fields[key]
    fields[place[-1]] = value


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda fields: fields.pop("label"), "`label` is missing"),
        (lambda fields: fields["settings"].pop("bos"), "`settings.bos` is missing"),
        (lambda fields: _set(fields, "settings", "backend", value="abacus"), "`settings.backend` is 'abacus'"),
        (lambda fields: _set(fields, "settings", "batch_size", value=True), "`settings.batch_size` is True"),
        (lambda fields: _set(fields, "speed", "seconds", value="12"), "`speed.seconds` is '12'"),
        (lambda fields: _set(fields, "tasks", value=[1]), "`tasks` is [1]"),
        (lambda fields: _set(fields, "tasks", "fp8_stories", "items", value=None), "`tasks.fp8_stories.items` is None"),
        (lambda fields: _set(fields, "gpus", value=[1]), "`gpus[0]` is 1"),
    ],
)
def test_a_field_that_is_not_what_it_must_be_is_named(
    tmp_path: Path, damage: Callable[[Fields], object], reason: str
) -> None:
    path = write_record(a_record(), tmp_path)
    fields = json.loads(path.read_text("utf-8"))
    damage(fields)
    path.write_text(json.dumps(fields), "utf-8")
    with pytest.raises(BadInput) as refusal:
        read_record(path)
    assert refusal.value.message == f"`{path}` is no record of a run: {reason}"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"id": NaN}', "\x00", "[" * 100_000, '{"version": 1}', '"' + "x" * 10_000 + '"']
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run_x.json"
    path.write_text(text, "utf-8")
    with pytest.raises(BadInput, match="is no record of a run"):
        read_record(path)


def test_a_record_of_a_later_version_says_so(tmp_path: Path) -> None:
    path = write_record(a_record(version=RECORD_VERSION + 1), tmp_path)
    with pytest.raises(BadInput, match=f"version {RECORD_VERSION + 1}, and this fp8 reads version {RECORD_VERSION}"):
        read_record(path)


def test_records_are_found_newest_first_and_broken_ones_are_told_and_left_out(tmp_path: Path) -> None:
    for day, label in ((1, "base"), (3, "fp8"), (2, "base")):
        (tmp_path / label).mkdir(exist_ok=True)
        date = f"2026-11-0{day}T10:00:00+00:00"
        write_record(a_record(id=f"day-{day}", created=date, label=label), tmp_path / label)
    (tmp_path / "base" / "run_broken.json").write_text("{", "utf-8")
    (tmp_path / ".work").mkdir()
    write_record(a_record(id="unfinished"), tmp_path / ".work")
    complaints: list[str] = []
    found = find_records(tmp_path, complain=complaints.append)
    assert [(folder.name, record.id) for folder, record in found] == [
        ("fp8", "day-3"),
        ("base", "day-2"),
        ("base", "day-1"),
    ]
    assert len(complaints) == 1
    assert "run_broken.json` is no record of a run" in complaints[0]
    assert [record.id for _, record in find_records(tmp_path, "base")] == ["day-2", "day-1"]
    assert labels(tmp_path) == ("base", "fp8")
    assert find_records(tmp_path / "nowhere") == ()


@pytest.mark.parametrize(
    "label", ["", ".", "..", ".hidden", "a/b", "../x", "a\\b", "a\x1b[31m", "a\nb", "-x", "x" * 101, "a@b", "ä" * 51]
)
def test_a_label_that_is_no_plain_file_name_is_refused(label: str) -> None:
    with pytest.raises(UsageError):
        check_label(label)


@pytest.mark.parametrize("label", ["base", "fp8-block", "Qwen3 8B", "größe", "a.b"])
def test_a_plain_file_name_is_a_label(label: str) -> None:
    check_label(label)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    place = tmp_path / "run_x.json"
    place.mkdir()
    (place / "in the way").touch()
    with pytest.raises(OSError, match="run_x"):
        write_record(replace(a_record(), id="x"), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["run_x.json"]
