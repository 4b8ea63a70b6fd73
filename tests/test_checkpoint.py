"""A model folder as a whole: what fits together is opened, what two readers could read differently is refused."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fp8cli.errors import BadInput
from fp8cli.formats.checkpoint import Checkpoint, LocalFolder, open_checkpoint
from tests.malformed import (
    BROKEN_FILES,
    BROKEN_FOLDERS,
    INDEX,
    SHARDS,
    STRICTER_FILES,
    Malformed,
    entry,
    pack,
    shard,
    sharded,
    single,
    write_folder,
)
from tests.models import llama_config, save_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(LocalFolder(folder))


def refusal(folder: Path) -> BadInput:
    with pytest.raises(BadInput) as caught:
        opened(folder)
    return caught.value


@pytest.mark.parametrize("case", BROKEN_FOLDERS, ids=[case.name for case in BROKEN_FOLDERS])
def test_a_folder_whose_files_do_not_fit_together_is_refused_in_one_sentence(case: Malformed, tmp_path: Path) -> None:
    case.build(tmp_path / "checkpoint")
    error = refusal(tmp_path / "checkpoint")
    assert re.search(case.message, error.message)
    assert error.message.isprintable()
    assert not error.message.endswith(".")
    assert error.hint


@pytest.mark.parametrize("case", [*BROKEN_FILES, *STRICTER_FILES], ids=lambda case: case.name)
def test_a_folder_with_a_broken_file_is_refused_like_the_file(case: Malformed, tmp_path: Path) -> None:
    case.build(tmp_path)
    assert re.search(case.message, refusal(tmp_path).message)


@pytest.mark.parametrize("max_shard_size", ["5GB", "200KB"])
def test_what_transformers_saves_is_opened_with_the_same_tensors(tmp_path: Path, max_shard_size: str) -> None:
    save_model(tmp_path, llama_config(), max_shard_size=max_shard_size)
    checkpoint = opened(tmp_path)
    state = {name: tensor for file in tmp_path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    assert state.keys() == AutoModelForCausalLM.from_pretrained(tmp_path).state_dict().keys()
    assert checkpoint.weight_bytes == sum(tensor.nbytes for tensor in state.values())
    assert [part.name for part in checkpoint.shards] == sorted(file.name for file in tmp_path.glob("*.safetensors"))
    assert checkpoint.has_index == (max_shard_size == "200KB")
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.side_files == ("generation_config.json",)
    assert checkpoint.left_behind == ()


def test_an_index_may_name_shards_in_any_way(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    index = {"weight_map": {"a": "weights.safetensors"}}
    write_folder(tmp_path, **{INDEX: json.dumps(index)})
    checkpoint = opened(tmp_path)
    assert [part.name for part in checkpoint.shards] == ["weights.safetensors"]
    assert checkpoint.has_index
    assert checkpoint.left_behind == ()


def test_an_index_may_name_the_single_file_and_lack_a_total_size(tmp_path: Path) -> None:
    write_folder(tmp_path, **{INDEX: json.dumps({"weight_map": {"a": "model.safetensors"}})})
    (tmp_path / "model.safetensors").write_bytes(shard("a"))
    assert [*opened(tmp_path).tensors] == ["a"]


def test_a_repeated_key_in_the_config_counts_as_python_counts_it(tmp_path: Path) -> None:
    single(shard("a"))(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "a", "model_type": "llama"}')
    assert opened(tmp_path).config == {"model_type": "llama"}


CARRIED = (
    "LICENSE",
    "README.md",
    "added_tokens.json",
    "assets/figure.png",
    "chat_template.jinja",
    "configuration_x.py",
    "generation_config.json",
    "merges.txt",
    "modeling_x.py",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
LEFT_BEHIND = (
    "consolidated.safetensors",
    "flax_model.msgpack",
    "line\nbreak.safetensors",
    "model-Q4_K_M.gguf",
    "model.onnx",
    "model.safetensors.index.fp16.json",
    "onnx/config.json",
    "onnx/model.onnx",
    "original/consolidated.00.pth",
    "original/params.json",
    "original/tokenizer.model",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "training_args.bin",
    "vision/model.safetensors",
)
NEITHER = (
    ".cache/huggingface/download/x.metadata",
    ".git/config",
    ".gitattributes",
    ".locks/x.lock",
    "__pycache__/modeling_x.cpython-311.pyc",
    "model.safetensors.incomplete",
    "tokenizer.json.lock",
)


@pytest.mark.parametrize("build", [single(shard("a", "b")), sharded()], ids=["single", "sharded"])
def test_side_files_are_carried_other_weights_left_behind_and_traces_of_tools_ignored(
    tmp_path: Path, build: Callable[[Path], None]
) -> None:
    build(tmp_path)
    for name in (*CARRIED, *LEFT_BEHIND, *NEITHER):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    checkpoint = opened(tmp_path)
    assert tuple(sorted(checkpoint.side_files)) == CARRIED
    assert tuple(sorted(checkpoint.left_behind)) == LEFT_BEHIND


def test_a_folder_whose_name_begins_like_a_shard_holds_none(tmp_path: Path) -> None:
    single(shard("a"))(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "x.safetensors").write_bytes(b"not one of ours")
    checkpoint = opened(tmp_path)
    assert [part.name for part in checkpoint.shards] == ["model.safetensors"]
    assert checkpoint.left_behind == ("models/x.safetensors",)


def build_cache(root: Path, build: Callable[[Path], None]) -> Path:
    """Lay a checkpoint out as the Hub's cache does; return the snapshot, made of links to blobs."""
    repository = root / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    build(root / "plain")
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((root / "plain").iterdir())):
        blob = repository / "blobs" / f"{number:064x}"
        shutil.move(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize("build", [single(shard("a", "b")), sharded()], ids=["single", "sharded"])
def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path, build: Callable[[Path], None]) -> None:
    snapshot = build_cache(tmp_path, build)
    assert [*opened(snapshot).tensors] == ["a", "b"]
    assert opened(snapshot).weight_bytes == 8
    # Also when the snapshot itself is reached by a link.
    (tmp_path / "shortcut").symlink_to(snapshot)
    assert [*opened(tmp_path / "shortcut").tensors] == ["a", "b"]


def test_a_link_of_a_hub_cache_may_not_lead_beside_the_blobs(tmp_path: Path) -> None:
    snapshot = build_cache(tmp_path, single(shard("a")))
    (tmp_path / "models--owner--name" / "secret").write_bytes(shard("a"))
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../secret")
    assert "`model.safetensors` links to" in refusal(snapshot).message


def test_a_blob_that_is_gone_is_named(tmp_path: Path) -> None:
    snapshot = build_cache(tmp_path, single(shard("a")))
    target = (snapshot / "model.safetensors").readlink()
    (snapshot / "model.safetensors").resolve().unlink()
    assert refusal(snapshot).message == f"`model.safetensors` is a link to `{target}`, which is not there as a file"


def test_links_within_the_folder_are_followed_and_linked_folders_are_not_entered(tmp_path: Path) -> None:
    single(shard("a"))(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "data")
    (tmp_path / "model.safetensors").symlink_to("data")
    (tmp_path / "self").symlink_to(".")
    (tmp_path / "root").symlink_to("/")
    checkpoint = opened(tmp_path)
    assert [*checkpoint.tensors] == ["a"]
    assert checkpoint.side_files == ("data",)


def test_a_side_file_that_links_outside_cannot_be_read(tmp_path: Path) -> None:
    single(shard("a"))(tmp_path / "checkpoint")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "checkpoint" / "LICENSE").symlink_to("../secret")
    with pytest.raises(BadInput, match=r"`LICENSE` links to `.*secret`, outside the checkpoint"):
        LocalFolder(tmp_path / "checkpoint").read("LICENSE")


def test_a_path_that_does_not_exist_or_is_a_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    missing = refusal(tmp_path / "missing")
    assert missing.message == f"`{tmp_path}/missing` does not exist"
    assert missing.hint == "check the path; a Hub model is named as owner/name"
    single(shard("a"))(tmp_path)
    file = refusal(tmp_path / "model.safetensors")
    assert file.message == f"`{tmp_path}/model.safetensors` is a file, not the folder of a checkpoint"
    assert file.hint == f"point to the folder that holds it: {tmp_path}"


@contextmanager
def no_privileges() -> Iterator[None]:
    """Run as nobody where the tests run as root, to whom every file is readable."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that others may enter; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        single(shard("a"))(Path(name) / "it's")
        yield Path(name) / "it's"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_without_the_right_to_read_it_is_named_with_the_command(reachable: Path, name: str) -> None:
    (reachable / name).chmod(0)
    with no_privileges():
        error = refusal(reachable)
    assert f"`{name}`" in error.message
    assert error.message.endswith("cannot be read: permission denied")
    assert error.hint is not None
    assert error.hint.startswith("chmod u+r '/")
    assert error.hint.endswith(f"""it'"'"'s/{name}'""")


def test_a_folder_without_the_right_to_read_it_is_named_with_the_command(reachable: Path) -> None:
    reachable.chmod(0)
    with no_privileges():
        error = refusal(reachable)
    reachable.chmod(0o755)
    assert error.message == f"`{reachable}` cannot be read: permission denied"
    assert error.hint is not None
    assert error.hint.startswith("chmod -R u+rX '")


def test_names_are_shown_safely(tmp_path: Path) -> None:
    evil = "\x1b[31mred\n\u202e"
    content = pack({evil: entry()}, bytes(4))
    sharded(first=content, second=content)(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {evil: SHARDS[0], "b": SHARDS[1]}}))
    assert refusal(tmp_path).message == f"`\\x1b[31mred\\n\\u202e` lies in two shards, `{SHARDS[0]}` and `{SHARDS[1]}`"


def test_a_file_name_that_is_not_utf8_is_carried_or_named_safely(tmp_path: Path) -> None:
    name = os.fsdecode(b"tokenizer-\xff.json")
    single(shard("a"))(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    assert opened(tmp_path).side_files == (name,)
    assert LocalFolder(tmp_path).read(name) == b"x"
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(BadInput) as caught:
        LocalFolder(tmp_path).read(name)
    assert caught.value.message == "`tokenizer-\\udcff.json` is a link to `gone`, which is not there as a file"


def test_a_config_of_absurd_size_is_refused_without_reading_it(tmp_path: Path) -> None:
    single(shard("a"))(tmp_path)
    os.truncate(tmp_path / "config.json", 200_000_001)
    assert refusal(tmp_path).message == "`config.json` is 200,000,001 bytes long, which no such file is"


def test_a_folder_above_a_checkpoint_is_refused_with_the_name_of_what_is_below(tmp_path: Path) -> None:
    single(shard("a"))(tmp_path / "below/epoch-2")
    (tmp_path / "below/weights").mkdir()
    (tmp_path / "below/weights/model.safetensors").write_bytes(shard("a"))
    where = "point to the folder that holds config.json and the .safetensors files, such as `below/epoch-2` below it"
    assert refusal(tmp_path).hint == where
    single(shard("b"))(tmp_path / "other")
    assert refusal(tmp_path).hint == f"{where}, one of 2"


def test_a_pipe_is_no_file_and_a_link_to_one_is_not_opened(tmp_path: Path) -> None:
    write_folder(tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    assert "holds no weights" in refusal(tmp_path).message
    single(shard("a"))(tmp_path / "linked")
    os.mkfifo(tmp_path / "linked" / "pipe")
    (tmp_path / "linked" / "config.json").unlink()
    (tmp_path / "linked" / "config.json").symlink_to("pipe")
    assert refusal(tmp_path / "linked").message == "`config.json` is a link to `pipe`, which is not there as a file"
