"""Hashing beside other work: the same digests as hashlib's, and no thread that outlives its use."""

import hashlib
import threading
from pathlib import Path

import pytest

from fp8cli.core.hashing import Hashes, pieces_of, sha256_of
from fp8cli.errors import CannotRun

MIB = 2**20


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 3])
def test_a_file_has_the_hash_that_hashlib_gives_whatever_its_length(tmp_path: Path, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "file").write_bytes(data[:size])
    lengths: list[int] = []
    assert (
        sha256_of(pieces_of(tmp_path / "file"), lengths.append, threading.Event())
        == hashlib.sha256(data[:size]).hexdigest()
    )
    assert sum(lengths) == size


def test_what_is_left_is_told_and_a_file_is_hashed_once(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(b"x" * number * 100_000)
    left: list[int] = []
    done: list[int] = []
    with Hashes(3) as hashes:
        for path in paths * 2:
            hashes.add(path)
        hashes.wait(left.append, lambda _, size: done.append(size))
        for number, path in enumerate(paths):
            assert hashes.of(path) == (number * 100_000, hashlib.sha256(path.read_bytes()).hexdigest())
    assert sum(done) == sum(left)


def test_left_early_it_stops_in_the_middle_of_a_file(tmp_path: Path) -> None:
    for name in "abcd":
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)
    with Hashes(2) as hashes:
        for name in "abcd":
            hashes.add(tmp_path / name)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fp8-hash")]


def test_a_file_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    with Hashes(1) as hashes:
        hashes.add(tmp_path / "gone")
        with pytest.raises(CannotRun, match="`gone` cannot be read: No such file or directory"):
            hashes.wait(lambda _: None, lambda _path, _size: None)
