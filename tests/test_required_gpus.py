"""`--tp N` of quantize, convert and inspect: refused before anything is written, or met another way where asked."""

import json
from pathlib import Path

import pytest
from compressed_tensors.quantization import QuantizationConfig

from fp8cli.commands.convert import ConversionReport, ConvertRequest, Options
from fp8cli.commands.convert import run as convert
from fp8cli.commands.inspect import InspectRequest
from fp8cli.commands.inspect import run as inspect
from fp8cli.commands.quantize import QuantizeRequest, run
from fp8cli.errors import CannotRun, Fp8Error, UsageError
from tests.dialects import make
from tests.planting import STORIES
from tests.starting import fp8

DOWN = (
    "`model.layers.{0..2}.mlp.down_proj.weight` [128, 256]: the part of each of 4 GPUs is 64, no multiple of its "
    "blocks of 128"
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in an empty folder, where outputs without a name of their own are made."""
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def quantize(out: Path | None, **wishes: object) -> QuantizeRequest:
    return QuantizeRequest(**{"model": str(STORIES), "out": out, "scheme": "FP8_BLOCK", **wishes})  # type: ignore[arg-type]


def refused(request: QuantizeRequest) -> Fp8Error:
    with pytest.raises(Fp8Error) as caught:
        run(request)
    return caught.value


@pytest.mark.parametrize("dry_run", [False, True])
def test_blocks_that_cannot_be_split_are_refused_before_anything_is_written(tmp_path: Path, *, dry_run: bool) -> None:
    error = refused(quantize(tmp_path / "out", tp=4, dry_run=dry_run))
    assert isinstance(error, CannotRun)
    assert error.message == f"vLLM cannot split the result over 4 GPUs: {DOWN}"
    assert error.hint == (
        "it can be served on 1 GPU; --scheme FP8_DYNAMIC, which --tp-fallback takes by itself, has no blocks to split"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_refusal_is_one_sentence_and_exit_code_3(tmp_path: Path) -> None:
    result = fp8(tmp_path, "quantize", str(STORIES), "-o", "out", "--scheme", "FP8_BLOCK", "--tp", "4", "--json")
    assert result.code == 3
    error = json.loads(result.out)["error"]
    assert error["message"] == f"vLLM cannot split the result over 4 GPUs: {DOWN}"
    assert not (tmp_path / "out").exists()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_heads_that_cannot_be_dealt_out_are_no_fault_of_the_scheme(tmp_path: Path) -> None:
    for wishes in ({"scheme": "FP8_DYNAMIC"}, {"tp_fallback": True}):
        error = refused(quantize(tmp_path / "out", tp=8, **wishes))
        assert error.message.startswith("vLLM cannot split the result over 8 GPUs: 4 attention heads cannot be dealt")
        assert "FP8_DYNAMIC" not in (error.hint or "")
    assert "it can be served on 1, 2 or 4 GPUs" in str(refused(quantize(None, scheme="FP8_DYNAMIC", tp=3)).hint)
    assert list(tmp_path.iterdir()) == []


def test_what_can_be_split_is_made_and_served_so(tmp_path: Path) -> None:
    report = run(quantize(tmp_path / "out", scheme="FP8_DYNAMIC", tp=4, tp_fallback=True))
    assert report.fallback is None
    assert report.serving is not None
    assert report.serving.required is not None
    assert report.serving.required.split.verdict == "works"
    assert report.serve_command == f"vllm serve {tmp_path / 'out'} --tensor-parallel-size 4"


def test_the_fallback_is_fp8_dynamic_to_the_byte_and_says_so_everywhere(tmp_path: Path) -> None:
    words = ("--scheme", "FP8_BLOCK", "--tp", "4", "--tp-fallback")
    result = fp8(tmp_path, "quantize", str(STORIES), *words, COLUMNS="100")
    assert result.code == 0
    sentence = "FP8_DYNAMIC in place of FP8_BLOCK, whose blocks vLLM cannot split over 4 GPUs"
    assert f"warning: {sentence}: {DOWN}" in result.err
    assert "can be served on 4 GPUs, as required" in result.out
    out = Path("stories-llama-FP8-dynamic")
    assert out.is_dir(), "it is named for what it is"
    plain = run(quantize(tmp_path / "plain", scheme="FP8_DYNAMIC")).out
    for file in ("model.safetensors", "config.json"):
        assert (out / file).read_bytes() == (plain / file).read_bytes()
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    (group,) = QuantizationConfig.model_validate(config).config_groups.values()
    assert (group.weights.strategy, group.input_activations.strategy) == ("channel", "token")  # type: ignore[union-attr]
    assert f"| Chosen | {sentence} |" in (out / "README.md").read_text()
    assert (out / "recipe.yaml").read_text() == (plain / "recipe.yaml").read_text() + f"# {sentence}\n"


def test_the_plan_of_a_fallback_says_it_before_it_is_done() -> None:
    report = run(quantize(None, tp=4, tp_fallback=True, dry_run=True))
    assert report.out == Path("stories-llama-FP8-dynamic")
    assert report.scheme is not None
    assert report.scheme.name == "FP8_DYNAMIC"
    assert report.fallback is not None
    assert (report.fallback.asked, report.fallback.taken, report.fallback.gpus) == ("FP8_BLOCK", "FP8_DYNAMIC", 4)
    assert report.fallback.reason == DOWN


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"tp": 0}, "--tp 0 is no number of GPUs"),
        ({"tp": -2}, "--tp -2 is no number of GPUs"),
        ({"tp_fallback": True}, "--tp-fallback would have no effect without a number of GPUs"),
    ],
)
def test_words_that_make_no_sense_are_refused(tmp_path: Path, wishes: dict[str, object], message: str) -> None:
    error = refused(quantize(tmp_path / "out", **wishes))
    assert isinstance(error, UsageError)
    assert error.message == message


@pytest.mark.slow
def test_what_a_recipe_made_is_refused_when_it_is_known_and_kept_for_a_run_that_asks_for_less(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "default_stage:\n  default_modifiers:\n"
        "    QuantizationModifier: {targets: [Linear], ignore: [lm_head], scheme: FP8_BLOCK}\n"
    )
    plan = run(quantize(tmp_path / "out", scheme=None, recipe=recipe, tp=4, dry_run=True))
    (later,) = (check for check in plan.checks if check.name == "tensor parallel")
    assert (later.status, later.wanted) == ("not checked", "a result that vLLM can split over 4 GPUs")
    error = refused(quantize(tmp_path / "out", scheme=None, recipe=recipe, tp=4))
    assert isinstance(error, CannotRun)
    assert error.message == f"vLLM cannot split the result over 4 GPUs: {DOWN}"
    assert error.hint is not None
    assert error.hint.endswith("what llm-compressor made is kept, and the same command without --tp goes on from it")
    assert not (tmp_path / "out").exists()
    report = run(quantize(tmp_path / "out", scheme=None, recipe=recipe, tp=1))
    assert report.compression is not None
    assert report.compression.known, "llm-compressor does not do it again"
    assert report.serving is not None
    assert report.serving.required is not None
    assert report.serving.required.split.verdict == "works"


def test_a_recipe_says_itself_what_a_fallback_would_change(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("default_stage: {}\n")
    error = refused(quantize(tmp_path / "out", scheme=None, recipe=recipe, tp=2, tp_fallback=True))
    assert error.message == "a recipe says itself what --tp-fallback would say"


# inspect


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(quantize(tmp_path_factory.mktemp("required") / "blocks")).out


def test_inspect_exits_with_1_where_the_requirement_is_not_met(blocks: Path) -> None:
    met = inspect(InspectRequest(source=blocks, tp=1))
    assert met.serving.required is not None
    assert (met.serving.required.split.verdict, met.exit_code) == ("works", 0)
    unmet = inspect(InspectRequest(source=blocks, tp=4))
    assert unmet.serving.required is not None
    assert (unmet.serving.required.split.reasons[0], unmet.exit_code) == (DOWN, 1)
    assert unmet.serving.required.per_channel is not None
    assert unmet.serving.required.per_channel.verdict == "works"
    # The checkpoint is as sound as it was: that it does not fit a wish is no damage.
    assert met.verdict == unmet.verdict == "healthy"


def test_inspect_judges_numbers_that_it_does_not_list_by_itself(blocks: Path, tmp_path: Path) -> None:
    result = fp8(tmp_path, "inspect", str(blocks), "--tp", "3", "--gpu", "H100")
    assert result.code == 1
    assert result.out.endswith(
        "cannot be served on 3 GPUs, as required: 4 attention heads cannot be dealt out to 3 GPUs\n"
    )
    document = fp8(tmp_path, "inspect", str(blocks), "--tp", "3", "--json")
    assert document.code == 1
    assert [split["size"] for split in document.report["serving"]["parallel"]] == [1, 2, 3, 4, 8, 16]


def test_what_cannot_be_judged_is_said_and_fails_nothing(blocks: Path, tmp_path: Path) -> None:
    config = json.loads((blocks / "config.json").read_text())
    del config["num_attention_heads"], config["architectures"], config["model_type"], config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((STORIES / "model.safetensors").read_bytes())
    plain = inspect(InspectRequest(source=tmp_path))
    report = inspect(InspectRequest(source=tmp_path, tp=2))
    assert plain.serving.required is None
    assert report.serving.required is not None
    assert report.serving.required.split.verdict == "not checked"
    assert report.exit_code == plain.exit_code == 0


def test_inspect_refuses_what_is_no_number_of_gpus(blocks: Path) -> None:
    with pytest.raises(UsageError, match="--tp 0 is no number of GPUs"):
        inspect(InspectRequest(source=blocks, tp=0))


# convert


def converted(source: Path, out: Path, **wishes: object) -> ConversionReport:
    request = {"options": Options(model=str(source), out=out), "to": "compressed-tensors", **wishes}
    return convert(ConvertRequest(**request))  # type: ignore[arg-type]


def test_a_conversion_that_cannot_be_split_is_refused_or_requantized_where_allowed(tmp_path: Path) -> None:
    # 384 in the middle are three blocks: two GPUs would have one and a half each.
    source = make(tmp_path / "source", "deepseek")
    with pytest.raises(CannotRun) as caught:
        converted(source, tmp_path / "out", tp=2)
    assert caught.value.message.startswith("vLLM cannot split the result over 2 GPUs: `model.layers.{0,1}.")
    assert "is 192, no multiple of its blocks of 128" in caught.value.message
    assert "--requantize --scheme FP8_DYNAMIC has no blocks to split, but rounds" in str(caught.value.hint)
    with pytest.raises(UsageError, match="--tp-fallback rounds every weight a second time, which only --requantize"):
        converted(source, tmp_path / "out", tp=2, tp_fallback=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    report = converted(source, tmp_path / "out", tp=2, tp_fallback=True, requantize=True)
    assert report.fallback is not None
    assert report.words_after.startswith("E4M3 weights per channel")
    assert report.bit_exact is False
    assert report.serving.required is not None
    assert report.serving.required.split.verdict == "works"
    assert report.fallback.sentence in (tmp_path / "out" / "README.md").read_text()
    inspected = inspect(InspectRequest(source=tmp_path / "out", tp=2))
    assert inspected.exit_code == 0
    assert inspected.serving.parallel == report.serving.parallel


def test_a_dialect_without_scales_per_channel_offers_none(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "compressed-tensors, blocks")
    with pytest.raises(CannotRun) as caught:
        converted(source, tmp_path / "out", to="deepseek", tp=2, tp_fallback=True, requantize=True)
    assert "FP8_DYNAMIC" not in str(caught.value.hint)


@pytest.mark.parametrize("name", ["deepseek", "fp8, static", "fbgemm", "compressed-tensors, blocks"])
def test_a_conversion_foresees_what_inspect_says_of_its_result(tmp_path: Path, name: str) -> None:
    report = converted(
        make(tmp_path / "source", name), tmp_path / "out", to="modelopt" if "," in name else "compressed-tensors"
    )
    inspected = inspect(InspectRequest(source=tmp_path / "out"))
    assert report.serving.parallel == inspected.serving.parallel
    assert report.serving.not_judged == inspected.serving.not_judged
    assert report.serving.vllm == inspected.serving.vllm
    assert report.serving.generations == inspected.serving.generations
