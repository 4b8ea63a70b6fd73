"""Mixed FP8 and 16 bits within a budget, by the real command: what hurts is kept, and what is said of it holds."""

import itertools
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fp8cli.core.budgeting.work_place import BUDGET
from fp8cli.core.measuring.measuring_events import StepBegins
from fp8cli.core.simulating.words import simulated_scheme
from fp8cli.errors import BadInput, CannotRun
from fp8cli.formats.staging import partial_folder
from fp8cli.measurer.budget_forms import SimulatedForms
from fp8cli.measurer.budget_outputs import measure_outputs
from fp8cli.simulator.observing import observe
from tests.budgets import FRAGILE, STORIES, decide_on, plant_fragility
from tests.calibrated import MODEL
from tests.starting import Run, fp8, words_of

KEPT = ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"]
LIMIT = 0.0008
ROWS = 24


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_fragility(tmp_path_factory.mktemp("fragile") / "stories")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "stories.jsonl"
    path.write_text("".join(f"{line}\n" for line in STORIES.read_text("utf-8").splitlines()[:ROWS]), "utf-8")
    return path


@pytest.fixture(scope="module")
def made(fragile: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("made")
    data = ["--calibration-data", texts, "--num-calibration-samples", ROWS]
    budget = ["--keep-bf16", "auto", "--max-kl", LIMIT]
    return folder, fp8(folder, "quantize", fragile, "-o", folder / "out", "--json", *budget, *data)


def log_probabilities(folder: Path, texts: Path) -> list["np.ndarray[tuple[int, int], np.dtype[np.float64]]"]:
    """Ask plain transformers, with compressed-tensors' own forward where the checkpoint is quantized."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    found = []
    with torch.inference_mode():
        for line in texts.read_text("utf-8").splitlines():
            ids = tokenizer(json.loads(line)["text"], return_tensors="pt")["input_ids"]
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double().numpy()
            shifted = logits - logits.max(-1, keepdims=True)
            found.append(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
    return found


def test_the_fragile_layer_ranks_first_and_stays_alone_in_16_bits(made: tuple[Path, Run]) -> None:
    _, run = made
    assert run.code == 0, run.err
    budget = run.report["budget"]
    assert [group["name"] for group in budget["groups"] if group["kept"]] == [FRAGILE]
    first, second = budget["groups"][:2]
    assert first["name"] == FRAGILE
    assert first["kl_alone"] > 2 * second["kl_alone"]
    assert budget["kept_modules"] == budget["ignore"] == KEPT
    assert budget["chosen"]["kl"] <= LIMIT
    # The light side of the tool stays light.
    assert not {"torch", "transformers"} & set(run.loaded)


def test_the_kl_that_is_said_is_that_of_the_written_checkpoint(
    made: tuple[Path, Run], fragile: Path, texts: Path
) -> None:
    folder, run = made
    base, other = log_probabilities(fragile, texts), log_probabilities(folder / "out", texts)
    each = np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in zip(base, other, strict=True)])
    budget = run.report["budget"]
    assert budget["positions"] == len(each)
    assert each.mean() <= LIMIT
    assert each.mean() == pytest.approx(budget["chosen"]["kl"], rel=0.02)


def test_the_curve_has_measured_sets_that_no_other_beats_and_marks_the_choice(made: tuple[Path, Run]) -> None:
    _, run = made
    budget = run.report["budget"]
    points = budget["curve"]
    assert [point["tensor_bytes"] for point in points] == sorted({point["tensor_bytes"] for point in points})
    assert [point["kl"] for point in points] == sorted({point["kl"] for point in points}, reverse=True)
    assert points[-1]["kl"] == 0
    assert [point for point in points if point["chosen"]] == [budget["chosen"]]
    assert budget["chosen"]["tensor_bytes"] == sum(run.report["bytes_after"].values())
    # Nothing smaller was within the budget.
    smaller = [point for point in points if point["tensor_bytes"] < budget["chosen"]["tensor_bytes"]]
    assert all(point["kl"] > LIMIT for point in smaller)


def test_config_recipe_and_card_say_what_stays_and_why(made: tuple[Path, Run]) -> None:
    folder, _ = made
    out = folder / "out"
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["quantization_config"]["ignore"] == [*KEPT, "lm_head"]
    recipe = (out / "recipe.yaml").read_text("utf-8")
    assert "ignore: [lm_head, model.layers.1.mlp.gate_proj, model.layers.1.mlp.up_proj]" in recipe
    assert f"# Kept in 16 bits by --max-kl {LIMIT}: 1 of 12 groups" in recipe
    card = (out / "README.md").read_text("utf-8")
    assert f"| Mixed | --max-kl {LIMIT}: 1 of 12 groups" in card
    assert "tokens of stories.jsonl |" in card
    assert str(folder) not in card + recipe


def test_what_was_measured_is_gone_with_the_run(made: tuple[Path, Run]) -> None:
    folder, _ = made
    assert sorted(path.name for path in folder.iterdir()) == ["loaded.json", "out"]


def test_outputs_show_the_fragile_layer_and_an_unfinished_run_does_not_measure_them_again(
    fragile: Path, texts: Path, tmp_path: Path
) -> None:
    told: list[object] = []
    first = decide_on(fragile, tmp_path / "out", data=texts, samples=4, min_sqnr=24.0, notify=told.append)
    assert any(isinstance(event, StepBegins) for event in told)
    lowest, next_lowest = (group.output_sqnr_db for group in first.groups[:2])
    assert lowest is not None
    assert next_lowest is not None
    assert lowest < next_lowest - 3
    assert [group.kept for group in first.groups] == [(group.output_sqnr_db or 0.0) < 24.0 for group in first.groups]
    assert next(group.name for group in first.groups if group.kept) == FRAGILE
    told.clear()
    again = decide_on(fragile, tmp_path / "out", data=texts, samples=4, min_sqnr=24.0, notify=told.append)
    assert not told
    assert again.known
    assert (again.groups, again.curve, again.ignore) == (first.groups, first.curve, first.ignore)


def test_outputs_are_noisy_by_their_own_rounding_and_not_by_that_of_the_cache() -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").eval()
    names, samples = ["model.layers.1.self_attn.o_proj"], [[1, 40, 900, 17, 300], [1, 7, 33]]
    scheme = simulated_scheme("fp8_dynamic+kv")
    cached = SimulatedForms(model=model, scheme=scheme, observed=observe(model, names, scheme.kv_cache, samples))
    plain = SimulatedForms(model=model, scheme=simulated_scheme("fp8_dynamic"), observed=None)
    ((signal, noise),) = measure_outputs(cached, names, samples)
    assert [[signal, noise]] == measure_outputs(plain, names, samples)
    assert 0 < noise < signal / 100
    # A set, whose KL is asked for, has the cache rounded all the same.
    with torch.inference_mode(), cached.rounded(names):
        rounded = model(torch.tensor(samples[:1])).logits
    with torch.inference_mode(), plain.rounded(names):
        assert not torch.equal(model(torch.tensor(samples[:1])).logits, rounded)


def test_weights_alone_do_not_show_the_fragile_layer_and_say_so(fragile: Path, tmp_path: Path) -> None:
    told: list[object] = []
    report = decide_on(fragile, tmp_path / "out", min_sqnr=24.0, notify=told.append)
    assert report.ignore == ()
    assert report.source == "weights"
    assert "what that does to the model's answers is not" in report.notes[0]
    # Another budget is another question.
    told.clear()
    assert not decide_on(fragile, tmp_path / "out", min_sqnr=31.7, notify=told.append).known
    assert told


def test_static_scales_and_a_cache_are_measured_too_and_the_cache_sets_a_floor(
    fragile: Path, texts: Path, tmp_path: Path
) -> None:
    words = {"scheme": "FP8", "kv_cache": "fp8", "data": texts, "samples": 6}
    with pytest.raises(
        CannotRun, match="cannot be met: with every Linear in 16 bits the KL of the FP8 KV cache alone is"
    ):
        decide_on(fragile, tmp_path / "out", max_kl=1e-7, **words)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    report = decide_on(fragile, tmp_path / "out", target_size="1.4MB", dry_run=True, **words)  # type: ignore[arg-type]
    assert report.chosen.tensor_bytes <= 1_400_000
    assert report.chosen.kl is not None
    floor = report.curve[-1]
    assert len(floor.kept) == 12
    assert floor.kl is not None
    assert 0 < floor.kl < report.chosen.kl
    assert report.groups[0].name == FRAGILE
    assert report.groups[0].kept


def test_a_budget_that_leaves_nothing_to_quantize_is_refused_with_what_would_do(
    fragile: Path, texts: Path, tmp_path: Path
) -> None:
    with pytest.raises(CannotRun, match="--max-kl 0 leaves every Linear in 16 bits") as refusal:
        decide_on(fragile, tmp_path / "out", data=texts, samples=2, max_kl=0.0)
    assert refusal.value.hint is not None
    assert "the least KL with anything in FP8 was" in refusal.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_data_is_refused_before_a_model_is_loaded(fragile: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        decide_on(fragile, tmp_path / "out", data=tmp_path / "none.jsonl", max_kl=0.1)


def test_a_run_ended_while_it_measures_publishes_nothing_and_leaves_no_process(
    fragile: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    events = partial_folder(out) / BUDGET / "events-0.jsonl"
    words = ["quantize", fragile, "-o", out, "--keep-bf16", "auto", "--max-kl", "0.0001", "--calibration-data", texts]
    program = words_of(tmp_path, *words, "--num-calibration-samples", ROWS)  # type: ignore[arg-type]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: events.exists() and '"step"' in events.read_text())
        measurer = json.loads(events.read_text().splitlines()[0])["pid"]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "error: interrupted while sensitivities were measured, of which nothing is kept" in said
    assert "hint: fewer or shorter texts take less time; begin again with: fp8 quantize " in said
    wait_until(lambda: not Path(f"/proc/{measurer}").exists())
    assert [path.name for path in tmp_path.iterdir()] == ["loaded.json"]


@pytest.mark.slow
def test_a_mixed_static_checkpoint_has_scales_where_it_is_fp8_and_the_kl_that_is_said(
    fragile: Path, texts: Path, tmp_path: Path
) -> None:
    budget = [*"--scheme FP8 --keep-bf16 auto --target-size 1.3MB --num-calibration-samples".split(), ROWS]
    run = fp8(tmp_path, "quantize", fragile, "-o", tmp_path / "out", "--json", *budget, "--calibration-data", texts)
    assert run.code == 0, run.err
    found = run.report["budget"]
    assert (tmp_path / "out" / "model.safetensors").stat().st_size <= 1_300_000
    stored = load_file(tmp_path / "out" / "model.safetensors")
    inputs = {name.removesuffix(".input_scale") for name in stored if name.endswith(".input_scale")}
    in_fp8 = {module for group in found["groups"] if not group["kept"] for module in group["modules"]}
    assert inputs == in_fp8
    assert FRAGILE in [group["name"] for group in found["groups"] if group["kept"]]
    base, other = log_probabilities(fragile, texts), log_probabilities(tmp_path / "out", texts)
    each = np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in zip(base, other, strict=True)])
    assert each.mean() == pytest.approx(found["chosen"]["kl"], rel=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_vllm_serves_a_mixed_checkpoint_and_names_what_it_runs(made: tuple[Path, Run], tmp_path: Path) -> None:
    from tests.test_serving import LARGEST_MEAN_SHIFT, in_vllm, prompts

    folder, _ = made
    answers, log = in_vllm(folder / "out", tmp_path)
    assert "CompressedTensorsW8A8Fp8" in log
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    shifts = []
    for answer, prompt in zip(answers, prompts(), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        base = logits.gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()
        shifts += [abs(one - two) for one, two in zip(answer["prompt_logprobs"], base, strict=True)]
    assert 0 < sum(shifts) / len(shifts) < LARGEST_MEAN_SHIFT


def test_as_few_texts_as_needed_are_asked_about_and_from_all_over() -> None:
    from fp8cli.measurer.budget import TEXTS, enough

    texts = [(number,) * 101 for number in range(1000)]
    taken = enough(texts, 5000)
    # A text has 100 positions, and its share of 5,000 is 40.
    assert len(taken) == TEXTS - 3
    assert [text[0] for text in taken] == sorted(text[0] for text in taken)
    assert max(two[0] - one[0] for one, two in itertools.pairwise(taken)) < 3 * 1000 / len(taken)
    assert enough(texts[:3], 5000) == texts[:3]


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(1200):
        if is_so():
            return
        time.sleep(0.05)
    message = "it never came to that"
    raise AssertionError(message)


def test_a_bundled_model_has_data_of_its_own(tmp_path: Path) -> None:
    # The folder of the bundled model itself; a copy of it knows nothing of its stories.
    from fp8cli.core.budgeting.budgets import Budget
    from fp8cli.core.budgeting.ordering import order_budget
    from fp8cli.core.calibrating.ordering import CalibrationOptions
    from fp8cli.core.quantizing.choices import choose

    budget = Budget(kind="size", value=10**6, said="--target-size 1MB")
    own = order_budget(budget, CalibrationOptions(), choose("FP8_DYNAMIC", None), model=MODEL)
    assert own.data is not None
    assert own.data.source == "the bundled stories"
    shutil.copytree(MODEL, tmp_path / "copy")
    copy = order_budget(budget, CalibrationOptions(), choose("FP8_DYNAMIC", None), model=tmp_path / "copy")
    assert copy.data is None
