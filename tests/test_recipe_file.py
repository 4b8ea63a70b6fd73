"""Recipes of llm-compressor: what is none is refused by its line, and what is one is run as it is."""

import os
from pathlib import Path

import pytest

# Read when compressed-tensors is imported: without it a GPU machine would run another kernel, with other rounding.
os.environ["CT_ENFORCE_EAGER"] = "1"

from fp8cli.commands.quantize import Modifiers, QuantizeRequest, run
from fp8cli.errors import BadInput, UsageError
from fp8cli.formats.recipe_file import read_recipe
from tests.calibrated import MODEL
from tests.starting import fp8

PLAIN = """\
default_stage:
  default_modifiers:
    QuantizationModifier:
      targets: [Linear]
      ignore: [lm_head]
      scheme: FP8_DYNAMIC
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_recipe_names_its_modifiers_in_their_order(tmp_path: Path) -> None:
    text = PLAIN.replace("    Quant", "    SmoothQuantModifier: {smoothing_strength: 0.7}\n    Quant")
    found = read_recipe(written(tmp_path, text))
    assert found.modifiers == ("SmoothQuantModifier", "QuantizationModifier")
    assert (found.name, found.text) == ("recipe.yaml", text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("default_stage: {}\n", "names no modifier"),
        ("default_stage:\n  default_modifiers:\n    A: [1\n", r"line 4 of `.*` is not YAML"),
        ("default_stage:\n\tx: 1\n", r"line 2 of `.*` is not YAML"),
        ("- a\n- b\n", r"line 1 of `.*`: the recipe holds no names with values"),
        ("just words\n", r"line 1 of `.*`: the recipe holds no names with values"),
        (PLAIN + "model: llama\n", r"line 7 of `.*`: `model` is no stage, whose names end in `_stage`"),
        ("a_stage:\n  mods:\n    A: {}\n", r"line 2 of `.*`: `mods` is no group of modifiers"),
        ("a_stage:\n  b_modifiers:\n    A: 7\n", r"line 3 of `.*`: `A` has no fields"),
        ("a_stage:\n  b_modifiers: [A]\n", r"line 2 of `.*`: `b_modifiers` holds no names with values"),
        ("a_stage:\n  b_modifiers:\n    [x]: {}\n", r"line 3 of `.*`: `b_modifiers` has a key that is no name"),
        (
            "a_stage:\n  b_modifiers:\n    A:\n      mappings:\n      - !!python/tuple [a, b]\n",
            r"line 5 of `.*`: `!!python/tuple` is no plain value",
        ),
        ("a_stage:\n  b_modifiers:\n    A:\n      x: !evil 1\n", r"line 4 of `.*`: `!evil` is no plain value"),
        (b"a_stage: \xff\xfe\n", "is not UTF-8 at byte 9"),
        (b"a_stage: \x00\n", "is not YAML"),
        ("[" * 1500, "is not YAML"),
        ("x" * 1_000_001, "has 1,000,001 bytes"),
    ],
    ids=lambda value: None if not isinstance(value, str) or len(value) > 60 else value,
)
def test_what_is_no_recipe_is_refused_with_its_line(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        read_recipe(written(tmp_path, text))


def test_a_recipe_whose_anchors_hold_themselves_is_read_to_its_end(tmp_path: Path) -> None:
    found = read_recipe(written(tmp_path, "a_stage:\n  b_modifiers:\n    A: &a\n      x: [*a, *a]\n"))
    assert found.modifiers == ("A",)


def test_a_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"the recipe `.*none\.yaml` does not exist"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="is a folder"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scheme": "FP8_DYNAMIC"}, "--scheme"),
        ({"kv_cache": "fp8"}, "--kv-cache"),
        ({"targets": ("re:.*mlp.*",)}, "--targets"),
        ({"ignore": ("lm_head",)}, "--ignore"),
        ({"default_ignore": False}, "--no-default-ignore"),
        ({"modifiers": Modifiers(gptq=True, smoothing=0.5)}, "--smoothquant and --gptq"),
        ({"engine": "streaming"}, "the streaming engine cannot do --recipe"),
    ],
)
def test_a_recipe_excludes_the_options_that_say_the_same(
    tmp_path: Path, options: dict[str, object], words: str
) -> None:
    asked = QuantizeRequest(
        model=str(MODEL),
        out=tmp_path / "out",
        recipe=written(tmp_path, PLAIN),
        **options,  # type: ignore[arg-type]
    )
    with pytest.raises(UsageError, match=words):
        run(asked)


def test_a_dry_run_says_that_what_comes_of_a_recipe_is_not_known(tmp_path: Path) -> None:
    found = fp8(tmp_path, "quantize", MODEL, "--recipe", written(tmp_path, PLAIN), "--dry-run")
    assert found.code == 0
    assert "QuantizationModifier" in found.out
    assert "unknown" in found.out
    assert "not known before it has run" in found.out.replace("\n", " ")
    assert "0.0 %" not in found.out
    assert found.loaded == []
