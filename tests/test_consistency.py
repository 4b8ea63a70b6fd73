"""Every way in which tensors, scales, config and architecture can disagree, planted in a real FP8 checkpoint."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fp8cli.core.findings import Finding
from fp8cli.core.inspection.pattern_cost import is_too_costly
from tests.checkpoints import (
    BUNDLED,
    FLOAT8,
    SINGLE,
    Config,
    Tensors,
    change_config,
    change_tensors,
    consistency,
    look,
    per_channel,
    quantize_bundled,
    troubles,
    values,
    write,
)
from tests.test_selection import LLAMA, QWEN3_MOE, llama_tensors, moe_tensors

UP = "model.layers.1.mlp.up_proj"
DOWN = "model.layers.1.mlp.down_proj"
Q = "model.layers.0.self_attn.q_proj"
HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
BOTH = ("FP8_DYNAMIC", "FP8_BLOCK")


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("healthy")
    return {scheme: quantize_bundled(root / scheme, scheme) for scheme in BOTH}


def planted(healthy: dict[str, Path], scheme: str, place: Path) -> Path:
    return Path(shutil.copytree(healthy[scheme], place / scheme))


def found(findings: tuple[Finding, ...], check: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.check == check and finding.status != "passed"]
    return finding


def quantization(config: Config) -> Config:
    block: Config = config["quantization_config"]
    return block


def weights(config: Config) -> Config:
    arguments: Config = quantization(config)["config_groups"]["group_0"]["weights"]
    return arguments


@pytest.mark.parametrize("scheme", BOTH)
def test_a_healthy_checkpoint_has_nothing_but_passed_checks(healthy: dict[str, Path], scheme: str) -> None:
    folder = healthy[scheme]
    findings = (*consistency(folder), *values(folder))
    assert troubles(findings) == {}
    assert {finding.check for finding in findings} == {
        "config.quantization",
        "scale.missing",
        "scale.orphan",
        "scale.zero_point",
        "scale.name",
        "scale.shape",
        "scale.dtype",
        "config.modules",
        "tensor.missing",
        "tensor.unknown",
        "scale.values",
    }
    assert all(finding.found and not finding.found.endswith(".") for finding in findings)


def test_an_unquantized_checkpoint_has_nothing_but_passed_checks() -> None:
    assert troubles((*consistency(BUNDLED), *values(BUNDLED))) == {}


# What is done to the tensors


def bfloat16(tensors: Tensors, module: str) -> None:
    """Undo the quantization of one module, scale and all."""
    weight = tensors[f"{module}.weight"].float()
    scale = tensors.pop(f"{module}.weight_scale").float()
    rows, columns = weight.shape
    spread = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    tensors[f"{module}.weight"] = (weight * (scale if scale.shape == (rows, 1) else spread)).to(torch.bfloat16)


def quantize_module(tensors: Tensors, module: str) -> None:
    codes, scale = per_channel(tensors[f"{module}.weight"])
    tensors |= {f"{module}.weight": codes, f"{module}.weight_scale": scale}


def rename(tensors: Tensors, old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


def cast(tensors: Tensors, name: str, dtype: torch.dtype) -> None:
    tensors[name] = tensors[name].float().to(dtype)


def undo_like_falcon(tensors: Tensors) -> None:
    """compressed-tensors 0.19 leaves subclasses of nn.Linear in 16 bits, with scales and zero points beside them."""
    for name in [name for name in tensors if name.endswith(".weight_scale")]:
        weight = name.removesuffix("_scale")
        cast(tensors, weight, torch.bfloat16)
        tensors[f"{weight}_zero_point"] = torch.zeros_like(tensors[name]).to(torch.float8_e4m3fn)


TENSOR_FAULTS: dict[str, tuple[Callable[[Tensors], Any], dict[str, str], str, str]] = {
    # name → what is done, what is said, and of one of the findings the check and its sentence
    "no scale": (
        lambda t: t.pop(f"{UP}.weight_scale"),
        {"scale.missing": "failed"},
        "scale.missing",
        rf"`{UP}.weight` has no scale: `weight_scale` is missing",
    ),
    "no scale in any layer": (
        lambda t: [t.pop(f"model.layers.{layer}.mlp.up_proj.weight_scale") for layer in range(3)],
        {"scale.missing": "failed"},
        "scale.missing",
        r"`model\.layers\.\{0\.\.2\}\.mlp\.up_proj\.weight` has no scale: `weight_scale` is missing",
    ),
    "a scale without its weight": (
        lambda t: t.pop(f"{UP}.weight"),
        {"scale.orphan": "failed", "tensor.missing": "failed"},
        "scale.orphan",
        rf"`{UP}.weight_scale` is there, but not the weight that it scales",
    ),
    "a scale beside a weight in 16 bits": (
        lambda t: cast(t, f"{DOWN}.weight", torch.bfloat16),
        {"scale.unquantized": "failed", "config.uncovered": "failed"},
        "scale.unquantized",
        rf"`{DOWN}.weight_scale` is there, but `weight` beside it is BF16: it was never quantized",
    ),
    "a Linear that was forgotten": (
        lambda t: bfloat16(t, DOWN),
        {"config.uncovered": "failed"},
        "config.uncovered",
        rf"`{DOWN}.weight` is BF16: a Linear that is neither quantized nor listed as ignored",
    ),
    "half of gate and up forgotten": (
        lambda t: bfloat16(t, UP),
        {"config.uncovered": "failed", "config.shards": "failed"},
        "config.shards",
        rf"`{UP}.weight` is BF16, but parts that vLLM keeps in one module with it are quantized",
    ),
    "a misshapen scale": (
        lambda t: t.update({f"{UP}.weight_scale": torch.ones(7, 3, dtype=torch.bfloat16)}),
        {"scale.shape": "failed"},
        "scale.shape",
        rf"`{UP}.weight_scale` has shape \[7, 3\], but the config asks for \[\d+, \d+\] with a weight \[\d+, \d+\]",
    ),
    "a scale of whole numbers": (
        lambda t: cast(t, f"{UP}.weight_scale", torch.int32),
        {"scale.dtype": "failed"},
        "scale.dtype",
        rf"`{UP}.weight_scale` is I32, which is no dtype for such a scale",
    ),
    "a scale under DeepSeek's name": (
        lambda t: rename(t, f"{UP}.weight_scale", f"{UP}.weight_scale_inv"),
        {"scale.name": "failed"},
        "scale.name",
        rf"`{UP}.weight_scale_inv` is not called `weight_scale`, as `compressed-tensors` has it",
    ),
    "E5M2": (
        lambda t: cast(t, f"{UP}.weight", torch.float8_e5m2),
        {"weight.dtype": "failed"},
        "weight.dtype",
        rf"`{UP}.weight` is F8_E5M2, where vLLM reads F8_E4M3 only",
    ),
    "a quantized output head": (
        lambda t: quantize_module(t, HEAD),
        {"module.head": "failed", "config.ignored": "failed"},
        "module.head",
        r"`lm_head\.weight` is quantized: the output head",
    ),
    "a quantized embedding": (
        lambda t: quantize_module(t, EMBEDDING),
        {"module.embedding": "failed"},
        "module.embedding",
        r"`model\.embed_tokens\.weight` is quantized: an embedding",
    ),
    "the trap of Falcon": (
        undo_like_falcon,
        {
            "config.no_fp8": "failed",
            "config.modules": "not checked",
            "scale.unquantized": "failed",
            "scale.zero_point": "failed",
        },
        "config.no_fp8",
        r"`config\.json` says E4M3 weights per .*, but no tensor holds FP8 codes",
    ),
    "a norm that is missing": (
        lambda t: t.pop("model.layers.2.input_layernorm.weight"),
        {"tensor.missing": "failed"},
        "tensor.missing",
        r"`model\.layers\.2\.input_layernorm\.weight` is missing: `LlamaForCausalLM` with 3 layers needs it",
    ),
    "an output head that is missing": (
        lambda t: t.pop("lm_head.weight"),
        {"tensor.missing": "failed"},
        "tensor.missing",
        r"`lm_head\.weight` is missing, and `tie_word_embeddings` is false",
    ),
    "a weight cut short": (
        lambda t: t.update({"model.norm.weight": t["model.norm.weight"][:5], f"{Q}.weight": t[f"{Q}.weight"][:5]}),
        {"tensor.shape": "failed", "scale.shape": "failed"},
        "tensor.shape",
        rf"`{Q}.weight` has shape \[5, \d+\], but config\.json promises \[\d+, \d+\]",
    ),
    "a tensor of another model": (
        lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}),
        {"tensor.unknown": "warning"},
        "tensor.unknown",
        r"`model\.layers\.0\.self_attn\.q_norm\.weight` is no tensor of `LlamaForCausalLM`",
    ),
    "a scale of activations that nobody asked for": (
        lambda t: t.update({f"{UP}.input_scale": torch.ones(1)}),
        {"activation.unused": "warning"},
        "activation.unused",
        rf"`{UP}.input_scale` is there, but the config says that activations are scaled at run time",
    ),
    "a scale of keys that nobody asked for": (
        lambda t: t.update({"model.layers.0.self_attn.k_scale": torch.ones(1)}),
        {"cache.unused": "warning"},
        "cache.unused",
        r"`model\.layers\.0\.self_attn\.k_scale` is there, but the config says nothing of a quantized KV cache",
    ),
}


@pytest.mark.parametrize("scheme", BOTH)
@pytest.mark.parametrize("name", [*TENSOR_FAULTS])
def test_a_fault_of_the_tensors_is_found_and_nothing_else(
    healthy: dict[str, Path], tmp_path: Path, scheme: str, name: str
) -> None:
    change, expected, check, sentence = TENSOR_FAULTS[name]
    if scheme == "FP8_BLOCK" and name.startswith("a quantized"):
        # Its scale is then of another kind than the config's, which is one fault more.
        expected = expected | {"scale.shape": "failed"}
    if scheme == "FP8_BLOCK" and name == "a weight cut short":
        # All its rows lay in one block, and still do.
        expected = {"tensor.shape": "failed"}
    folder = planted(healthy, scheme, tmp_path)
    change_tensors(folder, change)
    findings = consistency(folder)
    assert troubles(findings) == expected
    finding = found(findings, check)
    assert re.fullmatch(sentence, finding.found), finding.found
    assert finding.consequence is not None
    assert finding.remedy is not None


def test_a_scale_of_one_dimension_is_not_what_vllm_asks_for(healthy: dict[str, Path], tmp_path: Path) -> None:
    folder = planted(healthy, "FP8_DYNAMIC", tmp_path)
    change_tensors(folder, lambda t: t.update({f"{UP}.weight_scale": t[f"{UP}.weight_scale"].squeeze(1)}))
    finding = found(consistency(folder), "scale.shape")
    assert re.search(r"has shape \[\d+\], but the config asks for \[\d+, 1\]", finding.found)


# What is done to the config


def static(config: Config) -> None:
    quantization(config)["config_groups"]["group_0"]["input_activations"] = FLOAT8 | {
        "strategy": "tensor",
        "dynamic": False,
    }


def cached(config: Config, **changes: object) -> None:
    quantization(config)["kv_cache_scheme"] = FLOAT8 | {"strategy": "tensor", "dynamic": False, **changes}


CONFIG_FAULTS: dict[str, tuple[Callable[[Config], Any], dict[str, str], str, str]] = {
    "no quantization_config": (
        lambda c: c.pop("quantization_config"),
        {"config.absent": "failed"},
        "config.absent",
        r"config\.json has no quantization_config, but 21 tensors hold FP8 codes",
    ),
    "a quantization_config that is text": (
        lambda c: c.update(quantization_config="fp8"),
        {"config.broken": "failed", "config.absent": "failed"},
        "config.broken",
        r"`quantization_config` in config\.json is not a JSON object",
    ),
    "INT8": (
        lambda c: weights(c).update(type="int"),
        {"config.absent": "failed"},
        "config.absent",
        r"`config\.json` says INT8 weights per .*, but 21 tensors hold FP8 codes",
    ),
    "dense": (
        lambda c: quantization(c).update(format="dense"),
        {"config.format": "failed"},
        "config.format",
        r"`format` is `dense`, for unquantized weights, but here are 21 FP8 weights",
    ),
    "MXFP8": (
        lambda c: quantization(c).update(format="mxfp8-quantized"),
        {"config.format": "failed"},
        "config.format",
        r"`format` is `mxfp8-quantized`, for FP8 weights with scales per group of 32, but here are 21 FP8 weights",
    ),
    "another granularity": (
        lambda c: weights(c).update(strategy="tensor", block_structure=None),
        {"scale.shape": "failed"},
        "scale.shape",
        r".*has shape \[.*\], but the config asks for \[1\] with a weight \[\d+, \d+\]",
    ),
    "ignored, yet quantized": (
        lambda c: quantization(c)["ignore"].append(DOWN),
        {"config.ignored": "failed"},
        "config.ignored",
        rf"`{DOWN}.weight` holds codes, but the config lists it as ignored",
    ),
    "ignored by a pattern, yet quantized": (
        lambda c: quantization(c)["ignore"].append(r"re:.*\.o_proj$"),
        {"config.ignored": "failed"},
        "config.ignored",
        r"`model\.layers\.\{0\.\.2\}\.self_attn\.o_proj\.weight` holds codes, but the config lists it as ignored",
    ),
    "a pattern that is none": (
        lambda c: quantization(c)["ignore"].append("re:("),
        {"config.pattern": "failed"},
        "config.pattern",
        r"the pattern `re:\(` of ignored modules is no regular expression, or one that may never end",
    ),
    "a pattern that may never end": (
        lambda c: quantization(c)["ignore"].append("re:((model|layers|.)+)+$x"),
        {"config.pattern": "failed"},
        "config.pattern",
        r"the pattern .* of ignored modules is no regular expression, or one that may never end",
    ),
    "more layers than there are": (
        lambda c: c.update(num_hidden_layers=4),
        {"tensor.missing": "failed"},
        "tensor.missing",
        r".*`model\.layers\.3\.input_layernorm\.weight` is missing: `LlamaForCausalLM` with 4 layers needs it",
    ),
    "fewer layers than there are": (
        lambda c: c.update(num_hidden_layers=2),
        {"layers.beyond": "failed"},
        "layers.beyond",
        r"`model\.layers\.2\.input_layernorm\.weight` lies beyond the 2 layers that config\.json promises",
    ),
    "another width": (
        lambda c: c.update(intermediate_size=17),
        {"tensor.shape": "failed"},
        "tensor.shape",
        r"`model\.layers\.\{0\.\.2\}\.mlp\.down_proj\.weight` has shape .*, but config\.json promises \[\d+, 17\]",
    ),
    "another architecture": (
        lambda c: c.update(architectures=["GPT2LMHeadModel"]),
        {"tensor.none": "failed", "tensor.missing": "failed", "tensor.unknown": "warning"},
        "tensor.none",
        r"no Linear weight of `GPT2LMHeadModel` is here: .*",
    ),
    "a tied head that is stored": (
        lambda c: c.update(tie_word_embeddings=True),
        {"tensor.head": "warning"},
        "tensor.head",
        r"`lm_head\.weight` is stored, though `tie_word_embeddings` says that the output head is the embedding",
    ),
    "calibrated activations without scales": (
        static,
        {"activation.missing": "failed"},
        "activation.missing",
        r"`model\.layers\.\{0\.\.2\}\.mlp\.down_proj\.input_scale` is missing, though .* activations are calibrated",
    ),
    "a calibrated cache without scales": (
        cached,
        {"cache.missing": "warning"},
        "cache.missing",
        r"`model\.layers\.\{0\.\.2\}\.self_attn\.k_scale` is missing, though .* the KV cache is calibrated",
    ),
}


@pytest.mark.parametrize("scheme", BOTH)
@pytest.mark.parametrize("name", [*CONFIG_FAULTS])
def test_a_fault_of_the_config_is_found_and_nothing_else(
    healthy: dict[str, Path], tmp_path: Path, scheme: str, name: str
) -> None:
    change, expected, check, sentence = CONFIG_FAULTS[name]
    folder = planted(healthy, scheme, tmp_path)
    change_config(folder, change)
    findings = consistency(folder)
    assert troubles(findings) == expected
    said = [finding for finding in findings if finding.check == check]
    assert any(re.fullmatch(sentence, finding.found) for finding in said), said
    assert all(finding.consequence and finding.remedy for finding in said)


def test_a_config_that_promises_layers_without_end_is_answered_at_once(
    healthy: dict[str, Path], tmp_path: Path
) -> None:
    folder = planted(healthy, "FP8_DYNAMIC", tmp_path)
    change_config(folder, lambda c: c.update(num_hidden_layers=10**15))
    assert troubles(consistency(folder)) == {"tensor.missing": "failed"}


# Scales of keys and values

ATTENTIONS = [f"model.layers.{layer}.self_attn" for layer in range(3)]


def cache(*names: str, shape: tuple[int, ...] = (1,)) -> Tensors:
    return {f"{place}.{name}": torch.full(shape, 0.5) for place in ATTENTIONS for name in names}


@pytest.mark.parametrize(
    ("scales", "changes", "expected"),
    [
        (cache("k_scale", "v_scale"), {}, {}),
        (cache("k_proj.k_scale", "v_proj.v_scale", shape=()), {}, {}),
        (cache("k_proj.output_scale", "v_proj.output_scale"), {}, {}),
        (cache("kv_scale"), {}, {}),
        (cache("k_scale", "v_scale", shape=(4, 1, 1)), {"strategy": "attn_head"}, {}),
        (cache("k_scale", "v_scale", shape=(2, 1, 1)), {"strategy": "attn_head"}, {"cache.shape": "failed"}),
        ({}, {"dynamic": True}, {}),
        (cache("k_scale"), {}, {"cache.missing": "warning"}),
        (cache("k_scale", "v_scale", shape=(2, 1, 1)), {}, {"cache.shape": "failed"}),
    ],
)
def test_a_calibrated_cache_has_a_scale_for_keys_and_one_for_values(
    healthy: dict[str, Path], tmp_path: Path, scales: Tensors, changes: Config, expected: dict[str, str]
) -> None:
    folder = planted(healthy, "FP8_DYNAMIC", tmp_path)
    change_tensors(folder, lambda tensors: tensors.update(scales))
    change_config(folder, lambda config: cached(config, **changes))
    assert troubles((*consistency(folder), *values(folder))) == expected


def test_a_cache_alone_can_be_quantized(tmp_path: Path) -> None:
    config: Config = {"quantization_config": {"quant_method": "compressed-tensors", "format": "dense"}}
    cached(config)
    places = [f"model.layers.{layer}.self_attn" for layer in range(2)]
    tensors = from_shapes(llama_tensors()) | {f"{p}.{n}_scale": torch.ones(1) for p in places for n in "kv"}
    folder = write(tmp_path / "cache", tensors, LLAMA | config)
    assert troubles((*consistency(folder), *values(folder))) == {}
    dialect = look(folder)[1]
    assert (dialect.words, dialect.kv_cache) == ("only the KV cache is quantized", "E4M3 per tensor, calibrated")


# Mixtures of experts, layers for prediction, and models nobody knows


def from_shapes(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> Tensors:
    torch.manual_seed(3)
    return {name: torch.randn(shape).to(torch.bfloat16) for name, (_, shape) in shapes.items()}


DYNAMIC: Config = {
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": FLOAT8 | {"strategy": "channel", "dynamic": False},
                "input_activations": FLOAT8 | {"strategy": "token", "dynamic": True},
            }
        },
        "ignore": ["lm_head"],
    }
}


def quantize_all(tensors: Tensors) -> Tensors:
    for name in [name for name in tensors if "_proj.weight" in name or re.search(r"\.w[123]\.weight$", name)]:
        quantize_module(tensors, name.removesuffix(".weight"))
    return tensors


def test_a_mixture_of_experts_is_sound_with_its_router_in_16_bits(tmp_path: Path) -> None:
    folder = write(tmp_path / "moe", quantize_all(from_shapes(moe_tensors())), QWEN3_MOE | DYNAMIC)
    assert troubles((*consistency(folder), *values(folder))) == {}


def test_a_quantized_router_is_found(tmp_path: Path) -> None:
    tensors = quantize_all(from_shapes(moe_tensors()))
    quantize_module(tensors, "model.layers.1.mlp.gate")
    finding = found(consistency(write(tmp_path / "moe", tensors, QWEN3_MOE | DYNAMIC)), "module.router")
    assert finding.status == "failed"
    assert finding.found == "`model.layers.1.mlp.gate.weight` is quantized: a router, which chooses the experts"


def test_one_expert_in_16_bits_among_quantized_ones_is_found(tmp_path: Path) -> None:
    tensors = quantize_all(from_shapes(moe_tensors()))
    bfloat16(tensors, "model.layers.1.mlp.experts.2.down_proj")
    findings = consistency(write(tmp_path / "moe", tensors, QWEN3_MOE | DYNAMIC))
    assert troubles(findings) == {"config.uncovered": "failed", "config.shards": "failed"}


def test_one_expert_that_is_missing_is_found(tmp_path: Path) -> None:
    tensors = quantize_all(from_shapes(moe_tensors()))
    for ending in ("weight", "weight_scale"):
        del tensors[f"model.layers.1.mlp.experts.1.up_proj.{ending}"]
    findings = consistency(write(tmp_path / "moe", tensors, QWEN3_MOE | DYNAMIC))
    assert troubles(findings) == {"tensor.missing": "failed"}


def mixtral(names: tuple[str, str, str]) -> Tensors:
    shapes = {name: value for name, value in llama_tensors().items() if ".mlp." not in name}
    for layer in range(2):
        place = f"model.layers.{layer}.block_sparse_moe"
        shapes[f"{place}.gate.weight"] = ("BF16", (2, 64))
        for expert in range(2):
            for name, shape in zip(names, ((128, 64), (64, 128), (128, 64)), strict=True):
                shapes[f"{place}.experts.{expert}.{name}.weight"] = ("BF16", shape)
    return quantize_all(from_shapes(shapes))


@pytest.mark.parametrize(
    ("architecture", "names", "expected"),
    [
        ("MixtralForCausalLM", ("w1", "w2", "w3"), {}),
        ("MixtralForCausalLM", ("gate_proj", "down_proj", "up_proj"), {}),
        ("PhimoeForCausalLM", ("gate_proj", "down_proj", "up_proj"), {"experts.names": "failed"}),
    ],
)
def test_renamed_experts_load_for_mixtral_only(
    tmp_path: Path, architecture: str, names: tuple[str, str, str], expected: dict[str, str]
) -> None:
    config = LLAMA | DYNAMIC | {"architectures": [architecture], "num_local_experts": 2}
    findings = consistency(write(tmp_path / "moe", mixtral(names), config))
    said = {check: status for check, status in troubles(findings).items() if not check.startswith("tensor.")}
    assert said == expected
    assert any(finding.check == "experts.names" for finding in findings) is (names[0] == "gate_proj")


def test_layers_for_prediction_that_are_promised_and_missing_are_a_warning(tmp_path: Path) -> None:
    config = LLAMA | DYNAMIC | {"num_nextn_predict_layers": 1}
    lost = write(tmp_path / "lost", quantize_all(from_shapes(llama_tensors())), config)
    assert troubles(consistency(lost)) == {"mtp.missing": "warning"}
    tensors = quantize_all(from_shapes(llama_tensors()))
    tensors |= {"model.layers.2.eh_proj.weight": torch.ones(8, 16), "model.layers.2.enorm.weight": torch.ones(8)}
    kept = write(tmp_path / "kept", tensors, config)
    assert troubles(consistency(kept)) == {}


def test_of_an_unknown_architecture_roles_are_guessed_and_verdicts_on_them_are_warnings(tmp_path: Path) -> None:
    tensors = quantize_all(from_shapes(llama_tensors()))
    bfloat16(tensors, "model.layers.1.mlp.up_proj")
    folder = write(tmp_path / "new", tensors, LLAMA | DYNAMIC | {"architectures": ["BrandNewForCausalLM"]})
    findings = consistency(folder)
    expected = {"config.uncovered": "warning", "config.shards": "warning", "tensor.missing": "not checked"}
    assert troubles(findings) == expected
    assert "`BrandNewForCausalLM` is not in the built-in table" in found(findings, "tensor.missing").found


def test_a_file_by_itself_says_nothing_of_what_there_must_be(healthy: dict[str, Path], tmp_path: Path) -> None:
    folder = planted(healthy, "FP8_DYNAMIC", tmp_path)
    (folder / "config.json").unlink()
    assert troubles(consistency(folder)) == {"config.quantization": "not checked", "tensor.missing": "not checked"}


def test_what_may_lie_in_an_unreadable_file_is_not_said_to_be_missing(healthy: dict[str, Path], tmp_path: Path) -> None:
    folder = planted(healthy, "FP8_DYNAMIC", tmp_path)
    tensors = load_file(folder / SINGLE)
    scale = tensors.pop(f"{UP}.weight_scale")
    (folder / SINGLE).unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    save_file({f"{UP}.weight_scale": scale}, folder / "model-00002-of-00002.safetensors")
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"\0")
    finding = found(consistency(folder), "scale.missing")
    assert finding.status == "not checked"
    assert finding.found.endswith("or lies in a weight file that cannot be read")


def test_nothing_is_said_of_a_folder_without_tensors(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert troubles(consistency(folder)) == {"tensors": "not checked"}


@pytest.mark.parametrize(
    ("pattern", "is_costly"),
    [
        (r".*lm_head", False),
        (r"model\.layers\.(0|1|[0-9]+)\.(mlp|self_attn)\..*", False),
        (r"(model\.)?layers", False),
        (r"[(a|b)*]+x", False),
        (r"\(a|b\)*", False),
        (r"(a+)+", True),
        (r"(a|a)*$", True),
        (r"((b|c)d)*", True),
        (r"(x{1,9}){2,}", True),
        (r".*" * 7, True),
        ("x" * 1_001, True),
    ],
)
def test_patterns_that_may_never_end_are_told_by_their_shape(pattern: str, *, is_costly: bool) -> None:
    assert is_too_costly(pattern) is is_costly
