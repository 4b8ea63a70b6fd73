"""`fp8 quantize` of what is in FP8 already: refused with a command, and the command does what was asked for."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from fp8cli.cli.app import main
from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.core.calibrating.ordering import CalibrationOptions
from fp8cli.errors import BadInput
from tests.checkpoints import FLOAT8, write
from tests.dialects import CONFIG, KV, TOKEN, compressed, load, make, model_tensors, same
from tests.planting import STORIES, quantize_stories

BLOCKS = "E4M3 weights per 128×128 block, activations per group of 128 at run time"


def refuse(source: Path, out: Path, **wishes: object) -> BadInput:
    with pytest.raises(BadInput) as refused:
        run(QuantizeRequest(model=str(source), out=out, **wishes))  # type: ignore[arg-type]
    assert not out.exists()
    return refused.value


def do(monkeypatch: pytest.MonkeyPatch, hint: str | None, stop: str) -> None:
    """Type the command that a hint begins with."""
    assert hint is not None
    assert stop in hint
    monkeypatch.setattr("sys.argv", shlex.split(hint.partition(stop)[0]))
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0


def test_deepseeks_fp8_asked_for_as_blocks_is_a_conversion_that_gives_what_quantizing_would_have_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = quantize_stories(tmp_path / "blocks", "FP8_BLOCK")
    source, out = tmp_path / "deepseek", tmp_path / "what is wanted"
    do(monkeypatch, f"fp8 convert {blocks} --to deepseek -o {source} -q|", "|")
    refusal = refuse(source, out, scheme="FP8_BLOCK")
    assert refusal.message == f"`{source}` is in FP8 already (DeepSeek block FP8: {BLOCKS})"
    assert refusal.hint is not None
    assert refusal.hint.endswith(" makes FP8_BLOCK of it and keeps every bit")
    do(monkeypatch, refusal.hint, " makes FP8_BLOCK")
    same(load(blocks), load(out))
    assert json.loads((blocks / "config.json").read_text()) == json.loads((out / "config.json").read_text())


def test_another_scheme_rounds_a_second_time_and_only_if_that_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = make(tmp_path / "source", "deepseek"), tmp_path / "out"
    refusal = refuse(source, out, scheme="FP8_DYNAMIC")
    assert refusal.message.endswith(", and FP8_DYNAMIC would round every weight a second time")
    assert refusal.hint == (
        f"fp8 convert {source} --to compressed-tensors --requantize --scheme FP8_DYNAMIC -o {out} does that, "
        "and without --requantize and --scheme FP8_DYNAMIC it keeps every bit, as FP8_BLOCK"
    )
    do(monkeypatch, refusal.hint, " does that")
    block = json.loads((out / "config.json").read_text())["quantization_config"]
    assert block["config_groups"]["group_0"]["weights"]["strategy"] == "channel"


def test_what_it_is_already_needs_nothing(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "compressed-tensors, blocks")
    refusal = refuse(source, tmp_path / "out", scheme="FP8_BLOCK")
    assert refusal.message == (
        f"`{source}` is in FP8 already (compressed-tensors: {BLOCKS}), which is FP8_BLOCK: there is nothing to quantize"
    )
    assert refusal.hint == f"fp8 inspect {source} shows what it holds"


@pytest.mark.parametrize(
    "wishes",
    [
        {"scheme": "FP8_BLOCK", "ignore": ("re:.*down_proj",)},
        {"scheme": "FP8_BLOCK", "default_ignore": False},
        {"scheme": "FP8_BLOCK", "kv_cache": "fp8"},
        {"scheme": "FP8"},
    ],
)
def test_what_a_conversion_cannot_choose_or_calibrate_starts_from_16_bits(
    tmp_path: Path, wishes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "source", "deepseek")
    data = CalibrationOptions(data=str(STORIES / "heldout.jsonl"), samples=2)
    needs_data = "kv_cache" in wishes or wishes["scheme"] == "FP8"
    refusal = refuse(source, tmp_path / "out", **wishes, **({"calibration": data} if needs_data else {}))
    assert refusal.message.endswith(", and what is asked for starts from 16 bits")
    monkeypatch.chdir(tmp_path)
    do(monkeypatch, refusal.hint, ", then quantize what that writes")
    assert (tmp_path / "source-dequantized" / "config.json").exists()


def test_a_name_that_would_be_two_words_or_an_order_to_the_terminal_is_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "a \x1b[31m b; rm -rf", "modelopt, channels")
    monkeypatch.setattr("sys.argv", ["fp8", "quantize", str(source), "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 3
    shown = capsys.readouterr().err
    assert "\x1b[31m" not in shown
    assert "b; rm -rf' --to compressed-tensors" in shown


def test_an_fp8_cache_beside_16_bits_is_no_fp8_of_weights_and_codes_nobody_understands_are_refused_as_before(
    tmp_path: Path,
) -> None:
    plain = model_tensors(lambda weight: {"weight": weight.bfloat16()})
    cache = {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}, **KV}
    source = write(tmp_path / "cache", plain, CONFIG | {"quantization_config": cache})
    assert "is quantized already: compressed-tensors" in refuse(source, tmp_path / "out").message
    odd = compressed("channel", TOKEN)
    odd["config_groups"]["group_0"]["weights"] = FLOAT8 | {"strategy": "channel", "num_bits": 6}  # type: ignore[index]
    unscaled = model_tensors(lambda weight: {"weight": weight.to(torch.float8_e4m3fn)})
    source = write(tmp_path / "odd", unscaled, CONFIG | {"quantization_config": odd})
    refusal = refuse(source, tmp_path / "out")
    assert "is quantized already: compressed-tensors" in refusal.message
    assert refusal.hint == "start from the original BF16 or FP16 checkpoint"
