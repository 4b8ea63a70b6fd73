"""Where families end: what cannot be loaded as a language model of text, and experts that share one tensor."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from family_matrix import Family, family
from safetensors.torch import load_file

from tests.calibrated import MODEL
from tests.families import save_family
from tests.starting import fp8

STORIES = str(MODEL / "heldout.jsonl")


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(family("Qwen2.5-VL"), tmp_path_factory.mktemp("vl"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(family("Qwen2 classifier"), tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(family("Granite-MoE"), tmp_path_factory.mktemp("fused"))


@pytest.mark.parametrize(
    ("words", "doing"),
    [
        (("explore", "MODEL", "--calibration-data", STORIES), "explored"),
        (("eval", "MODEL", "--simulate", "FP8_DYNAMIC", "--tasks", "fp8_stories"), "simulated"),
        (
            ("quantize", "MODEL", "--keep-bf16", "auto", "--max-kl", "1", "--calibration-data", STORIES),
            "measured on texts",
        ),
    ],
)
def test_what_predicts_no_text_is_not_asked_for_any(
    classifier: Path, tmp_path: Path, words: tuple[str, ...], doing: str
) -> None:
    rest = [str(classifier) if word == "MODEL" else word for word in words]
    if words[0] == "quantize":
        rest += ["-o", str(tmp_path / "out")]
    if words[0] == "eval":
        rest += ["--runs", str(tmp_path / "runs")]
    run = fp8(tmp_path, *rest)
    assert run.code == 3
    assert f"predicts no text, and only a model that does can be {doing}" in " ".join(run.err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["multimodal", "classifier"])
def test_what_is_no_language_model_of_text_is_not_given_to_llm_compressor(
    request: pytest.FixtureRequest, tmp_path: Path, model: str
) -> None:
    folder: Path = request.getfixturevalue(model)
    run = fp8(tmp_path, "quantize", str(folder), "--engine", "llmcompressor", "-o", str(tmp_path / "out"))
    assert run.code == 3
    refusal = "is no language model of text alone, and only such can be given to llm-compressor yet"
    assert refusal in " ".join(run.err.split())
    assert not (tmp_path / "out").exists()


def test_a_budget_counts_the_bytes_of_experts_that_share_a_tensor_and_keeps_all_such_tensors_or_none(
    fused: Path, tmp_path: Path
) -> None:
    source = load_file(fused / "model.safetensors")
    size = (fused / "model.safetensors").stat().st_size
    whole = {name for name in source if "_linear" in name}
    assert len(whole) == 2 * 2, "two tensors in each of two layers"
    words = ("--keep-bf16", "auto", "--target-size", str(size - 300_000))
    # All experts in 16 bits would be too much, and what is left is little: attention alone.
    run = fp8(tmp_path, "quantize", str(fused), *words, "-o", str(tmp_path / "out"))
    assert run.code == 0, run.err
    assert (tmp_path / "out" / "model.safetensors").stat().st_size <= size - 300_000
    assert whole.isdisjoint(load_file(tmp_path / "out" / "model.safetensors"))
    few = ("--keep-bf16", "auto", "--target-size", str(size - 20_000))
    run = fp8(tmp_path, "quantize", str(fused), *few, "-o", str(tmp_path / "few"))
    assert run.code == 0, run.err
    out = load_file(tmp_path / "few" / "model.safetensors")
    assert all(out[name].equal(source[name]) for name in whole)


def test_experts_stored_as_transposes_are_not_measured_without_data(tmp_path: Path) -> None:
    each: Family = replace(family("Qwen3-VL-MoE"))
    model = save_family(each, tmp_path / "model")
    words = ("--keep-bf16", "auto", "--min-sqnr", "31", "-o", str(tmp_path / "out"))
    run = fp8(tmp_path, "quantize", str(model), *words)
    assert run.code == 3
    assert "is stored as its transpose, which is not compared without data" in " ".join(run.err.split())


@pytest.mark.parametrize(
    ("words", "doing"),
    [
        (("quantize", "MODEL", "--scheme", "FP8", "--calibration-data", STORIES), "calibrated"),
        (("quantize", "MODEL", "--gptq", "--calibration-data", STORIES), "given to llm-compressor"),
        (
            ("quantize", "MODEL", "--keep-bf16", "auto", "--max-kl", "1", "--calibration-data", STORIES),
            "measured on texts",
        ),
        (("explore", "MODEL", "--calibration-data", STORIES), "explored"),
    ],
)
def test_what_only_its_own_code_can_load_is_refused_before_anything_starts(
    tmp_path: Path, words: tuple[str, ...], doing: str
) -> None:
    folder = save_family(family("InternLM 2, with code of its own"), tmp_path / "model")
    shutil.copy(MODEL / "tokenizer.json", folder)
    shutil.copy(MODEL / "tokenizer_config.json", folder)
    rest = [str(folder) if word == "MODEL" else word for word in words]
    if words[0] == "quantize":
        rest += ["-o", str(tmp_path / "out")]
    run = fp8(tmp_path, *rest)
    assert run.code == 3
    refusal = f"transformers does not know `InternLM2ForCausalLM`, and only a model that it knows can be {doing}"
    assert refusal in " ".join(run.err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loaded.json", "model"]
