"""`fp8 dequantize`: codes times scales, held against float64, torch, compressed-tensors and transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fp8cli.commands.convert import ConvertRequest
from fp8cli.commands.convert import run as run_convert
from fp8cli.commands.dequantize import ConversionReport, DequantizeRequest, Options, run
from fp8cli.commands.quantize import QuantizeRequest
from fp8cli.commands.quantize import run as quantize
from fp8cli.errors import BadInput, UsageError
from tests.checkpoints import BUNDLED, change_tensors, quantize_bundled, write
from tests.dialects import CONFIG, KV, MODULES, SOURCES, Tensors, compressed, decoded, load, make, model_tensors, same
from tests.models import ODD, llama_config, save_model
from tests.starting import fp8

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def dequantize(source: Path, out: Path, dtype: str = "auto", **options: object) -> ConversionReport:
    return run(DequantizeRequest(options=Options(model=str(source), out=out, **options), dtype=dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SOURCES)
def test_every_dialect_becomes_code_times_scale_in_float32_rounded_once(tmp_path: Path, name: str, dtype: str) -> None:
    source = make(tmp_path / "source", name)
    report = dequantize(source, tmp_path / "out", dtype)
    before, after = load(source), load(tmp_path / "out")
    for module in MODULES:
        # The product of two float32 numbers is exact in float64, so this rounds as float32 does.
        assert torch.equal(after[f"{module}.weight"], decoded(before, module).float().to(DTYPES[dtype])), module
    others = [key for key in before if not key.startswith(MODULES)]
    assert sorted(after) == sorted([*others, *(f"{module}.weight" for module in MODULES)])
    same({key: before[key] for key in others}, {key: after[key] for key in others})
    assert json.loads((report.out / "config.json").read_text()) == CONFIG | {"torch_dtype": dtype}
    assert not report.bit_exact
    assert all(finding.status in {"passed", "warning"} for finding in report.findings)


def test_memory_workers_and_pieces_change_no_byte(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    wanted = (dequantize(source, tmp_path / "a").out / "model.safetensors").read_bytes()
    for number, options in enumerate(({"workers": 3, "piece_bytes": 1}, {"max_memory": "20kB", "piece_bytes": 7000})):
        out = dequantize(source, tmp_path / str(number), **options).out
        assert (out / "model.safetensors").read_bytes() == wanted, options


def test_a_scale_may_lie_in_another_shard_than_its_codes(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    wanted = load(dequantize(source, tmp_path / "whole").out)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": False, "model-00002-of-00002.safetensors": True}
    weight_map: dict[str, str] = {}
    for shard, scales in shards.items():
        part = {key: tensor for key, tensor in tensors.items() if key.endswith("_inv") is scales}
        save_file(part, source / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    out = dequantize(source, tmp_path / "out", piece_bytes=3000).out
    same(wanted, load(out))
    # The shard that held nothing but scales is gone, and the index does not name it.
    assert [path.name for path in out.glob("*.safetensors")] == ["model-00001-of-00002.safetensors"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == dict.fromkeys(sorted(wanted), "model-00001-of-00002.safetensors")


def test_scales_of_mx_groups_are_powers_of_two(tmp_path: Path) -> None:
    def by_group(weight: torch.Tensor) -> Tensors:
        exponents = torch.randint(110, 125, (weight.shape[0], weight.shape[1] // 32), dtype=torch.uint8)
        return {"weight": weight.to(torch.float8_e4m3fn), "weight_scale": exponents}

    config = CONFIG | {"quantization_config": {"quant_method": "mxfp8"}}
    source = write(tmp_path / "source", model_tensors(by_group), config)
    before, after = load(source), load(dequantize(source, tmp_path / "out").out)
    for module in MODULES:
        powers = torch.exp2(before[f"{module}.weight_scale"].float() - 127).repeat_interleave(32, dim=1)
        assert torch.equal(after[f"{module}.weight"], (before[f"{module}.weight"].float() * powers).bfloat16())


def test_blocks_that_end_within_a_weight_are_decoded_to_its_edge(tmp_path: Path) -> None:
    """Sizes 208 and 344; one scale a tensor is found beside scales [1, 1] and [2, 3]."""
    plain = save_model(tmp_path / "plain", llama_config(**ODD))
    quantize(QuantizeRequest(model=str(plain), out=tmp_path / "source", scheme="FP8_BLOCK"))
    before = load(tmp_path / "source")
    after = load(dequantize(tmp_path / "source", tmp_path / "out", piece_bytes=5000).out)
    modules = [key.removesuffix("_scale").removesuffix(".weight") for key in before if key.endswith("_scale")]
    assert len(modules) == 14
    for module in modules:
        assert torch.equal(after[f"{module}.weight"], decoded(before, module).float().bfloat16()), module


FUSED = {"tensor": [4, 1, 1], "all": [1], "channel": [4, 256, 1], "block": [4, 2, 3]}


@pytest.mark.parametrize("sharing", FUSED)
def test_experts_in_one_tensor_are_decoded_each_with_its_own_scales(tmp_path: Path, sharing: str) -> None:
    """As Qwen3-VL's: `experts.gate_up_proj` [experts, rows, columns] beside `gate_up_proj_scale_inv`."""
    torch.manual_seed(4)
    codes = torch.randn(4, 256, 320).to(torch.float8_e4m3fn)
    scale = torch.rand(FUSED[sharing]) + 0.1
    name = "model.layers.0.mlp.experts.gate_up_proj"
    ending = "_scale_inv" if sharing == "block" else "_scale"
    source = make(
        tmp_path / "source",
        "deepseek" if sharing == "block" else "fp8, dynamic",
        {name: codes, f"{name}{ending}": scale},
    )
    after = load(dequantize(source, tmp_path / "out", piece_bytes=7000).out)
    if sharing == "block":
        scale = scale.repeat_interleave(128, 1).repeat_interleave(128, 2)[:, :256, :320]
    assert torch.equal(after[name], (codes.float() * scale).bfloat16())
    assert f"{name}{ending}" not in after
    with pytest.raises(BadInput, match="holds all experts of a layer in one tensor"):
        run_convert(ConvertRequest(options=Options(model=str(source), out=tmp_path / "no"), to="compressed-tensors"))


def test_blocks_that_reach_from_one_expert_into_the_next_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    fused = {name: torch.ones(4, 200, 128).to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(4, 2, 1)}
    with pytest.raises(BadInput, match=r"is F32 \[4, 2, 1\], which is not understood as the scale of \[4, 200, 128\]"):
        dequantize(make(tmp_path / "source", "deepseek", fused), tmp_path / "out")


# What is refused


def test_a_number_beyond_float16_is_refused_by_name_and_place(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")

    def enlarge(tensors: Tensors) -> None:
        tensors[f"{MODULES[1]}.weight_scale_inv"][1, 0] = 200.0
        tensors[f"{MODULES[1]}.weight"][130, 5] = 448.0
        tensors[f"{MODULES[1]}.weight"][128:130, :128] = 0
        tensors[f"{MODULES[1]}.weight"][130, :5] = 0

    change_tensors(source, enlarge)
    with pytest.raises(BadInput) as refused:
        dequantize(source, tmp_path / "out", "float16")
    assert refused.value.message == (
        f"`{MODULES[1]}.weight` holds 89600 at row 130, column 5, beyond the largest number of float16"
    )
    assert refused.value.hint == "use --dtype bfloat16, which reaches as far as float32"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    dequantize(source, tmp_path / "out", "bfloat16")


@pytest.mark.parametrize("what", ["code", "scale"])
def test_nan_is_refused_by_name_and_place(tmp_path: Path, what: str) -> None:
    source = make(tmp_path / "source", "modelopt, channels")

    def damage(tensors: Tensors) -> None:
        if what == "code":
            tensors[f"{MODULES[2]}.weight"].view(torch.uint8)[7, 9] = 0x7F
        else:
            tensors[f"{MODULES[2]}.weight_scale"][7] = float("nan")

    change_tensors(source, damage)
    with pytest.raises(BadInput) as refused:
        dequantize(source, tmp_path / "out")
    column = 9 if what == "code" else 0
    assert refused.value.message == (
        f"`{MODULES[2]}.weight` stands for NaN at row 7, column {column}: a code or its scale is damaged"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_not_fp8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not quantized: unquantized BF16"):
        dequantize(BUNDLED, tmp_path / "out")
    source = make(tmp_path / "source", "deepseek")
    with pytest.raises(UsageError, match="`int8` is no dtype that codes can become"):
        dequantize(source, tmp_path / "out", "int8")
    with pytest.raises(UsageError, match="would replace its own source"):
        dequantize(source, source)


def test_other_codes_beside_fp8_are_refused(tmp_path: Path) -> None:
    packed = {"model.layers.0.mlp.extra_proj.weight_packed": torch.zeros(8, 4, dtype=torch.int32)}
    source = make(tmp_path / "source", "compressed-tensors, channels", packed)
    with pytest.raises(BadInput, match=r"holds codes that are not FP8, such as `model\.layers\.0\.mlp\.extra_proj"):
        dequantize(source, tmp_path / "out")


# What goes, and is said to go


def test_scales_of_cache_and_activations_go_and_this_is_said(tmp_path: Path) -> None:
    cache = {f"model.layers.{layer}.self_attn.{kind}_scale": torch.ones(1) for layer in range(2) for kind in "kv"}
    report = dequantize(make(tmp_path / "source", "compressed-tensors, static", cache, **KV), tmp_path / "out")
    assert report.notes == (
        "4 scales of an FP8 KV cache are dropped: the result keeps its cache in 16 bits",
        f"{len(MODULES)} calibrated scales of activations are dropped",
    )
    assert not [key for key in load(report.out) if "scale" in key]


def test_a_kv_cache_alone_is_dropped_and_has_no_other_dialect(tmp_path: Path) -> None:
    cache = {f"model.layers.{layer}.self_attn.{kind}_scale": torch.ones(1) for layer in range(2) for kind in "kv"}
    tensors = model_tensors(lambda weight: {"weight": weight.to(torch.bfloat16)})
    block = compressed("tensor", None, format="dense", config_groups={}, ignore=[], **KV)
    source = write(tmp_path / "source", tensors | cache, CONFIG | {"quantization_config": block})
    report = dequantize(source, tmp_path / "out")
    same(tensors, load(report.out))
    assert report.notes == ("4 scales of an FP8 KV cache are dropped: the result keeps its cache in 16 bits",)
    with pytest.raises(BadInput, match="has a quantized KV cache alone, for which ModelOpt has no words"):
        run_convert(ConvertRequest(options=Options(model=str(source), out=tmp_path / "no"), to="modelopt"))


def test_files_of_the_quantizer_go_and_others_stay(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "modelopt, static")
    for file in ("hf_quant_config.json", "recipe.yaml", "tokenizer_config.json", "LICENSE"):
        (source / file).write_text("{}")
    out = dequantize(source, tmp_path / "out").out
    assert sorted(path.name for path in out.iterdir()) == [
        "LICENSE",
        "README.md",
        "config.json",
        "fp8.json",
        "model.safetensors",
        "tokenizer_config.json",
    ]


# Against other readers, and back


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_what_is_dequantized_and_quantized_again_decodes_to_the_same_within_a_step_of_the_scale(
    tmp_path: Path, scheme: str
) -> None:
    """448 × scale is rounded to bfloat16 and divided by 448 again: the scale may move by its last bit, codes hardly."""
    first = quantize_bundled(tmp_path / "first", scheme)
    dequantize(first, tmp_path / "plain")
    second = quantize(QuantizeRequest(model=str(tmp_path / "plain"), out=tmp_path / "second", scheme=scheme)).out
    before, after = load(first), load(second)
    for name, tensor in before.items():
        if name.endswith("_scale"):
            assert torch.allclose(tensor.float(), after[name].float(), rtol=2**-7, atol=0), name


def test_dequantized_to_float32_and_quantized_again_gives_the_same_codes_where_scales_hold_448(tmp_path: Path) -> None:
    """In float32, 448 × scale / 448 is the scale again, and each code × scale / scale is its code."""
    source = make(tmp_path / "source", "compressed-tensors, channels")
    change_tensors(source, lambda tensors: [tensors[f"{module}.weight"][:, 0].fill_(448.0) for module in MODULES])
    dequantize(source, tmp_path / "plain", "float32")
    again = quantize(QuantizeRequest(model=str(tmp_path / "plain"), out=tmp_path / "again", dtype="float32")).out
    before, after = load(source), load(again)
    for module in MODULES:
        assert torch.equal(before[f"{module}.weight"].float(), after[f"{module}.weight"].float())
        assert torch.equal(before[f"{module}.weight_scale"].float(), after[f"{module}.weight_scale"])


@pytest.mark.parametrize("name", ["compressed-tensors, channels", "compressed-tensors, blocks"])
def test_compressed_tensors_own_decompression_gives_the_same_weights(tmp_path: Path, name: str) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize as their_dequantize

    source = make(tmp_path / "source", name)
    out = load(dequantize(source, tmp_path / "out").out)
    before = load(source)
    arguments = SOURCES[name][1]["config_groups"]["group_0"]["weights"]
    for module in MODULES:
        codes, scale = before[f"{module}.weight"], before[f"{module}.weight_scale"]
        theirs = their_dequantize(codes, scale, args=QuantizationArgs(**arguments), dtype=torch.bfloat16)
        assert torch.equal(out[f"{module}.weight"], theirs), module


def test_transformers_reads_deepseeks_codes_as_the_same_weights_and_gives_the_same_logits(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = make(tmp_path / "source", "deepseek")
    plain = dequantize(source, tmp_path / "plain").out
    request = ConvertRequest(options=Options(model=str(source), out=tmp_path / "ct"), to="compressed-tensors")
    there = run_convert(request).out
    back = run_convert(ConvertRequest(options=Options(model=str(there), out=tmp_path / "back"), to="deepseek")).out
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(folder)(tokens).logits for folder in (source, plain, back)]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_transformers_reads_the_converted_scales_in_float32_as_they_are(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    source = make(tmp_path / "source", "deepseek")
    request = ConvertRequest(options=Options(model=str(source), out=tmp_path / "ct"), to="compressed-tensors")
    wanted = load(dequantize(source, tmp_path / "plain", "float32").out)
    model = AutoModelForCausalLM.from_pretrained(
        run_convert(request).out, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    weights = dict(model.named_parameters())
    for module in MODULES:
        assert torch.equal(weights[f"{module}.weight"], wanted[f"{module}.weight"]), module


# The command


def test_the_screen_says_what_went_and_json_has_it_all(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    done = fp8(tmp_path, "dequantize", source, "-o", tmp_path / "out", "--details")
    assert done.code == 0, done.err
    count = len(MODULES)
    assert done.out.splitlines()[1:3] == [
        "before  DeepSeek block FP8: E4M3 weights per 128×128 block, activations per group of 128 at run time",
        "after   bfloat16: nothing is quantized",
    ]
    assert f"tensors: 7 copied unchanged, {count} dequantized, {count} left out" in done.out
    again = fp8(tmp_path, "dequantize", source, "-o", tmp_path / "out", "--overwrite", "--json", "--dtype", "float16")
    assert again.report["dialect_after"] == "float16"
    assert again.report["counts"] == {"copy": 7, "dequantize": count, "drop": count}


def test_the_default_name_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "source", "deepseek")
    monkeypatch.chdir(tmp_path)
    request = DequantizeRequest(options=Options(model=str(source)), dtype="bfloat16")
    assert run(request).out == Path("source-BF16")
    assert (tmp_path / "source-BF16" / "config.json").is_file()
    run_convert(ConvertRequest(options=Options(model=str(source)), to="modelopt"))
    assert (tmp_path / "source-modelopt" / "hf_quant_config.json").is_file()
