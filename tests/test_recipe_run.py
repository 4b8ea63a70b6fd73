"""Recipes that llm-compressor runs: what is not FP8 is refused before a model is loaded, what is passes the gate."""

import json
import os
from pathlib import Path

import pytest
import torch

# Read when compressed-tensors is imported: without it a GPU machine would run another kernel, with other rounding.
os.environ["CT_ENFORCE_EAGER"] = "1"

from fp8cli.core.quantizing.choices import Choice, choose
from fp8cli.formats.recipe_file import RecipeFile
from fp8cli.formats.staging import partial_folder
from fp8cli.worker.failures import Failure
from tests.calibrated import MODEL
from tests.compressed import Made, compress_here
from tests.models import ODD, llama_config, qwen2_config, save_model
from tests.starting import fp8
from tests.test_engine_llmcompressor import texts
from tests.test_oneshot_equality import tensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules"),
]

HEAD = "default_stage:\n  default_modifiers:\n"
PLAIN = HEAD + "    QuantizationModifier: {targets: [Linear], ignore: [lm_head], scheme: FP8_DYNAMIC}\n"
STATIC = PLAIN.replace("FP8_DYNAMIC", "FP8")
FP8_NUMBERS = "num_bits: 8, type: float, symmetric: true"
MIXED = (
    HEAD
    + f"""\
    GPTQModifier:
      ignore: [lm_head]
      config_groups:
        group_0:
          targets: ['re:.*self_attn.*']
          weights: {{{FP8_NUMBERS}, strategy: channel, dynamic: false}}
          input_activations: {{{FP8_NUMBERS}, strategy: token, dynamic: true}}
        group_1:
          targets: ['re:.*mlp.*']
          weights: {{{FP8_NUMBERS}, strategy: tensor, dynamic: false}}
          input_activations: {{{FP8_NUMBERS}, strategy: tensor, dynamic: false}}
"""
)


def made_by(source: Path, work: Path, text: str, data: Path | None = None) -> Made:
    recipe = RecipeFile(name="r.yaml", text=text, modifiers=("Some",))
    return compress_here(source, work, Choice(scheme=None, kv_cache=None, recipe="r.yaml"), recipe=recipe, data=data)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("recipes") / "source", llama_config(vocab_size=1280))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (PLAIN.replace("FP8_DYNAMIC", "W4A16"), "weights of 4-bit int numbers, which is not the FP8"),
        (PLAIN.replace("FP8_DYNAMIC", "W8A8"), "weights of 8-bit int numbers, which is not the FP8"),
        (PLAIN.replace("FP8_DYNAMIC", "MXFP8"), "with a scale for each group|scales of another kind"),
        (PLAIN.replace("FP8_DYNAMIC", "FP9"), "does not take the recipe"),
        (PLAIN.replace("targets", "tragets"), r"take the recipe \(`QuantizationModifier\.tragets`: Extra inputs"),
        (HEAD + "    QuantumModifier: {}\n", "does not take the recipe.*QuantumModifier"),
        (HEAD + "    SmoothQuantModifier: {smoothing_strength: 0.5}\n", "quantizes nothing: it has `SmoothQuantMod"),
        (HEAD + "    AWQModifier: {}\n", "does not take the recipe"),
        (STATIC, "needs calibration data, for `QuantizationModifier`, and there is none"),
    ],
)
def test_a_recipe_of_something_else_is_refused_before_the_model_is_loaded(
    tmp_path: Path, source: Path, text: str, complaint: str
) -> None:
    with pytest.raises(Failure, match=complaint) as refused:
        made_by(source, tmp_path / "work", text)
    assert refused.value.kind == "data"
    assert refused.value.hint
    told = (tmp_path / "work" / "events-0.jsonl").read_text()
    assert "loading" not in told
    assert not (tmp_path / "work" / "result").exists()


def test_data_that_a_recipe_has_no_use_for_are_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(Failure, match="--calibration-data would have no effect: nothing in the recipe needs data"):
        made_by(source, tmp_path / "work", PLAIN, texts(source))


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_a_recipe_of_a_scheme_gives_the_bytes_of_the_scheme(tmp_path: Path, scheme: str) -> None:
    source = save_model(tmp_path / "source", qwen2_config(**ODD), max_shard_size="200KB")
    recipe = made_by(source, tmp_path / "recipe", PLAIN.replace("FP8_DYNAMIC", scheme))
    options = compress_here(source, tmp_path / "options", choose(scheme, None))
    assert recipe.declared.scheme is not None
    assert recipe.declared.scheme.name == scheme
    assert {path.name for path in recipe.out.iterdir()} == {path.name for path in options.out.iterdir()}
    for path in options.out.iterdir():
        assert (recipe.out / path.name).read_bytes() == path.read_bytes(), path.name
    actions = {tensor.name: tensor.action for tensor in options.plan.tensors}
    assert {tensor.name: tensor.action for tensor in recipe.plan.tensors} == actions


def test_a_recipe_may_quantize_the_head_that_was_tied_to_the_embedding(tmp_path: Path) -> None:
    source = save_model(tmp_path / "source", qwen2_config())
    made = made_by(source, tmp_path / "work", PLAIN.replace("ignore: [lm_head], ", ""))
    written = tensors(made.out)
    assert written["lm_head.weight"][0] == torch.float8_e4m3fn
    assert written["lm_head.weight_scale"][1] == (320, 1)
    assert made.plan.new_tie_word_embeddings is False


def test_a_mixture_of_ways_is_published_with_the_recipe_as_llmcompressor_writes_it(tmp_path: Path) -> None:
    (tmp_path / "mixed.yaml").write_text(MIXED)
    out = tmp_path / "out"
    words = ("--recipe", tmp_path / "mixed.yaml", "--num-calibration-samples", "6", "--json")
    run = fp8(tmp_path, "quantize", MODEL, "-o", out, *words)
    assert run.code == 0, run.err
    assert run.report["scheme"] is None
    assert run.report["counts"] == {"copy": 9, "quantize": 21}
    assert run.report["compression"]["recipe"] == "mixed.yaml"
    written = tensors(out)
    assert written["model.layers.1.self_attn.q_proj.weight_scale"][1] == (128, 1)
    assert written["model.layers.1.mlp.up_proj.weight_scale"][1] == (1,)
    assert "model.layers.1.mlp.up_proj.input_scale" in written
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert set(config["config_groups"]) == {"group_0", "group_1"}
    recipe, card = (out / "recipe.yaml").read_text(), (out / "README.md").read_text()
    assert "GPTQModifier:" in recipe
    assert "# Calibrated on 6 samples of the bundled stories" in recipe
    assert "as `mixed.yaml` has it" in card
    assert "quantized to FP8" in card
    inspected = fp8(tmp_path, "inspect", out, "--json")
    assert inspected.code == 0, inspected.err
    # What serving takes is said of what came of it, in the same words as by whoever looks at it later.
    serving = run.report["serving"]
    assert serving == {key: inspected.report["serving"][key] for key in serving}
    assert [split["size"] for split in serving["parallel"] if split["verdict"] == "works"] == [1, 2, 4]


def test_a_recipe_that_is_refused_leaves_no_checkpoint_and_says_so_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "four.yaml").write_text(PLAIN.replace("FP8_DYNAMIC", "W4A16"))
    run = fp8(tmp_path, "quantize", MODEL, "-o", tmp_path / "out", "--recipe", tmp_path / "four.yaml")
    assert run.code == 3
    assert "error: the recipe makes weights of 4-bit int numbers, which is not the FP8" in " ".join(run.err.split())
    assert not (tmp_path / "out").exists()
    assert not list(partial_folder(tmp_path / "out").rglob("*.safetensors"))
