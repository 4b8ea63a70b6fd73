"""`fp8 convert`: every dialect into every other, or a refusal that says what would be lost.

The expected names, shapes and dtypes are written out by hand; values are held against codes × scales in float64.
"""

import json
from pathlib import Path

import pytest
import torch

from fp8cli.commands.convert import ConversionReport, ConvertRequest, Options, run
from fp8cli.commands.dequantize import DequantizeRequest
from fp8cli.commands.dequantize import run as dequantize
from fp8cli.commands.inspect import InspectRequest
from fp8cli.commands.inspect import run as inspect
from fp8cli.core.converting.targets import TARGETS
from fp8cli.errors import BadInput, Fp8Error, UsageError
from tests.checkpoints import change_tensors
from tests.dialects import CONFIG, HEADS, KV, MODULES, SHAPES, SOURCES, Tensors, decoded, load, make, same
from tests.starting import fp8

EXACT = {
    "compressed-tensors, channels": ("modelopt", "fbgemm"),
    "compressed-tensors, blocks": ("deepseek", "modelopt"),
    "compressed-tensors, static": ("fp8", "modelopt"),
    "compressed-tensors, tensors": ("fp8",),
    "fp8, dynamic": ("compressed-tensors",),
    "fp8, static": ("compressed-tensors", "modelopt"),
    "deepseek": ("compressed-tensors", "modelopt"),
    "deepseek, powers of two": ("compressed-tensors", "modelopt"),
    "modelopt, static": ("compressed-tensors", "fp8"),
    "modelopt, channels": ("compressed-tensors", "fbgemm"),
    "modelopt, blocks": ("compressed-tensors", "deepseek"),
    "fbgemm": ("compressed-tensors", "modelopt"),
}
PAIRS = [(name, target) for name, targets in EXACT.items() for target in targets]
REFUSED = [(name, target) for name in SOURCES for target in TARGETS if target not in EXACT[name]]


def convert(source: Path, out: Path, to: str, **options: object) -> ConversionReport:
    asked = {key: options.pop(key) for key in ("scheme", "requantize") if key in options}
    return run(ConvertRequest(options=Options(model=str(source), out=out, **options), to=to, **asked))  # type: ignore[arg-type]


def expected_scale(target: str, granularity: str, rows: int, columns: int) -> tuple[str, list[int]]:
    """Last part of its name, and its shape."""
    blocks = [-(-rows // 128), -(-columns // 128)]
    table: dict[tuple[str, str], tuple[str, list[int]]] = {
        ("compressed-tensors", "tensor"): ("weight_scale", [1]),
        ("compressed-tensors", "channel"): ("weight_scale", [rows, 1]),
        ("compressed-tensors", "block"): ("weight_scale", blocks),
        ("fp8", "tensor"): ("weight_scale", []),
        ("deepseek", "block"): ("weight_scale_inv", blocks),
        ("modelopt", "tensor"): ("weight_scale", []),
        ("modelopt", "channel"): ("weight_scale", [rows]),
        ("modelopt", "block"): ("weight_scale", [blocks[0], 1, blocks[1], 1]),
        ("fbgemm", "channel"): ("weight_scale", [rows, 1]),
    }
    return table[target, granularity]


def granularity_of(name: str) -> str:
    if "static" in name or name.rpartition(" ")[2] == "tensors" or "dynamic" in name:
        return "tensor"
    return "block" if "deepseek" in name or "blocks" in name else "channel"


@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_codes_stay_bit_for_bit_scales_value_for_value_under_the_other_dialects_names(
    tmp_path: Path, name: str, target: str
) -> None:
    source = make(tmp_path / "source", name)
    report = convert(source, tmp_path / "out", target)
    before, after = load(source), load(tmp_path / "out")
    for module in MODULES:
        assert torch.equal(before[f"{module}.weight"].view(torch.uint8), after[f"{module}.weight"].view(torch.uint8))
        assert torch.equal(decoded(before, module), decoded(after, module))
        ending, shape = expected_scale(target, granularity_of(name), *SHAPES[module.partition(".layers.")[2][2:]])
        scale = after[f"{module}.{ending}"]
        assert list(scale.shape) == shape
        if target != "compressed-tensors":
            assert scale.dtype == torch.float32
    unquantized = [key for key in before if not key.startswith(MODULES)]
    same({key: before[key] for key in unquantized}, {key: after[key] for key in unquantized})
    endings = {key.rpartition(".")[2] for key in after}
    static = {"input_scale"} if "static" in name else set()
    assert endings == {"weight", expected_scale(target, granularity_of(name), 1, 1)[0], *static}
    assert report.bit_exact
    assert all(finding.status == "passed" for finding in report.findings), report.findings


@pytest.mark.parametrize(("name", "target"), [pair for pair in PAIRS if "powers" not in pair[0]])
def test_there_and_back_is_the_same_to_the_byte(tmp_path: Path, name: str, target: str) -> None:
    source = make(tmp_path / "source", name)
    convert(source, tmp_path / "there", target)
    convert(tmp_path / "there", tmp_path / "back", name.partition(",")[0])
    same(load(source), load(tmp_path / "back"))


def test_powers_of_two_come_back_as_float32_of_the_same_value(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek, powers of two")
    there = convert(source, tmp_path / "there", "compressed-tensors")
    assert any("scale_fmt" in note for note in there.notes)
    # All are numbers of bfloat16 too, so they are stored as compressed-tensors itself would.
    assert load(tmp_path / "there")[f"{MODULES[0]}.weight_scale"].dtype == torch.bfloat16
    convert(tmp_path / "there", tmp_path / "back", "deepseek")
    before, after = load(source), load(tmp_path / "back")
    for module in MODULES:
        assert after[f"{module}.weight_scale_inv"].dtype == torch.float32
        assert torch.equal(decoded(before, module), decoded(after, module))


@pytest.mark.parametrize(("name", "target"), REFUSED)
def test_what_would_lose_bits_is_refused_and_leaves_nothing(tmp_path: Path, name: str, target: str) -> None:
    source = make(tmp_path / "source", name)
    with pytest.raises(Fp8Error) as refused:
        convert(source, tmp_path / "out", target)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    if name.partition(",")[0] == target:
        assert isinstance(refused.value, UsageError)
        assert refused.value.message.endswith("already")
        return
    assert isinstance(refused.value, BadInput)
    assert "has no words for what" in refused.value.message
    assert refused.value.hint is not None
    for other in EXACT[name]:
        assert other in refused.value.hint
    assert "--requantize" in refused.value.hint


@pytest.mark.parametrize("name", ["deepseek", "fp8, dynamic"])
def test_scales_that_bfloat16_cannot_hold_stay_float32_and_this_is_said(tmp_path: Path, name: str) -> None:
    report = convert(make(tmp_path / "source", name), tmp_path / "out", "compressed-tensors")
    assert {tensor.dtype for key, tensor in load(tmp_path / "out").items() if "scale" in key} == {torch.float32}
    assert any(f"{len(MODULES)} scales stay float32" in note for note in report.notes)


CONFIGS = {
    "fp8": {"activation_scheme": "static", "ignored_layers": ["lm_head"], "quant_method": "fp8"},
    "deepseek": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "modules_to_not_convert": ["lm_head"],
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "fbgemm": {"activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"], "quant_method": "fbgemm_fp8"},
}
FROM = {
    "fp8": "compressed-tensors, static",
    "deepseek": "compressed-tensors, blocks",
    "fbgemm": "compressed-tensors, channels",
}


@pytest.mark.parametrize("target", CONFIGS)
def test_config_says_what_the_dialects_own_tools_say_and_nothing_else_changes(tmp_path: Path, target: str) -> None:
    out = convert(make(tmp_path / "source", FROM[target]), tmp_path / "out", target).out
    assert json.loads((out / "config.json").read_text()) == CONFIG | {"quantization_config": CONFIGS[target]}


def test_modelopt_has_a_file_of_its_own_which_no_other_dialect_keeps(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "compressed-tensors, static")
    (source / "recipe.yaml").write_text("default_stage: {}\n")
    out = convert(source, tmp_path / "out", "modelopt").out
    block = json.loads((out / "config.json").read_text())["quantization_config"]
    assert (block["quant_method"], block["quant_algo"], block["ignore"]) == ("modelopt", "FP8", ["lm_head"])
    own = json.loads((out / "hf_quant_config.json").read_text())["quantization"]
    assert own == {"exclude_modules": ["lm_head"], "kv_cache_quant_algo": None, "quant_algo": "FP8"}
    back = convert(out, tmp_path / "back", "compressed-tensors").out
    assert sorted(path.name for path in back.iterdir()) == [
        "README.md",
        "config.json",
        "fp8.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("key", ["compression_config", "text_config"])
def test_an_old_or_nested_quantization_config_goes_too(tmp_path: Path, key: str) -> None:
    source = make(tmp_path / "source", "compressed-tensors, channels")
    config = json.loads((source / "config.json").read_text())
    block = config.pop("quantization_config")
    config[key] = {"quantization_config": block} if key == "text_config" else block
    (source / "config.json").write_text(json.dumps(config))
    out = convert(source, tmp_path / "out", "fbgemm").out
    text = (out / "config.json").read_text()
    assert "config_groups" not in text
    assert "compression_config" not in text
    assert json.loads(text)["quantization_config"]["quant_method"] == "fbgemm_fp8"


def test_the_line_that_serves_fbgemm_asks_vllm_to_load_what_it_calls_deprecated(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "compressed-tensors, channels")
    report = convert(source, tmp_path / "out", "fbgemm")
    assert report.serve_command == f"vllm serve {tmp_path / 'out'} --allow-deprecated-quantization"
    assert "vllm serve out --allow-deprecated-quantization" in (tmp_path / "out" / "README.md").read_text("utf-8")
    assert convert(source, tmp_path / "other", "modelopt").serve_command == f"vllm serve {tmp_path / 'other'}"


# The KV cache


def cache(place: str, shape: list[int], dtype: torch.dtype) -> Tensors:
    """Scales of two layers; `place` has {kind}."""
    return {
        f"model.layers.{layer}.self_attn.{place.format(kind=kind)}": torch.full(shape, 0.5 + layer).to(dtype)
        for layer in range(2)
        for kind in "kv"
    }


CACHES = {
    "compressed-tensors": ("compressed-tensors, static", "{kind}_scale", [1], torch.bfloat16, KV),
    "fp8": ("fp8, static", "{kind}_scale", [], torch.float32, {}),
    "modelopt": (
        "modelopt, static",
        "{kind}_proj.{kind}_scale",
        [],
        torch.float32,
        {"kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}},
    ),
}


@pytest.mark.parametrize(("name", "target"), [(a, b) for a in CACHES for b in CACHES if a != b])
def test_scales_of_the_kv_cache_find_their_places_and_come_back(tmp_path: Path, name: str, target: str) -> None:
    dialect, place, shape, dtype, declared = CACHES[name]
    source = make(tmp_path / "source", dialect, cache(place, shape, dtype), **declared)
    report = convert(source, tmp_path / "there", target)
    _, place, shape, _, _ = CACHES[target]
    there = load(tmp_path / "there")
    for layer in range(2):
        for kind in "kv":
            scale = there[f"model.layers.{layer}.self_attn.{place.format(kind=kind)}"]
            assert (list(scale.shape), float(scale.reshape(()))) == (shape, 0.5 + layer)
    told = json.loads((tmp_path / "there" / "config.json").read_text())["quantization_config"].get("kv_cache_scheme")
    assert (told is not None) is (target != "fp8")
    assert any("--kv-cache-dtype fp8" in note for note in report.notes) is ("fp8" in {name, target})
    convert(tmp_path / "there", tmp_path / "back", name)
    same(load(source), load(tmp_path / "back"))


def test_autofp8s_old_names_and_its_one_scale_for_both_are_understood(tmp_path: Path) -> None:
    source = make(tmp_path / "old", "fp8, static", cache("{kind}_proj.output_scale", [], torch.float32))
    convert(source, tmp_path / "out", "modelopt")
    assert float(load(tmp_path / "out")["model.layers.1.self_attn.v_proj.v_scale"]) == 1.5
    both = {f"model.layers.{layer}.self_attn.kv_scale": torch.tensor(0.25) for layer in range(2)}
    convert(make(tmp_path / "older", "fp8, static", both), tmp_path / "new", "compressed-tensors")
    tensors = load(tmp_path / "new")
    assert {float(tensors[f"model.layers.0.self_attn.{kind}_scale"]) for kind in "kv"} == {0.25}


def test_scales_of_every_head_stay_where_they_have_a_place(tmp_path: Path) -> None:
    heads = {"kv_cache_scheme": KV["kv_cache_scheme"] | {"strategy": "attn_head"}}
    scales = cache("{kind}_scale", [HEADS, 1, 1], torch.bfloat16)
    source = make(tmp_path / "source", "compressed-tensors, static", scales, **heads)
    with pytest.raises(BadInput, match=r"has no place for KV scales of every head \(first: `model.layers.0.self_attn"):
        convert(source, tmp_path / "out", "modelopt")


def test_fbgemm_has_no_place_for_a_kv_cache(tmp_path: Path) -> None:
    scales = cache("{kind}_scale", [1], torch.bfloat16)
    source = make(tmp_path / "source", "compressed-tensors, channels", scales, **KV)
    with pytest.raises(BadInput, match="no place for the 4 scales of the FP8 KV cache"):
        convert(source, tmp_path / "out", "fbgemm")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_bound_of_fbgemms_activations_is_said_to_go(tmp_path: Path) -> None:
    bounds = {f"{module}.input_scale_ub": torch.tensor([1200.0]) for module in MODULES}
    report = convert(make(tmp_path / "source", "fbgemm", bounds), tmp_path / "out", "compressed-tensors")
    assert report.notes[0] == f"{len(MODULES)} upper bounds of activations (`input_scale_ub`) are not carried over"
    assert not [key for key in load(tmp_path / "out") if key.endswith("_ub")]


def test_what_transformers_saves_with_one_scale_per_tensor_is_understood(tmp_path: Path) -> None:
    """Its FineGrainedFP8 without blocks: `weight_scale_inv` and `activation_scale`, each a number that multiplies."""
    source = make(tmp_path / "source", "fp8, static", weight_block_size=None)
    names = {"weight_scale": "weight_scale_inv", "input_scale": "activation_scale"}

    def rename(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.rpartition(".")[2] in names]:
            parent, _, last = key.rpartition(".")
            tensors[f"{parent}.{names[last]}"] = tensors.pop(key)

    change_tensors(source, rename)
    out = load(convert(source, tmp_path / "out", "modelopt").out)
    same(out, load(convert(make(tmp_path / "usual", "fp8, static"), tmp_path / "other", "modelopt").out))


# What cannot be understood


def test_a_weight_without_its_scale_is_refused(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    change_tensors(source, lambda tensors: tensors.pop(f"{MODULES[3]}.weight_scale_inv"))
    with pytest.raises(BadInput, match=f"`{MODULES[3]}.weight` has no scale, so its codes mean nothing"):
        convert(source, tmp_path / "out", "compressed-tensors")


def test_an_unquantized_checkpoint_is_refused_with_the_way_to_quantize_it(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    convert(source, tmp_path / "ct", "compressed-tensors")
    dequantize(DequantizeRequest(options=Options(model=str(source), out=tmp_path / "plain")))
    with pytest.raises(BadInput, match="is not quantized: unquantized BF16") as refused:
        convert(tmp_path / "plain", tmp_path / "out", "deepseek")
    assert "fp8 quantize" in str(refused.value.hint)


def test_a_scale_that_is_nan_is_not_published(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    change_tensors(source, lambda tensors: tensors[f"{MODULES[0]}.weight_scale_inv"].fill_(float("nan")))
    with pytest.raises(BadInput, match="not sound and is not published"):
        convert(source, tmp_path / "out", "compressed-tensors")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_name_that_vllm_would_take_for_an_excluded_one_is_refused(tmp_path: Path) -> None:
    """ModelOpt's reader searches names for the excluded ones; `mlp.gate` is a part of `mlp.gate_proj`."""
    router = {f"model.layers.{layer}.mlp.gate.weight": torch.ones(4, 256).to(torch.bfloat16) for layer in range(2)}
    source = make(tmp_path / "source", "compressed-tensors, channels", router)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["ignore"] += [name.removesuffix(".weight") for name in router]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"would take `model\.layers\.0\.mlp\.gate_proj` for unquantized"):
        convert(source, tmp_path / "out", "modelopt")


# The command


def test_the_screen_names_both_dialects_and_says_that_nothing_was_rounded(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    done = fp8(tmp_path, "convert", source, "--to", "compressed-tensors", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    scheme = "E4M3 weights per 128×128 block, activations per group of 128 at run time"
    assert lines[:3] == [
        f"{source} → {tmp_path / 'out'}",
        f"before  DeepSeek block FP8: {scheme}",
        f"after   compressed-tensors: {scheme}",
    ]
    assert "every weight keeps its codes bit for bit, every scale its value" in lines
    assert lines[-1] == f"vllm serve {tmp_path / 'out'}"
    # Renaming takes no arithmetic, and numpy is for the gate.
    assert done.loaded == ["numpy"]


def test_a_dry_run_writes_nothing_and_adds_up_to_the_real_run(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "compressed-tensors, blocks")
    planned = convert(source, tmp_path / "out", "deepseek", dry_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    done = convert(source, tmp_path / "out", "deepseek")
    for key in ("counts", "bytes_before", "bytes_after", "bytes_written", "tensors", "notes", "kept_modules"):
        assert getattr(planned, key) == getattr(done, key)
    assert done.bytes_written == (tmp_path / "out" / "model.safetensors").stat().st_size


def test_json_has_it_all_and_errors_have_their_codes(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    done = fp8(tmp_path, "convert", source, "--to", "ct", "-o", tmp_path / "out", "--json")
    assert done.report["bit_exact"] is True
    assert done.report["dialect_after"] == "compressed-tensors"
    assert len(done.report["tensors"]) == len(load(source))
    wrong = fp8(tmp_path, "convert", source, "--to", "gguf", "-o", tmp_path / "no")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err == (
        "error: `gguf` is no dialect of FP8 that can be written\n\n"
        "hint: --to takes one of compressed-tensors, fp8, deepseek, modelopt, fbgemm\n"
    )
    lost = fp8(tmp_path, "convert", source, "--to", "fbgemm", "-o", tmp_path / "no", "--json")
    assert lost.code == 3
    assert "--requantize" in json.loads(lost.out)["error"]["hint"]


def test_the_card_says_what_it_was_and_is_and_keeps_the_licence(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    (source / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Source\n")
    card = (convert(source, tmp_path / "out", "compressed-tensors").out / "README.md").read_text()
    assert card.startswith(
        "---\nlicense: mit\nlibrary_name: transformers\ntags:\n- fp8\n- vllm\n- compressed-tensors\n---\n"
    )
    for words in ("DeepSeek block FP8: E4M3 weights per 128×128 block", "bit for bit", "`lm_head`", "vllm serve out"):
        assert words in card


def test_what_comes_out_is_healthy_to_inspect(tmp_path: Path) -> None:
    convert(make(tmp_path / "source", "modelopt, blocks"), tmp_path / "out", "deepseek")
    report = inspect(InspectRequest(source=tmp_path / "out"))
    assert not [finding for finding in report.findings if finding.status == "failed"]
