"""Calibrated FP8 through the real command and the real llm-compressor: what comes out, and what if it is cut off."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

# Read when compressed-tensors is imported: without it a GPU machine would run another kernel, with other rounding.
os.environ["CT_ENFORCE_EAGER"] = "1"

from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

from fp8cli.commands.quantize import CalibrationOptions, QuantizeRequest, run
from fp8cli.core.making.production import CALIBRATION
from fp8cli.formats.staging import partial_folder
from tests import starting
from tests.calibrated import MODEL
from tests.models import llama_config, save_model
from tests.test_oneshot_equality import assert_same, tensors
from tests.test_serving import LARGEST_MEAN_SHIFT, LARGEST_SHIFT, in_vllm, prompts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules"),
]

ROOT = Path(__file__).parent.parent
ROWS = 16
ITEMS = 300
FP8_PROGRAM = "import sys; sys.argv[0] = 'fp8'; from fp8cli.cli.app import main; sys.exit(main())"


def fp8(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", FP8_PROGRAM, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def started(*words: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", FP8_PROGRAM, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return as many stories as samples are taken, the last of the file: evaluations here take the first."""
    lines = (MODEL / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[-ROWS:]
    path = tmp_path_factory.mktemp("texts") / "stories.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def words_of(texts: Path, out: Path) -> list[object]:
    data = ["--calibration-data", texts, "--num-calibration-samples", ROWS]
    return ["quantize", MODEL, "-o", out, "--scheme", "FP8", "--kv-cache", "fp8", *data]


@pytest.fixture(scope="module")
def made(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return what the command made, and its report."""
    out = tmp_path_factory.mktemp("made") / "stories-FP8-KV"
    result = fp8(*words_of(texts, out), "--json")
    assert result.returncode == 0, result.stderr
    said = result.stderr.splitlines()
    assert said[0].startswith(f"calibration data: {ROWS} samples, ")
    assert said[1:3] == ["loading the model for calibration", "0/4 parts of the model calibrated"]
    report: dict[str, Any] = json.loads(result.stdout)["result"]
    return out, report


def test_all_of_it_is_what_oneshot_makes_of_the_same_data(
    made: tuple[Path, dict[str, Any]], texts: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = [json.loads(line)["text"] for line in texts.read_text(encoding="utf-8").splitlines()]
    ids = [tokenizer(row)["input_ids"] for row in rows]
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    recipe = QuantizationModifier(
        targets="Linear", scheme="FP8", ignore=["lm_head"], kv_cache_scheme={**cache, "observer": "static_minmax"}
    )
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}),
        recipe=recipe,
        num_calibration_samples=ROWS,
        shuffle_calibration_samples=False,
    )
    theirs = tmp_path / "theirs"
    model.save_pretrained(theirs, save_compressed=True)
    ours, _ = made
    assert_same(ours, theirs)
    assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()
    recipe_lines = (ours / "recipe.yaml").read_text().splitlines(keepends=True)
    assert "".join(line for line in recipe_lines if not line.startswith("#")) == (theirs / "recipe.yaml").read_text()


def test_report_card_and_recipe_say_what_data_it_was(made: tuple[Path, dict[str, Any]], texts: Path) -> None:
    out, report = made
    calibration, facts = report["calibration"], report["calibration"]["facts"]
    assert (report["name"], report["kv_cache"]) == ("FP8 + FP8 KV cache", "tensor")
    assert (calibration["scales"], calibration["samples"], calibration["known"]) == (27, ROWS, False)
    assert calibration["source"] == str(texts)
    assert facts["tokens"] > ROWS
    for name in ("README.md", "recipe.yaml"):
        content = (out / name).read_text()
        assert facts["token_ids_sha256"] in content
        assert f"{ROWS} samples of stories.jsonl" in content
        assert str(texts) not in content, "the folders of a user are nobody's business"
    assert f"llmcompressor {facts['versions']['llmcompressor']}" in (out / "README.md").read_text()
    assert {finding["status"] for finding in report["findings"]} == {"passed"}
    # An estimate that a real run exceeds would be no warning.
    assert facts["peak_memory_bytes"] < calibration["memory_bytes"] * 1.2


def test_inspect_finds_it_healthy(made: tuple[Path, dict[str, Any]]) -> None:
    result = fp8("inspect", made[0], "--against", MODEL, "--json")
    report = json.loads(result.stdout)["result"]
    assert (result.returncode, report["verdict"]) == (0, "healthy")
    assert report["quantization"]["scheme"] == "FP8"
    assert report["quantization"]["kv_cache"]


def test_transformers_loads_it_and_its_logits_stay_close(made: tuple[Path, dict[str, Any]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made[0])
    batch = tokenizer(prompts(), return_tensors="pt", padding=True)
    with torch.no_grad():
        scores = [
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)(**batch).logits.float().log_softmax(-1)
            for model in (MODEL, made[0])
        ]
    chosen = batch["input_ids"][:, 1:].unsqueeze(-1)
    base, ours = (score[:, :-1].gather(-1, chosen)[batch["attention_mask"][:, 1:].bool()] for score in scores)
    shifts = (ours - base).abs()
    assert 0 < shifts.mean() < LARGEST_MEAN_SHIFT
    assert shifts.max() < LARGEST_SHIFT


def test_compare_finds_no_regression(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for model in (MODEL, made[0]):
        words = [
            "--tasks",
            "fp8_stories",
            "--limit",
            str(ITEMS),
            "--backend",
            "hf",
            "--no-fidelity",
            "--runs",
            str(runs),
        ]
        evaluated = starting.fp8(tmp_path, "eval", model, *words)
        assert evaluated.code == 0, evaluated.err
    result = fp8("compare", "base", "fp8", "--runs", runs, "--json")
    assert result.returncode in {0, 4}, result.stderr
    verdicts = {contest["verdict"] for contest in json.loads(result.stdout)["result"]["comparison"]["contests"]}
    assert "regression" not in verdicts


def test_the_cache_alone_leaves_every_weight_as_it_was(texts: Path, tmp_path: Path) -> None:
    calibration = CalibrationOptions(data=str(texts), samples=4)
    request = QuantizeRequest(model=str(MODEL), out=tmp_path / "out", scheme="none", kv_cache="fp8-head")
    report = run(QuantizeRequest(**{**vars(request), "calibration": calibration}))
    assert {finding.status for finding in report.findings} == {"passed"}
    before, after = tensors(MODEL), tensors(report.out)
    assert {name: after[name] for name in before} == before
    added = set(after) - set(before)
    assert added == {f"model.layers.{layer}.self_attn.{kind}_scale" for layer in range(3) for kind in "kv"}
    assert {after[name][1] for name in added} == {(4, 1, 1)}


def test_vllm_keeps_the_cache_in_fp8_and_says_what_the_original_says(texts: Path, tmp_path: Path) -> None:
    """vLLM's CPU build has no static FP8, but FP8_DYNAMIC, and an FP8 cache that it scales as it is told."""
    calibration = CalibrationOptions(data=str(texts), samples=ROWS)
    request = QuantizeRequest(model=str(MODEL), out=tmp_path / "out", kv_cache="fp8", calibration=calibration)
    answers, log = in_vllm(run(request).out, tmp_path)
    tokens = re.search(r"KV cache size: ([\d,]+) tokens", log)
    assert tokens, log[-2000:]
    # Of the 1 GiB set aside: three layers, four heads of 32 numbers, keys and values, a byte each.
    assert 2**30 / int(tokens[1].replace(",", "")) == pytest.approx(3 * 4 * 32 * 2, rel=0.01)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    shifts: list[float] = []
    for prompt, answer in zip(prompts(), answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores = model(ids).logits.float().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
        shifts += (scores - torch.tensor(answer["prompt_logprobs"])).abs().tolist()
    assert 0 < statistics.mean(shifts) < LARGEST_MEAN_SHIFT
    assert max(shifts) < LARGEST_SHIFT


KILLED = """
import os, signal, sys, time
from pathlib import Path
from fp8cli.commands.quantize import CalibrationOptions, QuantizeRequest, run
from fp8cli.core.quantizing.engine import Progress
left = 60
def notify(event):
    global left
    if isinstance(event, Progress):
        left -= 1
        time.sleep(0.005)  # Time for the journal to hear of the pieces before.
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
calibration = CalibrationOptions(data=sys.argv[3], samples=int(sys.argv[4]))
run(QuantizeRequest(model=sys.argv[1], out=Path(sys.argv[2]), scheme="FP8", kv_cache="fp8", calibration=calibration,
                    workers=1, piece_bytes=4096), notify)
"""


def test_a_run_killed_while_it_writes_goes_on_and_does_not_calibrate_again(
    made: tuple[Path, dict[str, Any]], texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(MODEL), str(out), str(texts), str(ROWS)]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == -signal.SIGKILL
    assert not out.exists()
    # What was found lies beside the output in the making, and answers nothing but the same question.
    other = tmp_path / "other"
    shutil.copytree(partial_folder(out), partial_folder(other))
    events: list[str] = []
    request = QuantizeRequest(
        model=str(MODEL),
        out=out,
        scheme="FP8",
        kv_cache="fp8",
        calibration=CalibrationOptions(data=str(texts), samples=ROWS),
        piece_bytes=4096,
    )
    report = run(request, lambda event: events.append(type(event).__name__))
    assert report.calibration is not None
    assert report.calibration.known
    assert report.bytes_resumed > 0
    # What was read and written before is hashed again, and nothing else of it is done again.
    assert set(events) <= {"Started", "Progress", "ReadingBegins", "BytesRead"}
    assert set(events) >= {"Started", "Progress"}
    assert_same(out, made[0])
    for name in ("README.md", "recipe.yaml", "config.json"):
        assert (out / name).read_text().replace("# out", "# stories-FP8-KV").replace(
            "serve out", "serve stories-FP8-KV"
        ) == (made[0] / name).read_text()

    fewer = CalibrationOptions(data=str(texts), samples=2)
    report = run(QuantizeRequest(**{**vars(request), "out": other, "calibration": fewer}))
    assert report.calibration is not None
    assert not report.calibration.known
    theirs, ours = load_file(made[0] / "model.safetensors"), load_file(other / "model.safetensors")
    changed = {name for name in ours if not torch.equal(ours[name].float(), theirs[name].float())}
    assert changed
    assert all(name.endswith(("input_scale", "k_scale", "v_scale")) for name in changed)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_ended_while_it_calibrates_publishes_nothing_and_leaves_no_process(
    texts: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    events = partial_folder(out) / CALIBRATION / "events-0.jsonl"
    with started(*words_of(texts, out)) as process:
        wait_until(lambda: events.exists() and '"texts"' in events.read_text())
        worker = json.loads(events.read_text().splitlines()[0])["pid"]
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    wait_until(lambda: not Path(f"/proc/{worker}").exists())
    assert not out.exists()
    if number == signal.SIGINT:
        assert "error: interrupted while calibrating" in said
        assert list(tmp_path.iterdir()) == []


def test_a_calibration_that_fails_keeps_its_log_and_stands_in_the_way_of_nothing(texts: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "source", llama_config())  # Without a tokenizer.
    out = tmp_path / "out"
    data = ["--calibration-data", texts, "--num-calibration-samples", ROWS]
    result = fp8("quantize", model, "-o", out, "--scheme", "FP8", *data)
    assert result.returncode == 3
    assert result.stderr.startswith("error: the checkpoint has no tokenizer that can be loaded")
    log = partial_folder(out) / CALIBRATION / "calibration.log"
    assert f"the whole log: {log}" in result.stderr
    assert "Traceback" in log.read_text()
    assert "Traceback" not in result.stderr
    assert not out.exists()
    result = fp8("quantize", model, "-o", out)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(1200):
        if is_so():
            return
        time.sleep(0.05)
    message = "it never came to that"
    raise AssertionError(message)
