"""An FP8 checkpoint as the source: compared as a base, converted, or refused with the command that helps."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fp8cli.commands.convert import ConvertRequest
from fp8cli.commands.convert import Options as ConvertOptions
from fp8cli.commands.convert import run as convert
from fp8cli.commands.dequantize import DequantizeRequest
from fp8cli.commands.dequantize import Options as DequantizeOptions
from fp8cli.commands.dequantize import run as dequantize
from tests.planting import quantize_stories
from tests.starting import fp8

pytestmark = pytest.mark.filterwarnings("ignore")

TASK = "fp8_stories"
ITEMS = 100


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as `blocks` (compressed-tensors), `deepseek` and `modelopt`, and taken back as `wide`."""
    folder = tmp_path_factory.mktemp("sources")
    quantize_stories(folder / "blocks", "FP8_BLOCK")
    for name in ("deepseek", "modelopt"):
        convert(ConvertRequest(options=ConvertOptions(model=str(folder / "blocks"), out=folder / name), to=name))
    dequantize(DequantizeRequest(options=DequantizeOptions(model=str(folder / "deepseek"), out=folder / "wide")))
    return folder


def test_where_the_arithmetic_is_the_same_so_is_every_logit(place: Path) -> None:
    tokens = torch.arange(1, 41).reshape(1, -1)
    with torch.no_grad():
        logits = [
            AutoModelForCausalLM.from_pretrained(place / name, dtype=torch.bfloat16)(tokens).logits
            for name in ("deepseek", "wide")
        ]
    assert torch.equal(*logits)


@pytest.mark.slow
def test_deepseeks_fp8_is_a_base_for_its_compressed_tensors_form_and_the_difference_is_not_hidden(place: Path) -> None:
    words = [place / "deepseek", place / "blocks", "--tasks", TASK, "--limit", str(ITEMS), "--no-fidelity"]
    run = fp8(place, "compare", *words, "--margin", "0.1", "--runs", place / "runs", "--json")
    assert run.code == 0, run.err
    comparison = run.report["comparison"]
    (contest,) = comparison["contests"]
    (task,) = contest["tasks"]
    assert (comparison["verdict"], task["items"]) == ("pass", ITEMS)
    # Here transformers unpacks the one and rounds activations for the other, and both are said.
    assert (comparison["base"]["executed_as"], contest["other"]["executed_as"]) == ("dequantized", "fake-quant")
    assert "unpacks DeepSeek block FP8 here while loading, and does not round activations" in run.err


@pytest.mark.parametrize("sides", [("modelopt", "blocks"), ("blocks", "modelopt")])
def test_what_no_backend_here_reads_is_refused_before_anything_is_loaded(place: Path, sides: tuple[str, str]) -> None:
    words = [*(place / side for side in sides), "--tasks", TASK, "--runs", place / "none"]
    run = fp8(place, "compare", *words)
    assert (run.code, run.loaded) == (3, [])
    assert run.err == (
        "error: dialect: transformers 5 knows no `modelopt`, wanted scales that it reads\n\n"
        f"hint: fp8 convert {place / 'modelopt'} --to compressed-tensors, and evaluate that\n"
    )
    assert not (place / "none").exists()
