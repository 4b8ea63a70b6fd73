"""Fingerprints: what changes a result changes them, and what does not leaves them alone."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fp8cli.core.evaluating.bos import decide_bos
from fp8cli.core.evaluating.fingerprint import (
    BLOCK_BYTES,
    BLOCKS,
    WHOLE_BYTES,
    fingerprint,
    stamp,
    templates_sha256,
    tokenizer_sha256,
)
from fp8cli.formats.checkpoint import LocalFolder, open_checkpoint
from tests.planting import STORIES, change, quantize_stories, set_scale

SCALE = "model.layers.1.mlp.down_proj.weight_scale"


def of(folder: Path, *, full: bool = False) -> str:
    place = LocalFolder(folder)
    return fingerprint(open_checkpoint(place), place, full=full)


def stamp_of(folder: Path) -> str:
    place = LocalFolder(folder)
    return stamp(open_checkpoint(place), place)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_stories(tmp_path_factory.mktemp("fingerprints") / "fp8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(STORIES, tmp_path / "copy")


def test_a_copy_has_the_same_fingerprint_and_another_stamp(copy: Path) -> None:
    os.utime(copy / "model.safetensors", ns=(1, 1))
    assert of(copy) == of(STORIES)
    assert of(copy, full=True) == of(STORIES, full=True)
    assert of(copy) != of(copy, full=True)
    assert stamp_of(copy) != stamp_of(STORIES)


def test_one_scale_times_four_is_seen(fp8: Path, tmp_path: Path) -> None:
    damaged = change(
        fp8, tmp_path / "damaged", lambda tensors: set_scale(tensors, SCALE, 3, 4 * float(tensors[SCALE][3]))
    )
    assert of(damaged) != of(fp8)


def test_scales_that_changed_places_are_seen(fp8: Path, tmp_path: Path) -> None:
    other = SCALE.replace("layers.1", "layers.2")

    def swap(tensors: dict[str, torch.Tensor]) -> None:
        tensors[SCALE], tensors[other] = tensors[other].clone(), tensors[SCALE].clone()

    assert of(change(fp8, tmp_path / "swapped", swap)) != of(fp8)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    size = 4 * WHOLE_BYTES
    tensors = {"a": torch.zeros(size, dtype=torch.uint8), "b": torch.zeros(WHOLE_BYTES, dtype=torch.uint8)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    return folder


def flip(folder: Path, tensor: str, place: int) -> None:
    header = LocalFolder(folder).header("model.safetensors")
    begin = next(info.begin for info in header.tensors if info.name == tensor)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(begin + place)
        file.write(b"\x01")


@pytest.mark.parametrize("place", [0, BLOCK_BYTES - 1, 4 * WHOLE_BYTES - 1])
def test_the_ends_of_a_large_tensor_are_sampled(large: Path, place: int) -> None:
    before = of(large)
    flip(large, "a", place)
    assert of(large) != before


@pytest.mark.parametrize("place", [0, 12_345, WHOLE_BYTES - 1])
def test_every_byte_of_a_small_tensor_counts(large: Path, place: int) -> None:
    before = of(large)
    flip(large, "b", place)
    assert of(large) != before


def test_a_byte_between_the_blocks_shows_in_the_stamp_and_in_the_full_hash_alone(large: Path) -> None:
    sampled, full, when = of(large), of(large, full=True), stamp_of(large)
    flip(large, "a", 4 * WHOLE_BYTES // (BLOCKS - 1) // 2)
    assert of(large) == sampled
    assert of(large, full=True) != full
    assert stamp_of(large) != when


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_configs_count_and_the_tokenizer_does_not(copy: Path, name: str) -> None:
    before = of(copy)
    (copy / "tokenizer_config.json").write_text("{}", "utf-8")
    assert of(copy) == before
    config = json.loads((copy / name).read_text("utf-8"))
    (copy / name).write_text(json.dumps(config | {"eos_token_id": 7}), "utf-8")
    assert of(copy) != before


def test_code_beside_the_weights_counts(copy: Path) -> None:
    before = of(copy)
    (copy / "modeling_stories.py").write_text("x = 1\n", "utf-8")
    assert of(copy) != before


def test_a_tokenizer_is_known_by_its_tokens_and_not_by_its_template(copy: Path) -> None:
    place = LocalFolder(copy)
    tokens, templates = tokenizer_sha256(place), templates_sha256(place)
    config = json.loads((copy / "tokenizer_config.json").read_text("utf-8"))
    rewritten = {"chat_template": "{{ messages }}", "transformers_version": "9"} | dict(reversed(config.items()))
    (copy / "tokenizer_config.json").write_text(json.dumps(rewritten), "utf-8")
    assert tokenizer_sha256(place) == tokens
    assert templates_sha256(place) != templates
    (copy / "tokenizer_config.json").write_text(json.dumps(rewritten | {"eos_token": "<pad>"}), "utf-8")
    assert tokenizer_sha256(place) != tokens


def test_without_a_tokenizer_there_is_no_hash(large: Path) -> None:
    assert tokenizer_sha256(LocalFolder(large)) is None


def template(*tokens: str) -> dict[str, object]:
    parts = [{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens]
    return {"type": "TemplateProcessing", "single": [*parts, {"Sequence": {"id": "A", "type_id": 0}}]}


@pytest.mark.parametrize(
    ("config", "fast", "wanted"),
    [
        ({"bos_token": "<s>"}, {"post_processor": template("<s>")}, True),
        ({"bos_token": "<s>"}, {"post_processor": {"type": "Sequence", "processors": [template("<s>")]}}, True),
        ({"bos_token": "<s>"}, {"post_processor": {"type": "ByteLevel"}}, False),
        ({"bos_token": "<s>"}, {"post_processor": None}, False),
        ({"bos_token": "<s>"}, {"post_processor": template()}, False),
        ({"bos_token": "<s>", "add_bos_token": False}, {"post_processor": template("<s>")}, False),
        ({"bos_token": {"content": "<s>"}, "add_bos_token": True}, {"post_processor": None}, True),
        ({"bos_token": {"content": "<s>"}}, None, True),
        ({"bos_token": None}, None, False),
        ({}, None, False),
    ],
)
def test_bos_is_what_the_tokenizer_does_and_where_unknown_what_it_has(
    tmp_path: Path, config: dict[str, object], fast: dict[str, object] | None, wanted: bool
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    if fast is not None:
        (tmp_path / "tokenizer.json").write_text(json.dumps(fast), "utf-8")
    assert decide_bos(LocalFolder(tmp_path)).wanted is wanted


def test_bos_of_the_bundled_tokenizer_is_what_the_tokenizers_library_puts_in_front() -> None:
    from tokenizers import Tokenizer

    encoded = Tokenizer.from_file(str(STORIES / "tokenizer.json")).encode("a")
    assert decide_bos(LocalFolder(STORIES)).wanted is (encoded.tokens[0] == "<s>")
