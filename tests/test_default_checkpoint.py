"""The checkpoint that is meant when none is named: the one here, or the only FP8 one below, or a question."""

from pathlib import Path

import pytest

from fp8cli.core.inspection.default_checkpoint import find_checkpoint
from fp8cli.errors import UsageError
from tests.sparse import FLOAT8, FP8_DYNAMIC_CONFIG, Shapes, write_checkpoint

BF16_TENSORS = [("a.weight", "BF16", (2, 2))]
FP8_TENSORS = [("a.weight", "F8_E4M3", (2, 2))]


def test_without_a_name_the_current_folder_is_inspected(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "here", BF16_TENSORS, {})
    write_checkpoint(tmp_path / "here" / "below", FP8_TENSORS, FP8_DYNAMIC_CONFIG)
    assert find_checkpoint(tmp_path / "here") == tmp_path / "here"


@pytest.mark.parametrize(
    ("tensors", "config"),
    [(FP8_TENSORS, {}), (BF16_TENSORS, FP8_DYNAMIC_CONFIG)],
    ids=["by its tensors", "by its config"],
)
def test_without_a_name_the_one_fp8_checkpoint_below_is_inspected(
    tmp_path: Path, tensors: Shapes, config: dict[str, object]
) -> None:
    write_checkpoint(tmp_path / "base", BF16_TENSORS, {})
    # Scales of other formats are 8-bit floats too, of a kind that holds no weights.
    write_checkpoint(tmp_path / "mxfp4", [("a.blocks", "U8", (2, 2)), ("a.scales", "F8_E8M0", (2,))], {})
    write_checkpoint(tmp_path / ".unfinished", FP8_TENSORS, FP8_DYNAMIC_CONFIG)
    write_checkpoint(tmp_path / "no-config", FP8_TENSORS, None)
    quantized = write_checkpoint(tmp_path / "quantized", tensors, config)
    assert find_checkpoint(tmp_path) == quantized


INT4_WITH_FP8_CACHE = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
    "kv_cache_scheme": {**FLOAT8, "strategy": "tensor"},
    "ignore": ["model.fp8_router"],
}


@pytest.mark.parametrize(
    ("block", "speaks_of_fp8"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, True),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, True),
        ({"quant_method": "fbgemm_fp8"}, True),
        ({"quant_method": "gptq", "bits": 4}, False),
        (INT4_WITH_FP8_CACHE, False),
        (None, False),
        ("fp8", False),
    ],
)
def test_a_config_speaks_of_fp8_only_for_weights(tmp_path: Path, block: object, *, speaks_of_fp8: bool) -> None:
    folder = write_checkpoint(tmp_path / "model", BF16_TENSORS, {"quantization_config": block})
    if speaks_of_fp8:
        assert find_checkpoint(tmp_path) == folder
    else:
        with pytest.raises(UsageError, match="is no checkpoint, and no folder in it is an FP8 checkpoint"):
            find_checkpoint(tmp_path)


def test_two_fp8_checkpoints_are_both_named(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "a b", FP8_TENSORS, {})
    second = write_checkpoint(tmp_path / "c", FP8_TENSORS, {})
    with pytest.raises(UsageError) as caught:
        find_checkpoint(tmp_path)
    assert caught.value.message == f"2 FP8 checkpoints lie here: `{first}`, `{second}`"
    assert caught.value.hint == f"name one of them: fp8 inspect '{first}'"


def test_no_checkpoint_at_all_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(UsageError) as caught:
        find_checkpoint(tmp_path)
    assert caught.value.message == f"`{tmp_path}` is no checkpoint, and no folder in it is an FP8 checkpoint"
    assert caught.value.hint == "name the checkpoint: fp8 inspect PATH"


def test_a_checkpoint_that_is_not_fp8_is_offered_but_not_taken(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", BF16_TENSORS, {})
    broken = write_checkpoint(tmp_path / "broken", BF16_TENSORS, {})
    (broken / "model.safetensors").write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError) as caught:
        find_checkpoint(tmp_path)
    assert caught.value.hint == f"`{base}` is a checkpoint, though not in FP8: fp8 inspect {base}"
