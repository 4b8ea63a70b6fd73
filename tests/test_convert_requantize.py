"""`fp8 convert --requantize`, and what conversions share with `fp8 quantize`: interruption, full disks, odd shapes."""

import errno
import hashlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from fp8cli.commands.convert import ConversionReport, ConvertRequest, Options, run
from fp8cli.commands.dequantize import DequantizeRequest
from fp8cli.commands.dequantize import run as dequantize
from fp8cli.commands.quantize import QuantizeRequest
from fp8cli.commands.quantize import run as quantize
from fp8cli.core.quantizing.engine import Progress
from fp8cli.errors import BadInput, CannotRun, Fp8Error, Interrupted, UsageError
from fp8cli.formats.staging import partial_folder
from tests.checkpoints import change_tensors
from tests.dialects import MODULES, SOURCES, Tensors, decoded, load, make, same
from tests.models import ODD, llama_config, save_model


def convert(source: Path, out: Path, to: str, **options: object) -> ConversionReport:
    asked = {key: options.pop(key) for key in ("scheme", "requantize") if key in options}
    return run(ConvertRequest(options=Options(model=str(source), out=out, **options), to=to, **asked))  # type: ignore[arg-type]


REQUANTIZED = [
    ("deepseek", "compressed-tensors", "FP8_DYNAMIC"),
    ("compressed-tensors, channels", "deepseek", "FP8_BLOCK"),
    ("compressed-tensors, static", "fbgemm", "FP8_DYNAMIC"),
    ("compressed-tensors, channels", "compressed-tensors", "FP8_BLOCK"),
    ("fp8, static", "modelopt", "FP8_DYNAMIC"),
    ("deepseek, powers of two", "fbgemm", "FP8_DYNAMIC"),
]


@pytest.mark.parametrize(("name", "target", "scheme"), REQUANTIZED)
def test_requantizing_is_dequantizing_to_float32_and_quantizing_that(
    tmp_path: Path, name: str, target: str, scheme: str
) -> None:
    source = make(tmp_path / "source", name)
    report = convert(source, tmp_path / "out", target, requantize=True, scheme=scheme)
    assert not report.bit_exact
    assert report.counts["requantize"] == len(MODULES)
    dequantize(DequantizeRequest(options=Options(model=str(source), out=tmp_path / "plain"), dtype="float32"))
    again = quantize(
        QuantizeRequest(model=str(tmp_path / "plain"), out=tmp_path / "again", scheme=scheme, dtype="float32")
    ).out
    wanted, found = load(again), load(report.out)
    for module in MODULES:
        assert torch.equal(wanted[f"{module}.weight"].view(torch.uint8), found[f"{module}.weight"].view(torch.uint8))
        ending = "weight_scale_inv" if target == "deepseek" else "weight_scale"
        scale = found[f"{module}.{ending}"]
        assert scale.dtype == torch.float32
        assert torch.equal(wanted[f"{module}.weight_scale"].reshape(-1), scale.reshape(-1))
    assert not [key for key in found if key.endswith("input_scale")]


def test_one_scale_per_tensor_is_made_of_finer_ones(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    out = load(convert(source, tmp_path / "out", "fp8", requantize=True, piece_bytes=1000, max_memory="300kB").out)
    before = load(source)
    for module in MODULES:
        weight = decoded(before, module).float()
        scale = weight.abs().amax() / 448
        assert torch.equal(out[f"{module}.weight_scale"], scale)
        assert torch.equal(out[f"{module}.weight"].float(), (weight / scale).to(torch.float8_e4m3fn).float())


def test_the_permission_to_requantize_changes_nothing_where_nothing_must_be(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    report = convert(source, tmp_path / "out", "compressed-tensors", requantize=True)
    assert report.bit_exact
    same(load(report.out), load(convert(source, tmp_path / "exact", "compressed-tensors").out))


@pytest.mark.parametrize(
    ("to", "scheme", "words"),
    [
        ("deepseek", "FP8_DYNAMIC", "DeepSeek block FP8 has no scheme `FP8_DYNAMIC`"),
        ("modelopt", "FP8", "`FP8` needs scales of activations, which only calibration finds"),
        ("compressed-tensors", "INT4", "compressed-tensors has no scheme `INT4`"),
    ],
)
def test_a_scheme_that_cannot_be_is_a_usage_error(tmp_path: Path, to: str, scheme: str, words: str) -> None:
    source = make(tmp_path / "source", "compressed-tensors, channels")
    with pytest.raises(UsageError) as refused:
        convert(source, tmp_path / "out", to, scheme=scheme, requantize=True)
    assert refused.value.message == words
    assert refused.value.hint


def test_a_scheme_that_it_has_already_may_be_named_and_costs_nothing(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "compressed-tensors, static")
    assert convert(source, tmp_path / "out", "modelopt", scheme="fp8").bit_exact


def test_another_scheme_without_permission_is_refused(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    with pytest.raises(BadInput, match=r"per 128×128 block.*, and FP8_DYNAMIC would round every weight a second time"):
        convert(source, tmp_path / "out", "compressed-tensors", scheme="FP8_DYNAMIC")


def test_a_code_that_is_nan_is_refused_when_it_is_decoded(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")

    def damage(tensors: Tensors) -> None:
        tensors[f"{MODULES[5]}.weight"].view(torch.uint8)[200, 130] = 0xFF

    change_tensors(source, damage)
    with pytest.raises(BadInput) as refused:
        convert(source, tmp_path / "out", "compressed-tensors", scheme="FP8_DYNAMIC", requantize=True)
    assert refused.value.message.startswith(f"`{MODULES[5]}.weight` stands for NaN at row 200, column 130")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# Shapes


def test_sizes_that_are_no_multiples_of_128_go_there_and_back(tmp_path: Path) -> None:
    plain = save_model(tmp_path / "plain", llama_config(**ODD), max_shard_size="300KB")
    source = quantize(QuantizeRequest(model=str(plain), out=tmp_path / "source", scheme="FP8_BLOCK")).out
    there = convert(source, tmp_path / "there", "deepseek")
    assert "is 104, no multiple of its blocks of 128, and vLLM does not check it" in there.warnings[0]
    back = convert(there.out, tmp_path / "back", "compressed-tensors").out
    # Not only the tensors: shards and index are the same files.
    for file in sorted(path.name for path in source.iterdir() if "model" in path.name):
        assert (source / file).read_bytes() == (back / file).read_bytes(), file
    assert json.loads((source / "config.json").read_text()) == json.loads((back / "config.json").read_text())
    with pytest.raises(BadInput, match=r"has 208 columns, and vLLM wants multiples of 128 of ModelOpt"):
        convert(source, tmp_path / "out", "modelopt")


def test_a_mixture_of_forms_is_refused_and_can_be_made_one(tmp_path: Path) -> None:
    block = SOURCES["compressed-tensors, channels"][1]
    other_block = SOURCES["compressed-tensors, blocks"][1]
    groups = {
        "group_0": block["config_groups"]["group_0"] | {"targets": ["re:.*self_attn.*"]},
        "group_1": other_block["config_groups"]["group_0"] | {"targets": ["re:.*mlp.*"]},
    }
    source = make(tmp_path / "source", "compressed-tensors, channels", config_groups=groups)
    blocks = load(make(tmp_path / "blocks", "compressed-tensors, blocks"))
    change_tensors(source, lambda tensors: tensors.update({k: t for k, t in blocks.items() if ".mlp." in k}))
    with pytest.raises(BadInput, match=r"per channel, .*; E4M3 weights per 128×128 block"):
        convert(source, tmp_path / "out", "fbgemm")
    assert convert(source, tmp_path / "out", "fbgemm", requantize=True).counts["requantize"] == len(MODULES)


# Experts


def mixture(folder: Path, name: str) -> Path:
    """A checkpoint with experts, whose router and head stay."""
    source = make(folder, name)

    def experts(tensors: Tensors) -> None:
        for key in [key for key in tensors if ".mlp." in key]:
            module = key.replace(".mlp.", ".mlp.experts.0.")
            tensors[module] = tensors.pop(key)
        tensors["model.layers.0.mlp.gate.weight"] = torch.ones(1, 256).bfloat16()

    change_tensors(source, experts)
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["UnheardOfForCausalLM"], "model_type": "unheard-of"}
    (source / "config.json").write_text(json.dumps(config))
    return source


def test_experts_are_not_written_for_a_reader_that_leaves_them_unquantized(tmp_path: Path) -> None:
    source = mixture(tmp_path / "source", "deepseek")
    with pytest.raises(BadInput, match="vLLM leaves experts of FBGEMM FP8 unquantized"):
        convert(source, tmp_path / "out", "fbgemm", requantize=True)
    out = convert(source, tmp_path / "out", "compressed-tensors").out
    block = json.loads((out / "config.json").read_text())["quantization_config"]
    # DeepSeek's own config lists nothing: readers know. compressed-tensors' readers must be told.
    assert sorted(block["ignore"]) == ["lm_head", "model.layers.0.mlp.gate"]


# As `fp8 quantize`


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def stopped(source: Path, out: Path, pieces: int) -> Fp8Error:
    seen = 0

    def notify(event: object) -> None:
        nonlocal seen
        seen += isinstance(event, Progress)
        if seen == pieces:
            signal.raise_signal(signal.SIGINT)

    options = Options(model=str(source), out=out, piece_bytes=4096, workers=1)
    with pytest.raises(Interrupted) as interrupted:
        dequantize(DequantizeRequest(options=options), notify)
    assert not out.exists()
    return interrupted.value


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    wanted = digest(dequantize(DequantizeRequest(options=Options(model=str(source), out=tmp_path / "a" / "out"))).out)
    assert stopped(source, tmp_path / "out", 100).exit_code == 130
    report = dequantize(DequantizeRequest(options=Options(model=str(source), out=tmp_path / "out", piece_bytes=4096)))
    assert report.bytes_resumed > 0
    assert digest(report.out) == wanted
    assert not partial_folder(tmp_path / "out").exists()


def test_it_does_not_go_on_with_something_else(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    stopped(source, tmp_path / "out", 100)
    options = Options(model=str(source), out=tmp_path / "out")
    with pytest.raises(CannotRun, match="the form to make was `bfloat16` and is `float32`"):
        dequantize(DequantizeRequest(options=options, dtype="float32"))
    with pytest.raises(CannotRun, match="the form to make was `bfloat16` and is `compressed-tensors`"):
        convert(source, tmp_path / "out", "compressed-tensors")
    assert convert(source, tmp_path / "out", "compressed-tensors", restart=True).bit_exact


def test_a_full_disk_is_one_sentence_and_what_is_done_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "source", "deepseek")
    write = os.pwrite
    calls = 0

    def full(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    options = Options(model=str(source), out=tmp_path / "out", piece_bytes=4096, workers=1)
    with pytest.raises(CannotRun, match=r"the disk is full: `.*out` could not be written"):
        dequantize(DequantizeRequest(options=options))
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert dequantize(DequantizeRequest(options=options)).bytes_resumed > 0


def test_an_existing_output_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    convert(source, tmp_path / "out", "modelopt")
    with pytest.raises(UsageError, match="exists already"):
        convert(source, tmp_path / "out", "compressed-tensors")
    convert(source, tmp_path / "out", "compressed-tensors", overwrite=True)
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()


def test_a_name_that_is_there_already_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    extra = {f"{MODULES[0]}.weight_scale": torch.ones(1)}
    source = make(tmp_path / "source", "deepseek")
    change_tensors(source, lambda tensors: tensors.update(extra))
    with pytest.raises(BadInput):
        convert(source, tmp_path / "out", "compressed-tensors")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_hostile_names_are_carried_over_and_do_no_harm(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    hostile = {"\x1b[31mred[/bold]\n": torch.ones(2), "x" * 10_000: torch.ones(1)}
    change_tensors(source, lambda tensors: tensors.update(hostile))
    out = load(convert(source, tmp_path / "out", "compressed-tensors").out)
    assert all(torch.equal(out[name], tensor) for name, tensor in hostile.items())
