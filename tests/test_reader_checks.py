"""What transformers makes of each dialect of FP8: the check's word for it, beside what transformers does when asked."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from family_matrix import family
from transformers import AutoModelForCausalLM

from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.core.doctor.candidate import look_at
from fp8cli.core.doctor.environment import Check
from fp8cli.core.doctor.reader_checks import check_reader
from fp8cli.core.machine.gpus import Gpus, find_gpus
from tests.checkpoints import write
from tests.dialects import CONFIG, DEEPSEEK, SHAPES, SOURCES, decoded, load, make, model_tensors, per_block
from tests.families import save_family
from tests.stand_in_nvml import A100, H100, L4, Model, Nvml

pytestmark = pytest.mark.filterwarnings("ignore")

MODULE = "model.layers.0.mlp.down_proj"


def found(*models: Model) -> Gpus:
    return find_gpus(Nvml(*models), {}, Path("/nowhere"))


def check(folder: Path, *models: Model) -> Check:
    return check_reader(look_at(str(folder)), found(*models) if models else Gpus(), ())


def weight_in_transformers(folder: Path) -> torch.Tensor:
    """The weight of one nn.Linear as transformers computes with it; its logits have no say in that."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    weight: torch.Tensor = model.get_submodule(MODULE).weight
    return weight.detach()


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith(("fp8", "deepseek"))])
def test_transformers_computes_with_what_the_codes_stand_for_just_where_the_check_says_so(
    tmp_path: Path, name: str
) -> None:
    source = make(tmp_path / "source", name)
    reads = torch.equal(weight_in_transformers(source), decoded(load(source), MODULE).bfloat16())
    verdict = check(source)
    assert verdict.status == ("warning" if reads else "failed")
    assert reads == name.startswith("deepseek")
    if not reads:
        # Not even a refusal: the model is there, and is another one.
        assert weight_in_transformers(source).abs().max() == 448
        assert verdict.found.endswith("and leaves out scales such as `model.layers.0.mlp.down_proj.weight_scale`")


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("modelopt")])
def test_of_modelopt_transformers_takes_the_codes_for_the_weights(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / "source", name)
    # With a warning; lm-eval hands it the method by itself, and it is refused.
    assert weight_in_transformers(source).abs().max() == 448
    verdict = check(source)
    assert (verdict.status, verdict.found) == ("failed", "transformers 5 knows no `modelopt`")
    assert verdict.fix == f"fp8 convert {source} --to compressed-tensors, and evaluate that"


def test_fbgemm_is_refused_without_a_gpu(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "fbgemm")
    with pytest.raises(ImportError):
        weight_in_transformers(source)
    assert check(source).status == "failed"


@pytest.mark.parametrize(("middle", "silent"), [(192, True), (288, True), (320, False)])
def test_blocks_that_are_not_whole_are_unpacked_wrong_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, middle: int, *, silent: bool
) -> None:
    for module in ("gate_proj", "up_proj"):
        monkeypatch.setitem(SHAPES, f"mlp.{module}", (middle, 256))
    monkeypatch.setitem(SHAPES, "mlp.down_proj", (256, middle))
    config = CONFIG | {"intermediate_size": middle, "quantization_config": DEEPSEEK}
    encode = lambda weight: dict(zip(("weight", "weight_scale_inv"), per_block(weight), strict=True))  # noqa: E731
    source = write(tmp_path / "source", model_tensors(encode), config)
    if silent:
        assert not torch.equal(weight_in_transformers(source), decoded(load(source), MODULE).bfloat16())
    else:
        with pytest.raises(RuntimeError):
            weight_in_transformers(source)
    verdict = check(source)
    assert verdict.status == "failed"
    assert verdict.found == (
        f"transformers 5 unpacks whole blocks alone, and `{MODULE}.weight` [256, {middle}] ends in a part of one"
    )
    assert check(source, H100).status == "not checked"


@pytest.mark.parametrize(
    ("name", "models", "status"),
    [
        ("compressed-tensors, blocks", (), "passed"),
        ("compressed-tensors, static", (A100,), "passed"),
        ("deepseek", (A100,), "warning"),
        ("deepseek", (L4,), "not checked"),
        ("fp8, static", (H100,), "failed"),
        ("fbgemm", (L4,), "failed"),
        ("fbgemm", (H100,), "not checked"),
        ("modelopt, static", (H100,), "failed"),
    ],
)
def test_the_gpu_decides_what_cannot_be_tried_here(
    tmp_path: Path, name: str, models: tuple[Model, ...], status: str
) -> None:
    assert check(make(tmp_path / "source", name), *models).status == status


def test_codes_that_no_config_declares_are_numbers_to_transformers(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "deepseek")
    (source / "config.json").write_text(json.dumps(CONFIG))
    verdict = check(source)
    assert (verdict.status, verdict.fix) == ("failed", f"fp8 inspect {source}")
    assert "config.json does not say that they are codes" in verdict.found


def test_what_is_not_quantized_needs_no_dialect(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", model_tensors(lambda weight: {"weight": weight.bfloat16()}), CONFIG)
    assert check(plain) == Check(
        name="dialect", status="passed", found="nothing is in FP8: unquantized BF16", wanted="nothing"
    )


@pytest.mark.parametrize("name", ["Granite-MoE", "Llama 4"])
def test_experts_that_transformers_would_start_at_random_are_not_evaluated_on_it_and_the_plan_says_so(
    tmp_path: Path, name: str
) -> None:
    each = family(name)
    source = save_family(each, tmp_path / "source")
    report = run(QuantizeRequest(model=str(source), out=tmp_path / "out"))
    _, loading = getattr(transformers, each.architecture).from_pretrained(report.out, output_loading_info=True)
    reads = not any("expert" in key or "linear" in key for key in loading["missing_keys"])
    assert reads == (name == "Llama 4")
    verdict = check(report.out)
    assert (verdict.status == "failed") != reads
    sentence = "vLLM loads it; transformers 5.17 does not, nor what llm-compressor writes"
    assert (sentence in report.serve_note) != reads
    assert (sentence in (report.out / "README.md").read_text("utf-8")) != reads
    if not reads:
        assert verdict.fix == "evaluate it on vLLM"
