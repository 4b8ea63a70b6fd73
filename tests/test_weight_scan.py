"""`--verify`: what only the weights themselves can show, planted one by one in a real FP8 checkpoint."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fp8cli.core import kernel
from fp8cli.core.findings import Finding
from fp8cli.core.inspection.reading import BytesRead, ReadingBegins
from fp8cli.core.inspection.stored_hashes import check_hashes
from fp8cli.core.inspection.weight_scan import WeightScan, scan_weights
from tests.planting import LAYER, STORIES, Tensors, change, look, quantize_stories, set_code

WEIGHT = f"{LAYER}.weight"
FINITE = "820,096 values read: no NaN, no infinity"


@pytest.fixture(scope="module", params=["FP8_DYNAMIC", "FP8_BLOCK"])
def healthy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_stories(tmp_path_factory.mktemp("scan") / "model", request.param)


def scan(folder: Path, heard: list[ReadingBegins | BytesRead] | None = None) -> WeightScan:
    loaded = kernel.load()
    assert loaded is not None
    surveyed, dialect = look(folder)
    events = [] if heard is None else heard
    return scan_weights(surveyed, dialect, loaded, workers=2, notify=events.append)


def said(findings: tuple[Finding, ...], check: str) -> list[tuple[str, str | None, str]]:
    return [(each.status, each.subject, each.found) for each in findings if each.check == check]


def test_a_healthy_checkpoint_passes_and_every_byte_is_counted(healthy: Path) -> None:
    heard: list[ReadingBegins | BytesRead] = []
    result = scan(healthy, heard)
    assert {finding.status for finding in result.findings} == {"passed"}
    assert said(result.findings, "weight.finite") == [("passed", None, FINITE)]
    assert isinstance(heard[0], ReadingBegins)
    assert sum(event.bytes for event in heard[1:]) == heard[0].bytes == result.bytes_read
    assert sum(census.elements for census in result.weights) == 820_096


def test_the_counts_are_those_of_torch(healthy: Path, tmp_path: Path) -> None:
    def plant(tensors: Tensors) -> None:
        random = torch.randint(0, 256, tensors[WEIGHT].shape, dtype=torch.uint8)
        random[3] = 0
        tensors[WEIGHT] = random.view(torch.float8_e4m3fn)
        wanted.append(random.view(torch.float8_e4m3fn).float())

    wanted: list[torch.Tensor] = []
    result = scan(change(healthy, tmp_path / "copy", plant))
    (census,) = [each for each in result.weights if each.name == WEIGHT]
    assert census.nan == int(wanted[0].isnan().sum())
    assert census.saturated == int((wanted[0].abs() == 448).sum())
    assert census.zero_rows == 1
    assert census.first_bad == tuple(wanted[0].isnan().nonzero()[0].tolist())


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_one_nan_code_fails_with_its_place(healthy: Path, tmp_path: Path, code: int) -> None:
    folder = change(healthy, tmp_path / "copy", lambda tensors: set_code(tensors, WEIGHT, 101, 17, code))
    findings = scan(folder).findings
    wanted = "1 NaN among 32,768 values, the first at row 101, column 17"
    assert said(findings, "weight.finite") == [("failed", WEIGHT, wanted)]


@pytest.mark.parametrize(
    ("value", "wanted"), [(float("nan"), "1 NaN"), (float("inf"), "1 infinities"), (float("-inf"), "1 infinities")]
)
def test_nan_and_infinity_in_an_unquantized_tensor_fail_too(
    healthy: Path, tmp_path: Path, value: float, wanted: str
) -> None:
    def plant(tensors: Tensors) -> None:
        tensors["model.norm.weight"][5] = value

    (found,) = said(scan(change(healthy, tmp_path / "copy", plant)).findings, "weight.finite")
    assert found[:2] == ("failed", "model.norm.weight")
    assert found[2].startswith(f"{wanted} among 128 values, the first at row 0, column 5")


def test_many_saturated_codes_are_a_warning(healthy: Path, tmp_path: Path) -> None:
    def plant(tensors: Tensors) -> None:
        codes = tensors[WEIGHT].view(torch.uint8).clone()
        codes[:, : codes.shape[1] // 10] = 0x7E
        tensors[WEIGHT] = codes.view(torch.float8_e4m3fn)

    (found,) = said(scan(change(healthy, tmp_path / "copy", plant)).findings, "weight.saturated")
    assert found[:2] == ("warning", WEIGHT)


def test_rows_of_zeros_are_a_warning(healthy: Path, tmp_path: Path) -> None:
    def plant(tensors: Tensors) -> None:
        codes = tensors[WEIGHT].view(torch.uint8).clone()
        codes[4:6] = 0
        codes[5] = 0x80
        tensors[WEIGHT] = codes.view(torch.float8_e4m3fn)

    assert said(scan(change(healthy, tmp_path / "copy", plant)).findings, "weight.zero_rows") == [
        ("warning", WEIGHT, "2 of 128 rows hold nothing but zeros")
    ]


def test_what_a_cut_file_lost_is_not_checked_and_the_rest_is(healthy: Path, tmp_path: Path) -> None:
    folder = change(healthy, tmp_path / "copy", lambda _: None)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100_000])
    result = scan(folder)
    statuses = {finding.status for finding in result.findings if finding.check == "weight.finite"}
    assert statuses == {"passed", "not checked"}
    assert 0 < len(result.weights) < 30


def hashes(folder: Path, names: list[str]) -> list[tuple[str, str | None, str]]:
    return said(check_hashes(folder, names, workers=1, notify=lambda _: None), "hash.sha256")


def write_list(folder: Path, digest: str) -> None:
    (folder / "SHA256SUMS").write_text(f"{digest}  model.safetensors\n", "utf-8")


def write_note(folder: Path, digest: str) -> None:
    note = folder / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{'0' * 40}\n{digest}\n1700000000.0\n", "utf-8")


def write_cache(folder: Path, digest: str) -> None:
    blob = folder.parent / "blobs" / digest
    blob.parent.mkdir()
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)


@pytest.mark.parametrize("store", [write_list, write_note, write_cache])
def test_a_stored_hash_is_compared_wherever_it_was_stored(tmp_path: Path, store: Callable[[Path, str], None]) -> None:
    content = (STORIES / "model.safetensors").read_bytes()
    for name, digest in (("right", hashlib.sha256(content).hexdigest()), ("wrong", "ab" * 32)):
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(content)
        store(folder, digest)
        ((status, subject, found),) = hashes(folder, ["model.safetensors"])
        if name == "right":
            wanted = "1 of 1 files have the SHA-256 that was stored with them"
            assert (status, subject, found) == ("passed", None, wanted)
        else:
            assert (status, subject) == ("failed", "model.safetensors")
            assert found.startswith(f"its SHA-256 is {hashlib.sha256(content).hexdigest()[:12]}…, but ")


def test_without_a_stored_hash_nothing_is_claimed(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    ((status, _, found),) = hashes(tmp_path, ["model.safetensors"])
    assert status == "not checked"
    assert found.startswith("no SHA-256 was stored with these files")
