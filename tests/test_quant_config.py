"""What config.json and recipe.yaml say: for ours what `oneshot` writes, and the right words for everyone else's."""

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fp8cli.formats.quant_config import (
    FORMAT_VERSION,
    TARGETS,
    config_text,
    patch_config,
    quantization_config,
    recipe_text,
)
from fp8cli.formats.quant_methods import recognise
from fp8cli.schemes import FP8_DYNAMIC, SCHEMES
from tests.models import llama_config, save_model

LAYER_0 = r"re:.*layers\.0\..*"
LAYER_0_MODULES = [
    *(f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"),
    *(f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")),
]
# name → model, scheme, the ignore list asked for, the one it becomes, and what else changes in config.json.
RUNS: dict[str, tuple[str, str, list[str], list[str], dict[str, object]]] = {
    "dynamic": ("a model", "FP8_DYNAMIC", ["lm_head"], ["lm_head"], {}),
    "block": ("a model", "FP8_BLOCK", ["lm_head"], ["lm_head"], {}),
    "static": ("a model", "FP8", ["lm_head"], ["lm_head"], {}),
    "regex": ("a model", "FP8_DYNAMIC", ["lm_head", LAYER_0], [*LAYER_0_MODULES, "lm_head"], {}),
    "many": ("a model", "FP8_BLOCK", [*LAYER_0_MODULES, "lm_head"], [*LAYER_0_MODULES, "lm_head"], {}),
    "all": ("a model", "FP8_DYNAMIC", [], [], {}),
    "tied": ("a tied model", "FP8_DYNAMIC", ["lm_head"], ["lm_head"], {}),
    "untied": ("a tied model", "FP8_DYNAMIC", [], [], {"tie_word_embeddings": False}),
    "edited": ("an edited model", "FP8_DYNAMIC", ["lm_head"], ["lm_head"], {}),
    "terse": ("a terse model", "FP8_DYNAMIC", ["lm_head"], ["lm_head"], {}),
    "float16": ("a model", "FP8_DYNAMIC", ["lm_head"], ["lm_head"], {"dtype": "float16"}),
}
ONESHOT = """
import json, sys
from pathlib import Path
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
folder = Path(sys.argv[1])
for name, (model, scheme, ignore, _, changes) in json.loads(sys.argv[2]).items():
    calibration = {"dataset": Dataset.from_dict({"input_ids": [[1, 2, 3, 4]] * 2}), "num_calibration_samples": 2}
    oneshot(
        model=str(folder / model),
        recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=ignore),
        output_dir=str(folder / name),
        precision=changes.get("dtype", "auto"),
        **(calibration if scheme == "FP8" else {}),
    )
"""


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer of one word: calibration will not begin without one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    unknown = "<unk>"
    tokenizer = Tokenizer(WordLevel({unknown: 0}, unk_token=unknown))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown).save_pretrained(folder)


@pytest.fixture(scope="module")
def oneshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models and, by the names of RUNS, what the real `oneshot` makes of them."""
    folder = tmp_path_factory.mktemp("oneshot")
    save_model(folder / "a model", llama_config())
    save_tokenizer(folder / "a model")
    save_model(folder / "a tied model", llama_config(tie_word_embeddings=True))
    edited = json.loads((save_model(folder / "an edited model", llama_config()) / "config.json").read_text())
    # As older and hand-made configs have it: another key for the dtype, keys no one knows, an order of its own.
    edited = {"zzz": {"é": [1e-05, 1e22, None]}, "torch_dtype": edited.pop("dtype"), **edited}
    (folder / "an edited model" / "config.json").write_text(json.dumps(edited, ensure_ascii=False))
    terse = json.loads((save_model(folder / "a terse model", llama_config()) / "config.json").read_text())
    del terse["tie_word_embeddings"]
    (folder / "a terse model" / "config.json").write_text(json.dumps(terse))
    subprocess.run([sys.executable, "-c", ONESHOT, str(folder), json.dumps(RUNS)], check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name != "terse"])
def test_the_config_is_byte_for_byte_what_oneshot_writes(oneshot: Path, name: str) -> None:
    model, scheme, _, ignored, changes = RUNS[name]
    source = json.loads((oneshot / model / "config.json").read_text())
    written = (oneshot / name / "config.json").read_text()
    ours = config_text(source, quantization_config(SCHEMES[scheme], ignored), **changes)
    assert ours == written
    # The order of the keys as well: what is sorted there is sorted here before it is written.
    expected = json.loads(written)["quantization_config"]
    assert json.dumps(quantization_config(SCHEMES[scheme], ignored)) == json.dumps(expected)


@pytest.mark.slow
def test_a_config_without_the_key_for_tied_embeddings_is_kept_and_means_what_oneshots_means(
    oneshot: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    # Without that key oneshot gives up on the original text and writes transformers' own, with all its defaults.
    source = json.loads((oneshot / "a terse model" / "config.json").read_text())
    ours = config_text(source, quantization_config(FP8_DYNAMIC, ["lm_head"]))
    assert "tie_word_embeddings" not in json.loads(ours)
    (tmp_path / "config.json").write_text(ours)
    loaded, theirs = (AutoConfig.from_pretrained(folder).to_dict() for folder in (tmp_path, oneshot / "terse"))
    assert loaded | {"_name_or_path": None} == theirs | {"_name_or_path": None}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNS])
def test_the_recipe_is_byte_for_byte_what_oneshot_writes(oneshot: Path, name: str) -> None:
    _, scheme, ignore, _, _ = RUNS[name]
    assert recipe_text(SCHEMES[scheme], TARGETS, ignore) == (oneshot / name / "recipe.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNS])
def test_what_oneshot_writes_is_recognised(oneshot: Path, name: str) -> None:
    per = {"FP8_DYNAMIC": "channel", "FP8_BLOCK": "block of 128×128", "FP8": "tensor"}[RUNS[name][1]]
    config = json.loads((oneshot / name / "config.json").read_text())
    assert recognise(config, (), ()) == f"compressed-tensors float-quantized (FP8, per {per})"


def test_the_format_version_is_that_of_the_installed_compressed_tensors() -> None:
    assert version("compressed-tensors") == FORMAT_VERSION


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=[*SCHEMES])
def test_compressed_tensors_takes_our_config_and_gives_it_back_unchanged(scheme: object) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    ours = quantization_config(scheme, ["lm_head"])
    theirs = QuantizationConfig.model_validate(ours).model_dump(mode="json")
    assert {**theirs, "sparsity_config": {}, "transform_config": {}, "version": FORMAT_VERSION} == ours


def test_patching_changes_nothing_else_and_not_the_original() -> None:
    config = {"model_type": "llama", "dtype": "float32", "text_config": {"a": 1}, "quantization_config": None}
    before = json.dumps(config)
    patched = patch_config(config, {"q": 1})
    assert patched == {**config, "quantization_config": {"q": 1}}
    patched = patch_config(config, {"q": 1}, dtype="bfloat16", tie_word_embeddings=False)
    assert patched == {**config, "quantization_config": {"q": 1}, "dtype": "bfloat16", "tie_word_embeddings": False}
    assert json.dumps(config) == before


def test_a_dtype_is_changed_wherever_the_config_has_it() -> None:
    config = {"torch_dtype": "float32", "text_config": {"dtype": "float32", "tie_word_embeddings": True}}
    patched = patch_config(config, {}, dtype="bfloat16", tie_word_embeddings=False)
    assert patched == {
        "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "tie_word_embeddings": False},
        "quantization_config": {},
    }
    assert config["text_config"] == {"dtype": "float32", "tie_word_embeddings": True}


def expected_recipe(targets: list[str], ignore: list[str]) -> str:
    modifier = {
        "targets": targets,
        "ignore": ignore,
        "scheme": "FP8_DYNAMIC",
        "bypass_divisibility_checks": False,
        "requires_calibration_data": False,
    }
    recipe = {"default_stage": {"default_modifiers": {"QuantizationModifier": modifier}}}
    # The options with which llm-compressor writes its recipes.
    return yaml.dump(recipe, allow_unicode=True, sort_keys=False, default_flow_style=None, width=88)


# Names of modules and patterns: printable, no spaces, and not the beginning of a number.
module_names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=30)
usual = st.sampled_from(
    [r"re:.*\.mlp\.gate$", "lm_head", "model.layers.10.self_attn.q_proj", "re:^visual.*", "no", "Off"]
)


@settings(deadline=None)
@given(st.lists(usual | module_names.filter(lambda name: name[0] not in "-+.0123456789~=<"), max_size=12))
@example([""])
@example(["'", '"', "a'b", "a#b", "#", "null", "re:^(?!.*mlp).*$", "[x]", "*", "&a", "!x", "%x", "@x", "`x", "a:", "?"])
def test_a_recipe_has_pyyamls_bytes_for_names_and_patterns(ignore: list[str]) -> None:
    assert recipe_text(FP8_DYNAMIC, ["Linear"], ignore) == expected_recipe(["Linear"], ignore)


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=5), st.lists(st.text(max_size=90), max_size=5))
@example(
    ["Linear"], ["1", "-1.5", ".5", "1e3", "0x1f", "~", "=", "<<", "-", "---", "2020-01-01", "a b", " ", "\n", "\x1b"]
)
def test_any_recipe_comes_back_from_yaml_as_it_was(targets: list[str], ignore: list[str]) -> None:
    recipe = yaml.safe_load(recipe_text(FP8_DYNAMIC, targets, ignore))
    # Not compared with PyYAML's text: that loses a lone U+0085.
    assert recipe["default_stage"]["default_modifiers"]["QuantizationModifier"] == {
        "targets": targets,
        "ignore": ignore,
        "scheme": "FP8_DYNAMIC",
        "bypass_divisibility_checks": False,
        "requires_calibration_data": False,
    }


def ct(weights: Mapping[str, object] | None, form: str = "pack-quantized", **more: object) -> dict[str, object]:
    groups = {} if weights is None else {"group_0": {"weights": weights, "targets": ["Linear"]}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, **more}


INT4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128}
CHANNEL = {"type": "float", "num_bits": 8, "strategy": "channel"}
FOREIGN = [
    (ct(CHANNEL, "float-quantized"), "compressed-tensors float-quantized (FP8, per channel)"),
    (ct(INT4), "compressed-tensors pack-quantized (INT4, per group of 128)"),
    (
        ct({**CHANNEL, "num_bits": 4, "strategy": "tensor_group", "group_size": 16}, "nvfp4-pack-quantized"),
        "compressed-tensors nvfp4-pack-quantized (FP4, per group of 16)",
    ),
    (ct(None, "dense", kv_cache_scheme={"num_bits": 8}), "compressed-tensors dense (KV cache only)"),
    (ct(None, "dense"), "compressed-tensors dense (no weights)"),
    (
        ct(CHANNEL, "mixed-precision") | {"config_groups": {"a": {"weights": INT4}, "b": {"weights": CHANNEL}}},
        "compressed-tensors mixed-precision (FP8, per channel; INT4, per group of 128)",
    ),
    (
        {"config_groups": {"g": {"weights": CHANNEL}}, "format": "float-quantized"},
        "compressed-tensors float-quantized (FP8, per channel)",
    ),
    (
        {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
        "DeepSeek-style block FP8 (quant_method `fp8`, `weight_scale_inv`)",
    ),
    (
        {"quant_method": "fp8", "activation_scheme": "static"},
        "AutoFP8, per-tensor FP8 (quant_method `fp8`, static activations)",
    ),
    ({"quant_method": "fbgemm_fp8"}, "FBGEMM FP8, per row (quant_method `fbgemm_fp8`)"),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, "NVIDIA ModelOpt (FP8)"),
    ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}, "NVIDIA ModelOpt (NVFP4)"),
    ({"quant_method": "modelopt_fp4"}, "NVIDIA ModelOpt (modelopt_fp4)"),
    ({"quant_method": "mxfp4"}, "MXFP4, as gpt-oss (quant_method `mxfp4`)"),
    ({"quant_method": "mxfp8"}, "MXFP8 (quant_method `mxfp8`)"),
    ({"quant_method": "quark"}, "AMD Quark (quant_method `quark`)"),
    ({"quant_method": "torchao"}, "torchao (quant_method `torchao`)"),
    ({"quant_method": "gptq", "bits": 4}, "GPTQ (4-bit)"),
    ({"quant_method": "GPTQ", "bits": 8}, "GPTQ (8-bit)"),
    ({"quant_method": "awq", "w_bit": 4}, "AWQ (4-bit)"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes (4-bit)"),
    ({"load_in_8bit": True}, "bitsandbytes (8-bit)"),
    ({"quant_method": "hqq"}, "HQQ (quant_method `hqq`)"),
    ({"quant_method": "brand_new"}, "quantized by an unknown method `brand_new`"),
    ({"quant_method": 7}, "quantized by an unknown method `7`"),
    ({"bits": 4}, "quantized by a method that its config does not name"),
    ({}, "quantized by a method that its config does not name"),
    ("gptq-ish", "quantized by an unknown method `gptq-ish`"),
]


@pytest.mark.parametrize(("quantization", "words"), FOREIGN, ids=range(len(FOREIGN)))
@pytest.mark.parametrize(
    "wrap",
    [
        lambda found: {"quantization_config": found},
        lambda found: {"compression_config": found},
        lambda found: {"model_type": "llava", "text_config": {"quantization_config": found}},
        lambda found: {"quantization_config": None, "llm_config": {"compression_config": found}},
    ],
    ids=["quantization_config", "compression_config", "text_config", "another config"],
)
def test_a_quantized_checkpoint_is_named_by_its_config(quantization: object, words: str, wrap: object) -> None:
    assert recognise(wrap(quantization), (), ()) == words


@pytest.mark.parametrize(
    ("side_file", "words"),
    [
        ("hf_quant_config.json", "NVIDIA ModelOpt (`hf_quant_config.json`)"),
        ("quantize_config.json", "GPTQ (`quantize_config.json`)"),
        ("quant_config.json", "AWQ (`quant_config.json`)"),
    ],
)
def test_a_quantized_checkpoint_is_named_by_the_file_beside_its_config(side_file: str, words: str) -> None:
    assert recognise({}, ["tokenizer.json", side_file], ()) == words


def test_an_mlx_checkpoint_is_named() -> None:
    assert recognise({"quantization": {"bits": 4, "group_size": 64}}, (), ()) == "MLX (`quantization` in config.json)"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            [("a.weight_scale_inv", "F32")],
            "DeepSeek-style block FP8, without a config that says so (`a.weight_scale_inv`)",
        ),
        (
            [("a.weight_packed", "I32"), ("a.weight_scale", "BF16")],
            "compressed-tensors, without a config that says so (`a.weight_packed`)",
        ),
        ([("a.qweight", "I32")], "GPTQ or AWQ, without a config that says so (`a.qweight`)"),
        ([("a.weight.absmax", "F32")], "bitsandbytes, without a config that says so (`a.weight.absmax`)"),
        (
            [("mlp.experts.down_proj_blocks", "U8")],
            "MXFP4, as gpt-oss, without a config that says so (`mlp.experts.down_proj_blocks`)",
        ),
        (
            [("a.weight", "F8_E4M3"), ("a.weight_scale", "F32")],
            "scaled weights, without a config that says so (`a.weight_scale`)",
        ),
        ([("n", "BF16"), ("a.weight", "F8_E4M3")], "F8_E4M3 tensors without a config that says so (`a.weight`)"),
        ([("a.weight", "F4")], "F4 tensors without a config that says so (`a.weight`)"),
    ],
)
def test_a_quantized_checkpoint_without_a_config_is_named_by_its_tensors(
    tensors: list[tuple[str, str]], words: str
) -> None:
    assert recognise({"model_type": "llama"}, (), tensors) == words


def test_an_ordinary_checkpoint_is_not_called_quantized() -> None:
    tensors = [("model.layers.0.mlp.up_proj.weight", "BF16"), ("logit_scale", "F32"), ("position_ids", "I64")]
    config = llama_config().to_dict() | {"quantization_config": None, "vision_config": {"hidden_size": 8}}
    assert recognise(config, ["tokenizer.json", "README.md"], tensors) is None
