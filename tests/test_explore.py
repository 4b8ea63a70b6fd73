"""`fp8 explore`: the real command on the bundled model, against checkpoints that are written and read by others."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig

from fp8cli.commands import explore as command
from fp8cli.commands.explore import ExploreRequest, TaskOptions
from fp8cli.core.sampling.data import BUNDLED_STORIES, read_calibration
from fp8cli.core.simulating.words import simulated_scheme
from fp8cli.errors import BadInput, UsageError
from fp8cli.measurer.explore_protocol import ExploreWork
from fp8cli.measurer.exploring import explore
from fp8cli.measurer.protocol import MeasureJob
from fp8cli.samples.encoding import Encoded
from fp8cli.worker.failures import Failure
from fp8cli.worker.progress import Progress
from tests.calibrated import MODEL
from tests.models import llama_config, save_model
from tests.starting import Run, fp8, words_of

TEXTS = 64
FORMS = "fp8_dynamic,fp8+kv,none+kv,mxfp8"


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("explored")
    words = ("explore", MODEL, "--scheme", FORMS, "--num-calibration-samples", str(TEXTS), "--json")
    run = fp8(folder, *words, TMPDIR=str(folder))
    assert run.code == 0, run.err
    assert [path.name for path in folder.iterdir()] == ["loaded.json"]
    return run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "out"
    assert fp8(out.parent, "quantize", MODEL, "-o", out).code == 0
    return out


def rows_of(run: Run) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in run.report["rows"]}


def log_probabilities(model: Any, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of the next token after each of a text but its last: [len(ids) − 1, V], float64."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double().numpy()
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: np.ndarray[Any, np.dtype[np.float64]] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def test_the_kl_is_that_of_the_written_checkpoint_as_transformers_runs_it(explored: Run, written: Path) -> None:
    """Texts go through in other batches here, which in bfloat16 moves a KL of 5·10⁻⁴ by up to 2 %."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    texts = [row.content for row in read_calibration(None, model=MODEL, samples=TEXTS).rows][::2]
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    other = AutoModelForCausalLM.from_pretrained(written, dtype=torch.bfloat16)
    kl, same = [], []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        ours, theirs = log_probabilities(base, ids), log_probabilities(other, ids)
        kl.append((np.exp(ours) * (ours - theirs)).sum(axis=-1))
        same.append(ours.argmax(-1) == theirs.argmax(-1))
    row = rows_of(explored)["FP8_DYNAMIC"]
    assert row["kl"] == pytest.approx(float(np.concatenate(kl).mean()), rel=0.02)
    assert row["same_top"] == pytest.approx(float(np.concatenate(same).mean()), abs=0.005)
    assert explored.report["texts"]["positions"] == sum(map(len, kl))
    assert explored.report["texts"]["measured_on"] == explored.report["texts"]["calibrated_on"] == TEXTS // 2


def test_size_and_sqnr_are_those_that_inspect_finds_in_the_written_checkpoint(
    explored: Run, written: Path, tmp_path: Path
) -> None:
    """inspect decodes exactly; a model that computes in bfloat16 rounds what it decodes once more, 0.01 dB worse."""
    row = rows_of(explored)["FP8_DYNAMIC"]
    assert row["file_bytes"] == sum(path.stat().st_size for path in written.glob("*.safetensors"))
    against = fp8(tmp_path, "inspect", written, "--against", MODEL, "--json").report["against"]
    assert row["sqnr_db"] == pytest.approx(against["sqnr_db"], abs=0.02)
    worst = against["weights"][0]
    assert worst["name"] == f"{row['worst']['name']}.weight"
    assert row["worst"]["sqnr_db"] == pytest.approx(worst["sqnr_db"], abs=0.02)


def test_the_report_has_a_row_for_each_form_and_the_one_to_take(explored: Run) -> None:
    rows = rows_of(explored)
    assert sorted(rows) == ["FP8+KV", "FP8_DYNAMIC", "MXFP8", "NONE+KV"]
    assert [row["kl"] for row in explored.report["rows"]] == sorted(row["kl"] for row in rows.values())
    assert rows["NONE+KV"]["kl"] < rows["FP8_DYNAMIC"]["kl"] < rows["MXFP8"]["kl"]
    assert rows["NONE+KV"]["sqnr_db"] is None
    assert rows["FP8_DYNAMIC"]["sqnr_db"] > rows["MXFP8"]["sqnr_db"]
    assert all(row["failure"] is None and row["kl_se"] > 0 for row in rows.values())
    assert rows["MXFP8"]["command"] is None
    assert rows["FP8+KV"]["command"] == f"fp8 quantize {MODEL} --scheme FP8 --kv-cache fp8"
    assert explored.report["pick"]["name"] == "FP8_DYNAMIC"
    assert explored.report["next_command"] == f"fp8 quantize {MODEL} --scheme FP8_DYNAMIC"
    assert "torch" not in explored.loaded
    assert "numpy" not in explored.loaded


class _Heard(Progress):
    """Events, kept."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 0)
        self.steps: list[str] = []

    def tell(self, event: str, **facts: Any) -> None:
        if event == "step":
            self.steps.append(facts["name"])


def explore_here(model: Any, words: str, modules: Sequence[str], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Explore a model in this process, on a few token ids."""
    work = ExploreWork(
        schemes=tuple(map(simulated_scheme, words.split(","))), weights=tuple(f"{name}.weight" for name in modules)
    )
    job = MeasureJob(model="", dtype="", device="cpu", samples=None, positions=1000, budget_bytes=10**9, work=work)
    texts = Encoded(ids=((1, 5, 9, 30), (1, 8, 70, 11), (4, 5, 6)), max_seq_length=4, conversations=False)
    heard = _Heard(folder)
    return dict(explore(job, work, model, texts, None, folder, heard)), heard.steps


def tiny_model() -> Any:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(llama_config()).to(torch.bfloat16).eval()


MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def tiny_mixtral() -> Any:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    config = MixtralConfig(vocab_size=320, hidden_size=128, intermediate_size=128, **sizes)
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()


EXPERTS = tuple(f"model.layers.0.block_sparse_moe.experts.{number}.w{part}" for number in (0, 1) for part in (1, 2, 3))


@pytest.mark.parametrize(("make", "modules"), [(tiny_model, MODULES), (tiny_mixtral, EXPERTS)])
def test_the_model_is_bit_for_bit_what_it_was_after_all_forms(
    make: Callable[[], Any], modules: Sequence[str], tmp_path: Path
) -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = model(torch.tensor([[1, 5, 9]])).logits
    found, steps = explore_here(
        model, "fp8_dynamic,fp8_block,fp8+kv,e5m2_dynamic,mxfp8,none+kv-head", modules, tmp_path
    )
    assert steps == [form["name"] for form in found["forms"]]
    assert not any(form["failure"] for form in found["forms"])
    assert all(len(form["noise"]) == len(modules) for form in found["forms"][:-1])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(model(torch.tensor([[1, 5, 9]])).logits, said)
    assert found["lengths"] == (3, 2)


def test_a_form_that_fails_is_an_entry_with_its_reason_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    # An attention that is no module of the model's: there is no cache to round.
    monkeypatch.setattr("fp8cli.simulator.observing.find_attentions", _no_attention)
    found, _ = explore_here(model, "none+kv,fp8_dynamic", MODULES, tmp_path)
    failed, made = found["forms"]
    assert failed == {"name": "NONE+KV", "failure": {"message": "no attention is known", "hint": "none"}}
    assert made["failure"] is None
    assert made["kl"] > 0


def _no_attention(_model: Any) -> Any:
    raise Failure(kind="model", message="no attention is known", hint="none")


def test_where_every_form_fails_the_reason_is_the_end(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"`model\.layers\.9\.none`"):
        explore_here(tiny_model(), "fp8_dynamic,mxfp8", ["model.layers.9.none"], tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scheme", "int4"], "`int4` is nothing that can be simulated"),
        (["--json", "--markdown"], "--json and --markdown exclude each other"),
    ],
)
def test_words_that_make_no_sense_are_refused_in_a_sentence(words: list[str], message: str, tmp_path: Path) -> None:
    run = fp8(tmp_path, "explore", MODEL, *words, TMPDIR=str(tmp_path))
    assert run.code == 2
    assert run.err.startswith(f"error: {message}")
    assert run.err.count("\n") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["loaded.json"]
    assert "torch" not in run.loaded


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 1}, "--num-calibration-samples is 1, and must be 2 or more"),
        ({"max_seq_length": 1}, "--max-seq-length is 1, and must be 2 or more"),
        ({"positions": 0}, "--positions is 0, and must be 1 or more"),
        ({"device": "gpu"}, "`gpu` is no device"),
        ({"device": "cuda:-1"}, "`cuda:-1` is no device"),
        ({"tasks": TaskOptions(limit=5)}, "--limit and --sample choose items of tasks, and no task is named"),
        ({"tasks": TaskOptions(names=("x",), limit=5, sample=3)}, "--limit and --sample exclude each other"),
        ({"data": "~nobody-of-that-name/texts.jsonl"}, "`~nobody-of-that-name/texts.jsonl` is no data"),
        ({"model": "no/such/folder"}, "`no/such/folder` does not exist"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_anything_is_loaded(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, BadInput)) as refusal:
        command.run(ExploreRequest(**{"model": str(MODEL), **changes}))
    assert refusal.value.message.startswith(message)


def test_a_model_without_texts_or_that_is_quantized_is_refused_before_anything_is_loaded(
    written: Path, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model", llama_config())
    run = fp8(tmp_path, "explore", model)
    assert (run.code, run.err.splitlines()[0]) == (2, f"error: there are no texts to measure `{model}` on")
    assert "--calibration-data" in run.err
    run = fp8(tmp_path, "explore", written, "--calibration-data", BUNDLED_STORIES)
    assert run.code == 3
    assert run.err.startswith(f"error: `{written}` is quantized already: ")
    run = fp8(tmp_path, "explore", MODEL, "--calibration-data", tmp_path / "none.jsonl")
    assert run.code == 3
    assert run.err.startswith(f"error: `{tmp_path / 'none.jsonl'}` does not exist")


@pytest.mark.slow
def test_a_model_without_a_tokenizer_is_refused_in_a_sentence_and_the_log_stays(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", llama_config())
    place = tmp_path / "tmp"
    place.mkdir()
    run = fp8(
        tmp_path, "explore", model, "--calibration-data", BUNDLED_STORIES, "--scheme", "fp8_dynamic", TMPDIR=str(place)
    )
    assert run.code == 3
    assert run.err.splitlines()[-3].startswith("error: the checkpoint has no tokenizer that can be loaded")
    logs = list(place.rglob("*"))
    assert [path.name for path in logs[1:]] == ["measurement.log"]
    assert f"the whole log: {logs[1]}" in run.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_process_and_ctrl_c_no_file(tmp_path: Path, number: signal.Signals) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    words = words_of(tmp_path, "explore", MODEL, "--num-calibration-samples", "64")
    environment = os.environ | {"TMPDIR": str(place)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        wait_until(lambda: any('"loading"' in path.read_text() for path in place.glob("*/events-0.jsonl")))
        events = next(place.glob("*/events-0.jsonl")).read_text()
        worker = json.loads(events.splitlines()[0])["pid"]
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    wait_until(lambda: not Path(f"/proc/{worker}").exists())
    if number == signal.SIGINT:
        assert "error: interrupted" in said
        assert list(place.iterdir()) == []


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(2400):
        if is_so():
            return
        sleep(0.05)
    raise AssertionError("waited in vain")


@pytest.mark.slow
def test_tasks_are_asked_in_the_same_loading_and_paired_item_by_item(tmp_path: Path) -> None:
    words = ("--scheme", "fp8_dynamic,e5m2_dynamic", "--tasks", "fp8_stories", "--limit", "40", "--json")
    run = fp8(tmp_path, "explore", MODEL, *words, "--num-calibration-samples", "4", TMPDIR=str(tmp_path))
    assert run.code == 0, run.err
    for row in run.report["rows"]:
        (task,) = row["tasks"]
        assert task["task"] == "fp8_stories"
        accuracy, perplexity = task["metrics"]
        assert (accuracy["metric"], accuracy["items"], accuracy["paired"]) == ("acc", 40, True)
        assert accuracy["interval"]["low"] <= accuracy["difference"] <= accuracy["interval"]["high"]
        assert perplexity["metric"] == "perplexity"
        assert perplexity["other"] != perplexity["base"]
    evaluated = fp8(
        tmp_path, "eval", MODEL, "--tasks", "fp8_stories", "--limit", "40", "--runs", tmp_path / "runs", "--json"
    )
    values = {result["metric"]: result["value"] for result in evaluated.report["results"]}
    first = run.report["rows"][0]["tasks"][0]["metrics"]
    assert {metric["metric"]: metric["base"] for metric in first} == values
