"""What was hashed is in the journal: a run that goes on reads no shard twice, and trusts none that may be another."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

import pytest

from fp8cli.core.hashing import Hash, Hashes
from fp8cli.core.making.attesting import attest
from fp8cli.errors import CannotRun
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from fp8cli.formats.staging import stage
from tests.models import llama_config, save_model

IDENTITY: Mapping[str, object] = {"the source": "as it was"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("attesting") / "source", llama_config())


def attest_once(source: Path, out: Path, *, lasting: bool = True, restart: bool = False) -> dict[str, str]:
    """Do what a run does that finds its output whole, and is killed afterwards; return what it takes for its hashes."""
    here = LocalFolder(source)
    checkpoint = open_checkpoint(here)
    with stage(out, IDENTITY, restart=restart) as staging:
        for shard in checkpoint.shards:
            if not (staging.checkpoint / shard.name).exists():
                (staging.checkpoint / shard.name).write_bytes(b"the output")
        with attest(checkpoint, here, staging, threads=2, hashed=True, lasting=lasting) as attestation:
            attestation.complete(lambda _: None)
            hashes = attestation.hashes
            assert hashes is not None
            paths = [path for folder in (source, staging.checkpoint) for path in folder.glob("*.safetensors")]
            return {f"{path.parent.name}/{path.name}": hashes.of(path)[1] for path in paths}


def changed_unseen(path: Path) -> None:
    """Change a byte that a run would see only if it read the file."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_run_that_goes_on_reads_no_shard_that_was_hashed(source: Path, tmp_path: Path) -> None:
    first = attest_once(source, tmp_path / "out")
    assert set(first.values()) == {
        hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest(),
        hashlib.sha256(b"the output").hexdigest(),
    }
    changed_unseen(tmp_path / ".out.fp8-partial" / "checkpoint" / "model.safetensors")
    assert attest_once(source, tmp_path / "out") == first


def test_an_output_that_may_be_another_is_read_again(source: Path, tmp_path: Path) -> None:
    attest_once(source, tmp_path / "out")
    changed_unseen(tmp_path / ".out.fp8-partial" / "checkpoint" / "model.safetensors")
    found = attest_once(source, tmp_path / "out", lasting=False)
    assert found["checkpoint/model.safetensors"] == hashlib.sha256(b"the outpu" + bytes([ord("t") ^ 1])).hexdigest()


def test_a_run_that_begins_anew_knows_no_hashes(source: Path, tmp_path: Path) -> None:
    attest_once(source, tmp_path / "out")
    with stage(tmp_path / "out", IDENTITY, restart=True) as staging:
        assert staging.hashes == {}


def test_a_hash_in_the_journal_is_no_piece(source: Path, tmp_path: Path) -> None:
    attest_once(source, tmp_path / "out")
    with stage(tmp_path / "out", IDENTITY, restart=False) as staging:
        assert staging.done == {}
        assert set(staging.hashes) == {"source/model.safetensors", "output/model.safetensors"}
        staging.record({(1, 0, 8): (0, -1)})
    with (tmp_path / ".out.fp8-partial" / "journal").open("a") as journal:
        journal.write('{"sha256":["source/torn.safetensors","ab')
    with stage(tmp_path / "out", IDENTITY, restart=False) as staging:
        assert staging.done == {(1, 0, 8): (0, -1)}
        assert set(staging.hashes) == {"source/model.safetensors", "output/model.safetensors"}


def test_what_nobody_else_could_hash_is_hashed_here(tmp_path: Path) -> None:
    for name in ("by others", "by nobody", "never"):
        (tmp_path / name).write_text(name)
    promises: dict[str, Future[Hash | None]] = {"by others": Future(), "by nobody": Future(), "never": Future()}
    told: list[tuple[str, str]] = []
    with Hashes(1, lambda path, digest: told.append((path.name, digest))) as hashes:
        for name in ("by others", "by nobody"):
            hashes.add(tmp_path / name, lambda name=name: promises[name])  # type: ignore[misc]
        promises["by others"].set_result((9, "its word"))
        promises["by nobody"].set_result(None)
        hashes.wait(lambda _: None, lambda _path, _size: None)
        here = hashlib.sha256(b"by nobody").hexdigest()
        assert hashes.of(tmp_path / "by others") == (9, "its word")
        assert hashes.of(tmp_path / "by nobody") == (9, here)
        assert told == [("by others", "its word"), ("by nobody", here)]
        hashes.add(tmp_path / "never", lambda: promises["never"])
        promises["never"].set_exception(CannotRun("the cluster was left before this was done"))
        with pytest.raises(CannotRun, match="was left"):
            hashes.wait(lambda _: None, lambda _path, _size: None)
