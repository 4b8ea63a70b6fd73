"""What a checkpoint is said to be: real ones by llm-compressor, tiny ones in the dialect of every other quantizer."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import FalconConfig, MixtralConfig

from fp8cli.core.inspection.consistency import check_consistency
from fp8cli.core.inspection.declared_methods import read_declaration
from fp8cli.core.inspection.dialect import Dialect, recognise_dialect
from fp8cli.core.inspection.groups import GroupFinder, NameMatcher
from fp8cli.core.inspection.pairing import read_scale, scale_shapes
from fp8cli.core.inspection.roles import RoleRow, role_table, sum_roles
from fp8cli.core.inspection.scale_values import check_scales
from fp8cli.core.inspection.survey import Survey
from tests.checkpoints import (
    BUNDLED,
    FLOAT8,
    Config,
    Tensors,
    consistency,
    look,
    per_channel,
    quantize_bundled,
    troubles,
    values,
    write,
)
from tests.models import llama_config, save_model
from tests.test_quant_config import save_tokenizer
from tests.test_selection import LLAMA, llama_tensors

ROWS, COLUMNS = 256, 128
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}


def llama(quantize: Callable[[torch.Tensor], Tensors]) -> Tensors:
    """A one-layer llama whose Linear weights are replaced by what `quantize` makes of them, names by ending."""
    torch.manual_seed(1)
    tensors: Tensors = {}
    config = LLAMA | SIZES | {"num_hidden_layers": 1}
    sizes = {64: 128, 128: 256, 32: 128, 96: 96}
    for name, (_, shape) in llama_tensors(config).items():
        weight = torch.randn([sizes[size] for size in shape]).to(torch.bfloat16)
        if name.endswith("_proj.weight"):
            tensors |= {name.removesuffix("weight") + ending: part for ending, part in quantize(weight).items()}
        else:
            tensors[name] = weight
    return tensors


def codes(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(torch.float8_e4m3fn)


def by_tensor(weight: torch.Tensor) -> Tensors:
    return {"weight": codes(weight), "weight_scale": torch.tensor(0.5)}


def by_tensor_calibrated(weight: torch.Tensor) -> Tensors:
    return by_tensor(weight) | {"input_scale": torch.tensor(0.25)}


def by_channel(weight: torch.Tensor) -> Tensors:
    return dict(zip(("weight", "weight_scale"), per_channel(weight), strict=True))


def blocks(weight: torch.Tensor) -> torch.Tensor:
    return torch.ones([-(-size // 128) for size in weight.shape])


def by_block(weight: torch.Tensor) -> Tensors:
    return {"weight": codes(weight), "weight_scale_inv": blocks(weight)}


def by_block_of_powers(weight: torch.Tensor) -> Tensors:
    return {"weight": codes(weight), "weight_scale_inv": blocks(weight).to(torch.float8_e8m0fnu)}


def by_modelopts_blocks(weight: torch.Tensor) -> Tensors:
    return {"weight": codes(weight), "weight_scale": blocks(weight)[:, None, :, None]}


def by_group(weight: torch.Tensor) -> Tensors:
    scale = torch.full((weight.shape[0], weight.shape[1] // 32), 120, dtype=torch.uint8)
    return {"weight": codes(weight), "weight_scale": scale}


def by_fbgemm(weight: torch.Tensor) -> Tensors:
    quantized, scale = per_channel(weight)
    return {"weight": quantized, "weight_scale": scale.float(), "input_scale_ub": torch.tensor([1200.0])}


def by_torchao(weight: torch.Tensor) -> Tensors:
    quantized, scale = per_channel(weight)
    return {"_weight_qdata": quantized, "_weight_scale": scale}


def by_gptq(weight: torch.Tensor) -> Tensors:
    rows, columns = weight.shape
    return {
        "qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
        "qzeros": torch.zeros(columns // 128, rows // 8, dtype=torch.int32),
        "scales": torch.ones(columns // 128, rows, dtype=torch.float16),
        "g_idx": torch.zeros(columns, dtype=torch.int32),
    }


def by_int8(weight: torch.Tensor) -> Tensors:
    return {"weight": weight.to(torch.int8), "weight_scale": torch.ones(weight.shape[0], 1)}


def by_pack(weight: torch.Tensor) -> Tensors:
    rows, columns = weight.shape
    return {
        "weight_packed": torch.zeros(rows, columns // 8, dtype=torch.int32),
        "weight_scale": torch.ones(rows, columns // 128, dtype=torch.bfloat16),
        "weight_shape": torch.tensor([rows, columns]),
    }


def by_bitsandbytes(weight: torch.Tensor) -> Tensors:
    return {
        "weight": torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8),
        "weight.absmax": torch.zeros(weight.numel() // 64, dtype=torch.uint8),
        "weight.quant_map": torch.ones(16),
        "weight.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
    }


def by_nobody(weight: torch.Tensor) -> Tensors:
    return {"weight": weight}


def in_float(weight: torch.Tensor) -> Tensors:
    return {"weight": weight.float()}


def compressed(
    weights: Config, activations: Config | None, form: str = "float-quantized", **more: object
) -> dict[str, object]:
    group = {
        "targets": ["Linear"],
        "weights": FLOAT8 | {"dynamic": False} | weights,
        "input_activations": None if activations is None else FLOAT8 | activations,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        **more,
    }


TOKEN = {"strategy": "token", "dynamic": True}
QUARK_FP8 = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False}
CHANNEL_WORDS = "E4M3 weights per channel, activations per token at run time"
BLOCK_WORDS = "E4M3 weights per 128×128 block, activations per group of 128 at run time"
STATIC_WORDS = "E4M3 weights per tensor, activations per tensor, calibrated"
MX_WORDS = "E4M3 weights per group of 32, activations per group of 32 at run time"

# name → how weights are stored, quantization_config, then: name, words, scheme, granularity and block of the weights
DIALECTS: dict[str, tuple[Callable[[torch.Tensor], Tensors], Any, str, str, str | None, str | None, Any]] = {
    "compressed-tensors": (
        by_channel,
        compressed({"strategy": "channel"}, TOKEN),
        "compressed-tensors",
        CHANNEL_WORDS,
        "FP8_DYNAMIC",
        "channel",
        None,
    ),
    "compressed-tensors, weights only": (
        by_channel,
        compressed({"strategy": "channel"}, None, "naive-quantized"),
        "compressed-tensors",
        "E4M3 weights per channel, activations left alone",
        None,
        "channel",
        None,
    ),
    "compressed-tensors, MXFP8": (
        by_group,
        compressed(
            {"strategy": "group", "group_size": 32},
            {"strategy": "group", "group_size": 32, "dynamic": True},
            "mxfp8-quantized",
        ),
        "compressed-tensors",
        MX_WORDS,
        None,
        "group",
        (1, 32),
    ),
    "AutoFP8, calibrated": (
        by_tensor_calibrated,
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        "fp8 (AutoFP8)",
        STATIC_WORDS,
        "FP8",
        "tensor",
        None,
    ),
    "AutoFP8": (
        by_tensor,
        {"quant_method": "fp8", "activation_scheme": "dynamic"},
        "fp8 (AutoFP8)",
        "E4M3 weights per tensor, activations at run time",
        None,
        "tensor",
        None,
    ),
    "DeepSeek": (
        by_block,
        {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        "DeepSeek block FP8",
        BLOCK_WORDS,
        "FP8_BLOCK",
        "block",
        (128, 128),
    ),
    "DeepSeek with powers of two": (
        by_block_of_powers,
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "scale_fmt": "ue8m0",
            "modules_to_not_convert": ["lm_head"],
        },
        "DeepSeek block FP8",
        BLOCK_WORDS,
        "FP8_BLOCK",
        "block",
        (128, 128),
    ),
    "FBGEMM": (
        by_fbgemm,
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
        "FBGEMM FP8",
        CHANNEL_WORDS,
        "FP8_DYNAMIC",
        "channel",
        None,
    ),
    "ModelOpt": (
        by_tensor_calibrated,
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
        "ModelOpt (FP8)",
        STATIC_WORDS,
        "FP8",
        "tensor",
        None,
    ),
    "ModelOpt, nested": (
        by_channel,
        {
            "quant_method": "modelopt",
            "quantization": {"quant_algo": "fp8_per_channel_per_token", "exclude_modules": ["lm_head*"]},
        },
        "ModelOpt (FP8_PER_CHANNEL_PER_TOKEN)",
        CHANNEL_WORDS,
        "FP8_DYNAMIC",
        "channel",
        None,
    ),
    "ModelOpt, blocks": (
        by_modelopts_blocks,
        {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO", "ignore": ["lm_head"]},
        "ModelOpt (FP8_PB_WO)",
        BLOCK_WORDS,
        "FP8_BLOCK",
        "block",
        (128, 128),
    ),
    "ModelOpt, MXFP8": (
        by_group,
        {"quant_method": "modelopt", "quant_algo": "MXFP8", "ignore": ["lm_head"]},
        "ModelOpt (MXFP8)",
        MX_WORDS,
        None,
        "group",
        (1, 32),
    ),
    "MXFP8": (by_group, {"quant_method": "mxfp8"}, "MXFP8", MX_WORDS, None, "group", (1, 32)),
    "Quark": (
        by_tensor_calibrated,
        {
            "quant_method": "quark",
            "global_quant_config": {"weight": QUARK_FP8, "input_tensors": QUARK_FP8},
            "layer_quant_config": {},
            "exclude": ["lm_head"],
            "export": {"kv_cache_group": []},
        },
        "AMD Quark",
        STATIC_WORDS,
        "FP8",
        "tensor",
        None,
    ),
}


def tiny(folder: Path, quantize: Callable[[torch.Tensor], Tensors], quantization: object, **more: object) -> Path:
    config = LLAMA | SIZES | {"num_hidden_layers": 1} | more
    if quantization is not None:
        config = config | {"quantization_config": quantization}
    return write(folder, llama(quantize), config)


@pytest.mark.parametrize("name", [*DIALECTS])
def test_every_dialect_of_fp8_is_told_and_a_sound_one_has_no_failed_check(tmp_path: Path, name: str) -> None:
    quantize, quantization, called, words, scheme, granularity, block = DIALECTS[name]
    folder = tiny(tmp_path / "tiny", quantize, quantization)
    survey, dialect = look(folder)
    assert (dialect.name, dialect.words, dialect.scheme) == (called, words, scheme)
    assert len(dialect.weights) == 7
    assert {(weight.granularity, weight.block) for weight in dialect.weights} == {(granularity, block)}
    assert dialect.block == block
    assert all(weight.scale in survey.tensors for weight in dialect.weights)
    assert troubles((*consistency(folder), *values(folder))) == {}


def test_each_weight_is_paired_with_its_module_and_scale(tmp_path: Path) -> None:
    _, dialect = look(tiny(tmp_path / "tiny", by_block, DIALECTS["DeepSeek"][1]))
    weight = next(weight for weight in dialect.weights if "down_proj" in weight.name)
    assert weight.module == "model.layers.0.mlp.down_proj"
    assert (weight.name, weight.scale) == (f"{weight.module}.weight", f"{weight.module}.weight_scale_inv")


@pytest.mark.parametrize("key", ["compression_config", "text_config"])
def test_the_older_key_and_the_nested_one_are_read_too(tmp_path: Path, key: str) -> None:
    block = compressed({"strategy": "channel"}, TOKEN)
    more = {key: {"quantization_config": block} if key == "text_config" else block}
    folder = tiny(tmp_path / "tiny", by_channel, None, **more)
    assert look(folder)[1].words == CHANNEL_WORDS
    assert troubles(consistency(folder)) == {}


def test_modelopts_own_file_is_read_where_config_json_says_nothing(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "tiny", by_tensor_calibrated, None)
    own = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]},
    }
    (folder / "hf_quant_config.json").write_text(json.dumps(own))
    dialect = look(folder)[1]
    assert (dialect.name, dialect.words, dialect.ignored) == ("ModelOpt (FP8)", STATIC_WORDS, ("lm_head",))
    assert dialect.kv_cache == "E4M3 per tensor, calibrated"
    assert troubles(consistency(folder)) == {"cache.missing": "warning"}


def test_a_mixture_says_all_its_schemes(tmp_path: Path) -> None:
    def some(weight: torch.Tensor) -> Tensors:
        return by_channel(weight) if weight.shape[0] == weight.shape[1] else by_tensor(weight)

    block = compressed({"strategy": "channel"}, TOKEN, "mixed-precision")
    group = block["config_groups"]["group_0"]  # type: ignore[index]
    block["config_groups"] = {
        "group_0": group | {"targets": ["re:.*self_attn.*"]},
        "group_1": group | {"targets": ["re:.*mlp.*"], "weights": FLOAT8 | {"strategy": "tensor"}},
    }
    folder = tiny(tmp_path / "tiny", some, block)
    dialect = look(folder)[1]
    assert dialect.words == f"{CHANNEL_WORDS}; E4M3 weights per tensor, activations per token at run time"
    assert dialect.scheme is None
    assert {weight.granularity for weight in dialect.weights} == {"channel", "tensor"}
    assert troubles(consistency(folder)) == {}


def test_a_group_for_embeddings_is_not_for_linears() -> None:
    block = compressed({"strategy": "channel"}, TOKEN)
    group = block["config_groups"]["group_0"]  # type: ignore[index]
    embeddings = group | {"targets": ["Embedding"], "weights": {"num_bits": 4, "type": "int", "strategy": "channel"}}
    block["config_groups"] = {"group_0": embeddings, "group_1": group}
    finder = GroupFinder.of(read_declaration({"quantization_config": block}, {}))
    found = finder.group_of("model.layers.0.mlp.up_proj")
    assert found is not None
    assert found.words == CHANNEL_WORDS


def test_modelopts_mixture_names_its_layers(tmp_path: Path) -> None:
    def some(weight: torch.Tensor) -> Tensors:
        return by_tensor_calibrated(weight) if weight.shape[0] == weight.shape[1] else by_nobody(weight)

    attention = {f"model.layers.0.self_attn.{name}_proj": {"quant_algo": "FP8"} for name in "qkvo"}
    block = {"quant_method": "modelopt_mixed", "quant_algo": "MIXED_PRECISION", "quantized_layers": attention}
    folder = tiny(tmp_path / "tiny", some, block)
    assert look(folder)[1].words == STATIC_WORDS
    assert troubles(consistency(folder)) == {}


# What is no FP8, or none that can be read here

OTHERS: dict[str, tuple[Callable[[torch.Tensor], Tensors], Any, str, str]] = {
    "BF16": (by_nobody, None, "unquantized BF16", "nothing is quantized"),
    "FP32": (in_float, None, "unquantized FP32 and BF16", "nothing is quantized"),
    "GPTQ": (
        by_gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        "GPTQ (4-bit)",
        "INT4 weights per group of 128, activations left alone",
    ),
    "INT8": (
        by_int8,
        compressed({"strategy": "channel", "type": "int"}, TOKEN | {"type": "int"}, "int-quantized"),
        "compressed-tensors",
        "INT8 weights per channel, activations per token at run time",
    ),
    "INT4": (
        by_pack,
        compressed({"strategy": "group", "group_size": 128, "num_bits": 4, "type": "int"}, None, "pack-quantized"),
        "compressed-tensors",
        "INT4 weights per group of 128, activations left alone",
    ),
    "bitsandbytes": (
        by_bitsandbytes,
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bitsandbytes (4-bit)",
        "a scheme that its config describes in words unknown here",
    ),
    "torchao": (
        by_torchao,
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}}},
        "torchao (quant_method `torchao`)",
        "how its weights are quantized is not known here",
    ),
    "a method of tomorrow": (
        by_channel,
        {"quant_method": "fp7"},
        "quantized by an unknown method `fp7`",
        "how its weights are quantized is not known here",
    ),
    "no config": (
        by_channel,
        None,
        "FP8 without a config",
        "E4M3 weights per channel; activations unknown",
    ),
    "no config, blocks": (
        by_block,
        None,
        "FP8 without a config",
        "E4M3 weights per 128×128 block; activations unknown",
    ),
}


@pytest.mark.parametrize("name", [*OTHERS])
def test_everything_else_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    quantize, quantization, called, words = OTHERS[name]
    folder = tiny(tmp_path / "tiny", quantize, quantization)
    dialect = look(folder)[1]
    assert (dialect.name, dialect.words, dialect.scheme) == (called, words, None)
    said = troubles((*consistency(folder), *values(folder)))
    match name:
        case "no config" | "no config, blocks":
            assert said == {"config.absent": "failed"}
        case "torchao" | "a method of tomorrow":
            assert said == {"config.method": "not checked"}
        case "bitsandbytes":
            assert said == {"scale.values": "not checked"}
        case _:
            assert said == {}


def test_gpt_oss_is_told_with_its_packed_experts(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.mlp.experts.gate_up_proj_blocks": torch.zeros(2, 64, 2, 16, dtype=torch.uint8),
        "model.layers.0.mlp.experts.gate_up_proj_scales": torch.full((2, 64, 2), 120, dtype=torch.uint8),
        "model.layers.0.mlp.experts.gate_up_proj_bias": torch.zeros(2, 64, dtype=torch.bfloat16),
    }
    block = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    folder = write(tmp_path / "oss", tensors, {"architectures": ["GptOssForCausalLM"], "quantization_config": block})
    survey, dialect = look(folder)
    assert dialect.name == "MXFP4 (gpt-oss)"
    assert dialect.words == "FP4 weights per group of 32, activations left alone"
    rows = {row.role: row for row in role_table(survey, dialect)}
    assert rows["quantized weights"].parameters == 2 * 64 * 64
    assert rows["quantized weights"].bits_per_weight == 4
    assert rows["scales"].tensors == 1


# Role by dtype


def row(role: str, dtype: str, tensors: int, parameters: int, size: int, total: int) -> RoleRow:
    return RoleRow(
        role=role,  # type: ignore[arg-type]
        dtype=dtype,
        tensors=tensors,
        parameters=parameters,
        bytes=size,
        share=size / total,
        bits_per_weight=size * 8 / parameters if parameters else None,
    )


def test_a_real_checkpoint_is_added_up_by_role_and_dtype(tmp_path: Path) -> None:
    survey, dialect = look(quantize_bundled(tmp_path / "fp8", "FP8_DYNAMIC"))
    sizes = {"q": 0, "s": 0, "head": 0, "embedding": 0, "norm": 0}
    for name, tensor in survey.tensors.items():
        if name.endswith("_scale"):
            kind = "s"
        elif name.startswith(("lm_head", "model.embed")):
            kind = "head" if name.startswith("lm_head") else "embedding"
        else:
            kind = "norm" if "norm" in name else "q"
        sizes[kind] += tensor.info.bytes
    total = sum(sizes.values())
    rows = role_table(survey, dialect)
    assert rows == (
        row("quantized weights", "torch.float8_e4m3fn", 21, sizes["q"], sizes["q"], total),
        row("scales", "torch.bfloat16", 21, 0, sizes["s"], total),
        row("unquantized Linear", "torch.bfloat16", 1, sizes["head"] // 2, sizes["head"], total),
        row("embeddings", "torch.bfloat16", 1, sizes["embedding"] // 2, sizes["embedding"], total),
        row("norms", "torch.bfloat16", 7, sizes["norm"] // 2, sizes["norm"], total),
    )
    parameters = sum(row.parameters or 0 for row in rows)
    assert sum_roles(rows) == row("total", "", 51, parameters, total, total)
    # The model's own count, scales left out.
    base, plain = look(BUNDLED)
    assert parameters == sum_roles(role_table(base, plain)).parameters


@pytest.mark.parametrize(
    ("quantize", "quantization", "bits"),
    [
        (by_gptq, OTHERS["GPTQ"][1], 4),
        (by_pack, OTHERS["INT4"][1], 4),
        (by_int8, OTHERS["INT8"][1], 8),
        (by_bitsandbytes, OTHERS["bitsandbytes"][1], 4),
        (by_channel, DIALECTS["compressed-tensors"][1], 8),
        (by_torchao, OTHERS["torchao"][1], 8),
    ],
)
def test_packed_codes_count_as_the_weights_they_stand_for(
    tmp_path: Path, quantize: Callable[[torch.Tensor], Tensors], quantization: object, bits: int
) -> None:
    survey, dialect = look(tiny(tmp_path / "packed", quantize, quantization))
    rows = role_table(survey, dialect)
    plain = sum_roles(role_table(*look(tiny(tmp_path / "plain", by_nobody, None))))
    assert sum_roles(rows).parameters == plain.parameters
    (packed,) = [row for row in rows if row.role == "quantized weights"]
    assert packed.bits_per_weight == bits


def test_codes_that_nothing_describes_have_no_number_of_parameters(tmp_path: Path) -> None:
    rows = role_table(*look(tiny(tmp_path / "packed", by_gptq, None)))
    assert sum_roles(rows).parameters is None
    assert sum_roles(rows).bits_per_weight is None


# Shapes of scales

SIZE = st.integers(1, 300)


@settings(deadline=None)
@given(rows=SIZE, columns=SIZE)
def test_a_scale_of_each_granularity_is_read_as_it_was_declared(rows: int, columns: int) -> None:
    from fp8cli.core.inspection.declaration import Numbers

    for granularity, block in (("tensor", None), ("channel", None), ("block", (128, 128)), ("group", (1, 32))):
        declared = Numbers(kind="E4M3", strategy=granularity, block=block)  # type: ignore[arg-type]
        for shape in scale_shapes((rows, columns), granularity, block):  # type: ignore[arg-type]
            assert read_scale((rows, columns), shape, declared) == (granularity, block)


def test_scales_of_fused_experts_are_read() -> None:
    assert read_scale((4, 256, 128), (4, 2, 1), None) == ("block", (128, 128))
    assert read_scale((4, 256, 128), (4, 256, 1), None) == ("channel", None)
    assert read_scale((4, 256, 128), (4,), None) == ("tensor", None)
    assert read_scale((4, 256, 128), (3, 5), None) == (None, None)


# Configs from strangers

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "quant_method",
    "config_groups",
    "format",
    "ignore",
    "kv_cache_scheme",
    "weight_block_size",
    "activation_scheme",
    "quantization",
    "quant_algo",
    "quantized_layers",
    "global_quant_config",
    "layer_quant_config",
    "export",
    "bits",
    "group_size",
    "modules_to_not_convert",
)
METHODS = ("compressed-tensors", "fp8", "modelopt", "quark", "gptq", "awq", "bitsandbytes", "fbgemm_fp8", "mxfp4", "")


@settings(deadline=None, max_examples=300)
@given(
    block=st.dictionaries(st.sampled_from(KEYS), JSON),
    method=st.sampled_from(METHODS) | JSON,
    more=st.dictionaries(
        st.sampled_from(
            ("architectures", "model_type", "num_hidden_layers", "hidden_size", "tie_word_embeddings", "head_dim")
        ),
        JSON,
    ),
)
def test_no_config_whatsoever_ends_in_an_exception(block: Config, method: object, more: Config) -> None:
    base = _survey_of_bundled()
    config = LLAMA | more | {"quantization_config": block | {"quant_method": method}}
    survey = Survey(**{**vars(base), "config": config})
    dialect: Dialect = recognise_dialect(survey)
    role_table(survey, dialect)
    assert check_consistency(survey, dialect)
    check_scales(survey, dialect)


_BUNDLED: list[Survey] = []


def _survey_of_bundled() -> Survey:
    if not _BUNDLED:
        _BUNDLED.append(look(BUNDLED)[0])
    return _BUNDLED[0]


# What llm-compressor really writes

RECIPES: dict[str, tuple[dict[str, object], str, str | None]] = {
    "FP8_DYNAMIC": ({"targets": "Linear", "scheme": "FP8_DYNAMIC", "ignore": ["lm_head"]}, CHANNEL_WORDS, None),
    "FP8_BLOCK": ({"targets": "Linear", "scheme": "FP8_BLOCK", "ignore": ["lm_head"]}, BLOCK_WORDS, None),
    "FP8": ({"targets": "Linear", "scheme": "FP8", "ignore": ["lm_head"]}, STATIC_WORDS, None),
    "MXFP8": ({"targets": "Linear", "scheme": "MXFP8", "ignore": ["lm_head"]}, MX_WORDS, None),
    "FP8 with cache": (
        {
            "targets": "Linear",
            "scheme": "FP8",
            "ignore": ["lm_head"],
            "kv_cache_scheme": {
                "num_bits": 8,
                "type": "float",
                "strategy": "tensor",
                "dynamic": False,
                "symmetric": True,
            },
        },
        STATIC_WORDS,
        "E4M3 per tensor, calibrated",
    ),
    "weights only": (
        {
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False},
                }
            },
        },
        "E4M3 weights per channel, activations left alone",
        None,
    ),
}
ONESHOT = """
import json, os, sys
os.environ["CT_ENFORCE_EAGER"] = "1"
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
folder, recipes = sys.argv[1], json.loads(sys.argv[2])
ids = torch.arange(64).remainder(300).tolist()
for name, (model, recipe) in recipes.items():
    scheme = recipe.get("scheme") or ""
    data = Dataset.from_dict({"input_ids": [ids] * 2, "attention_mask": [[1] * 64] * 2})
    calibration = {"dataset": data, "num_calibration_samples": 2, "max_seq_length": 64}
    oneshot(
        model=f"{folder}/{model}",
        recipe=QuantizationModifier(**recipe),
        output_dir=f"{folder}/{name}",
        **(calibration if scheme == "FP8" else {}),
    )
"""


@pytest.fixture(scope="module")
def oneshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the real `oneshot` makes of a tiny llama under every recipe."""
    folder = tmp_path_factory.mktemp("oneshot")
    save_model(folder / "source", llama_config())
    save_tokenizer(folder / "source")
    falcon = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320}
    save_model(folder / "falcon source", FalconConfig(**falcon))
    save_tokenizer(folder / "falcon source")
    mixtral = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 256}
    save_model(folder / "mixtral source", MixtralConfig(**falcon, **mixtral))
    save_tokenizer(folder / "mixtral source")
    dynamic = RECIPES["FP8_DYNAMIC"][0]
    recipes = {name: ("source", recipe) for name, (recipe, _, _) in RECIPES.items()}
    recipes |= {"falcon": ("falcon source", dynamic), "mixtral": ("mixtral source", dynamic)}
    command = [sys.executable, "-c", ONESHOT, str(folder), json.dumps(recipes)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"CT_ENFORCE_EAGER": "1"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RECIPES])
def test_what_oneshot_writes_is_told_in_words_and_found_sound(oneshot: Path, name: str) -> None:
    _, words, cache = RECIPES[name]
    dialect = look(oneshot / name)[1]
    assert (dialect.name, dialect.words, dialect.kv_cache) == ("compressed-tensors", words, cache)
    assert dialect.ignored == ("lm_head",)
    assert len(dialect.weights) == 14
    assert all(weight.scale and weight.granularity for weight in dialect.weights)
    assert troubles((*consistency(oneshot / name), *values(oneshot / name))) == {}


@pytest.mark.slow
def test_what_oneshot_leaves_of_a_falcon_is_not_taken_for_fp8(oneshot: Path) -> None:
    # compressed-tensors 0.19 compresses nn.Linear itself, not its subclasses, and says nothing of it.
    findings = (*consistency(oneshot / "falcon"), *values(oneshot / "falcon"))
    assert troubles(findings) == {
        "config.no_fp8": "failed",
        "config.modules": "not checked",
        "scale.unquantized": "failed",
        "scale.zero_point": "failed",
    }


@pytest.mark.slow
def test_the_experts_that_oneshot_renames_are_known_for_what_they_are(oneshot: Path) -> None:
    folder = oneshot / "mixtral"
    survey, dialect = look(folder)
    assert len(dialect.weights) == 2 * (4 + 4 * 3)
    assert troubles((*consistency(folder), *values(folder))) == {}
    assert any(".experts.0.gate_proj.weight" in name for name in survey.tensors)
    (renamed,) = [finding for finding in consistency(folder) if finding.check == "experts.names"]
    assert (renamed.status, renamed.count) == ("passed", 24)


# What vLLM itself takes for ignored

MODULES = (
    "lm_head",
    "model.lm_head",
    "model.layers.1.mlp.gate",
    "model.layers.10.mlp.gate",
    "model.layers.1.mlp.gate_proj",
    "model.layers.1.self_attn.o_proj",
    "vision_tower.layers.1.o_proj",
)
IGNORED = (
    "lm_head",
    "gate",
    "re:.*gate$",
    "re:model.*o_proj",
    "re:o_proj",
    "model.layers.1.mlp.gate",
    "model.layers.1",
    "*.mlp.gate",
    "vision_tower*",
    "model.layers.1.*",
)


@pytest.mark.slow
def test_what_is_ignored_for_certain_is_what_vllm_ignores() -> None:
    from vllm.model_executor.layers.quantization.compressed_tensors.utils import should_ignore_layer
    from vllm.model_executor.layers.quantization.modelopt import ModelOptFp8Config
    from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped

    for word in IGNORED:
        for module in MODULES:
            ours = NameMatcher.of([word], "compressed-tensors")
            assert ours.names_exactly(module) is should_ignore_layer(module, [word]), (word, module)
            assert ours.may_name(module) is ours.names_exactly(module)
            if not word.startswith("re:"):
                ours = NameMatcher.of([word], "names")
                assert ours.names_exactly(module) is is_layer_skipped(module, [word]), (word, module)
                theirs = ModelOptFp8Config("FP8", True, None, [word]).is_layer_excluded(module)
                ours = NameMatcher.of([word], "wildcards")
                # vLLM also takes any part of a name for a match, be it in the middle of a word.
                assert not ours.names_exactly(module) or theirs, (word, module)
