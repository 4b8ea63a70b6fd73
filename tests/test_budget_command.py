"""`fp8 quantize --keep-bf16 auto` without data: sizes that hold, words that make no sense, and what the screen says."""

import json
import re
import shutil
from pathlib import Path

import pytest

from fp8cli.core.budgeting.work_place import BUDGET
from fp8cli.formats.staging import partial_folder
from tests.calibrated import MODEL
from tests.starting import Run, fp8

AUTO = ("--keep-bf16", "auto")
SMALLEST = 1_164_000
"""Bytes of files: no budget below it can be met, and some above it can."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the bundled model, which so has no data of its own."""
    return shutil.copytree(MODEL, tmp_path_factory.mktemp("source") / "stories")


def quantize(folder: Path, model: Path, *words: object, **environment: str) -> Run:
    return fp8(folder, "quantize", model, "-o", folder / "out", *map(str, words), **environment)


@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_files_are_no_larger_than_the_size_and_use_what_there_is_of_it(
    model: Path, tmp_path: Path, scheme: str
) -> None:
    for number, target in enumerate((1_250_000, 1_400_000, 1_600_000)):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = quantize(folder, model, *AUTO, "--target-size", target, "--scheme", scheme, "--json")
        assert run.code == 0, run.err
        size = (folder / "out" / "model.safetensors").stat().st_size
        budget = run.report["budget"]
        assert size == run.report["bytes_written"] <= target
        # No group that still fits was left in FP8; what is kept makes headers shorter, and that is not counted on.
        left = [group["saved_bytes"] for group in budget["groups"] if not group["kept"]]
        assert min(left) > target - size - 2_000
        assert budget["source"] == "weights"
        assert budget["chosen"]["kl"] is None
        assert "torch" not in run.loaded


def test_no_group_in_fp8_has_less_than_the_sqnr(model: Path, tmp_path: Path) -> None:
    run = quantize(tmp_path, model, *AUTO, "--min-sqnr", 31.65, "--json")
    assert run.code == 0, run.err
    groups = run.report["budget"]["groups"]
    assert all(group["kept"] == (group["weight_sqnr_db"] < 31.65) for group in groups)
    assert 0 < sum(group["kept"] for group in groups) < 12
    assert [group["weight_sqnr_db"] for group in groups] == sorted(group["weight_sqnr_db"] for group in groups)
    reasons = {tensor["name"].removesuffix(".weight"): tensor["reason"] for tensor in run.report["tensors"]}
    assert {reasons[module] for module in run.report["budget"]["kept_modules"]} == {
        "kept in 16 bits by --min-sqnr 31.65"
    }
    ignore = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["quantization_config"]["ignore"]
    assert set(ignore) == {"lm_head", *run.report["budget"]["kept_modules"]}


def test_a_budget_that_everything_meets_keeps_nothing_and_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    run = quantize(tmp_path, model, *AUTO, "--min-sqnr", 20)
    assert run.code == 0, run.err
    assert "--min-sqnr 20: met with every Linear in FP8" in run.out
    plain = tmp_path / "plain"
    plain.mkdir()
    assert quantize(plain, model).code == 0
    for name in ("model.safetensors", "config.json"):
        assert (plain / "out" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_what_the_user_ignores_stays_and_the_budget_decides_the_rest(model: Path, tmp_path: Path) -> None:
    run = quantize(tmp_path, model, *AUTO, "--min-sqnr", 31.68, "--ignore", "*.down_proj", "--json")
    assert run.code == 0, run.err
    assert len(run.report["budget"]["groups"]) == 9
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert sum(name.endswith("down_proj") for name in config["quantization_config"]["ignore"]) == 3
    recipe = (tmp_path / "out" / "recipe.yaml").read_text("utf-8")
    assert re.search(r"ignore: \[lm_head, '\*\.down_proj',", recipe)
    assert "chosen by the noise of their weights alone; no KL was measured" in recipe


def test_a_dry_run_measures_shows_curve_and_choice_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    run = quantize(tmp_path, model, *AUTO, "--target-size", "1.4MB", "--dry-run", "--details")
    assert run.code == 0, run.err
    assert "dry run, nothing written" in run.out
    assert "◀ chosen" in run.out
    assert "group, most fragile first" in run.out
    assert "of weights alone" not in run.out
    assert "chosen by the weights alone" in run.err
    assert [path.name for path in tmp_path.iterdir()] == ["loaded.json"]


def test_a_terminal_without_unicode_gets_marks_and_bars_that_it_can_show(model: Path, tmp_path: Path) -> None:
    run = quantize(tmp_path, model, *AUTO, "--target-size", "1.4MB", "--dry-run", PYTHONIOENCODING="ascii")
    assert run.code == 0, run.err
    assert "< chosen" in run.out
    assert "\\u" not in run.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--max-kl", "0.1"], 2, "--max-kl is a budget for what stays in 16 bits, and nothing asks for that"),
        ([*AUTO], 2, "--keep-bf16 auto takes one budget, and there is no budget"),
        (
            [*AUTO, "--min-sqnr", "30", "--target-size", "1MB"],
            2,
            "--keep-bf16 auto takes one budget, and there is --min-sqnr and --target-size",
        ),
        (["--keep-bf16", "lm_head", "--min-sqnr", "30"], 2, "--keep-bf16 takes `auto`, not `lm_head`"),
        ([*AUTO, "--max-kl", "0.1"], 2, "--max-kl is measured on texts, and none are named"),
        ([*AUTO, "--max-kl", "-1"], 2, "--max-kl takes a number of nats, 0 or more, not -1"),
        ([*AUTO, "--max-kl", "nan"], 2, "--max-kl takes a number of nats, 0 or more, not nan"),
        ([*AUTO, "--min-sqnr", "inf"], 2, "--min-sqnr takes a number of decibels, not inf"),
        ([*AUTO, "--target-size", "much"], 2, "--target-size `much` is no size"),
        (
            [*AUTO, "--min-sqnr", "30", "--max-seq-length", "64", "--calibration-seed", "3"],
            2,
            "--max-seq-length and --calibration-seed would have no effect: without data --keep-bf16 auto looks at",
        ),
        (
            [*AUTO, "--min-sqnr", "30", "--scheme", "none", "--kv-cache", "fp8"],
            2,
            "no weight is quantized, so --keep-bf16 auto would have no effect",
        ),
        ([*AUTO, "--target-size", "1MB", "--scheme", "FP8"], 2, "`FP8` is calibrated on texts, and none are named"),
        ([*AUTO, "--min-sqnr", "30", "--gptq"], 2, "`FP8_DYNAMIC + GPTQ` is calibrated on texts, and none are named"),
        (
            [*AUTO, "--target-size", "1MB"],
            3,
            "--target-size 1MB is 1,000,000 bytes, and with every Linear in FP8 the files take 1,1",
        ),
        (
            [*AUTO, "--target-size", "1GB"],
            3,
            "--target-size 1GB is 1,000,000,000 bytes, which the model takes with every Linear in 16 bits",
        ),
        ([*AUTO, "--min-sqnr", "90"], 3, "--min-sqnr 90 leaves every Linear in 16 bits, so nothing would be quantized"),
        (
            [*AUTO, "--max-kl", "0.1", "--calibration-data", "\x1b[31mred[bold].jsonl"],
            3,
            "`\\x1b[31mred[bold].jsonl` does not exist",
        ),
        ([*AUTO, "--max-kl", "0.1", "--calibration-data", "/" + "a" * 10_000], 3, "is no data: File name too long"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence_and_leaves_nothing(
    model: Path, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    run = quantize(tmp_path, model, *words)
    assert run.code == code, run.err
    message, hint = run.err.strip().split("\n\n")
    assert message.startswith("error: ")
    assert said in message
    assert hint.startswith("hint: ")
    assert "\x1b" not in run.err
    assert [path.name for path in tmp_path.iterdir()] == ["loaded.json"]


def test_a_target_that_nearly_fits_everything_in_fp8_can_be_met(model: Path, tmp_path: Path) -> None:
    run = quantize(tmp_path, model, *AUTO, "--target-size", SMALLEST, "--json")
    assert run.code == 0, run.err
    assert run.report["budget"]["kept_modules"] == []
    assert (tmp_path / "out" / "model.safetensors").stat().st_size <= SMALLEST
    assert not partial_folder(tmp_path / "out").exists()
    assert BUDGET not in {path.name for path in (tmp_path / "out").iterdir()}
