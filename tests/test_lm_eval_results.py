"""Results and samples of lm-eval, and its printed tables: read as lm-eval 0.4.13 writes them, or refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fp8cli.errors import BadInput
from fp8cli.formats.lm_eval_results import Score, read_results
from fp8cli.formats.lm_eval_samples import SHOWN, Answer, read_samples
from fp8cli.formats.pasted_table import read_table
from tests.lm_eval_files import (
    DATE,
    choice_sample,
    likelihood_sample,
    page_sample,
    sha256,
    text_sample,
    write_results,
)

MODEL = Path(__file__).parent.parent / "fp8cli/bundled/stories-llama"

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
metadata: {{version: 1.0}}
{rest}
"""
REST = {
    "ll": """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "mc": """
output_type: multiple_choice
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_choice: "{{[text.split(' ')[-1], 'the', 'yellow', 'Walter']}}"
doc_to_target: 0
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "roll": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "gen": """
output_type: generate_until
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{text.split(' ')[-1]}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
filter_list:
  - name: strict
    filter: [{function: regex, regex_pattern: "^\\\\s*(\\\\w+)"}, {function: take_first}]
  - name: loose
    filter: [{function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}
ITEMS = 12
LM_EVAL = """
import sys
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
model, tasks, output = sys.argv[1:]
tracker = EvaluationTracker(output_path=output)
manager = TaskManager(include_path=tasks, include_defaults=False)
results = simple_evaluate(
    model="hf",
    model_args=dict(pretrained=model, dtype="bfloat16", softmax_dtype="float32", add_bos_token=True, max_length=256),
    tasks=["all_of_them"], limit=12, batch_size=4, device="cpu", task_manager=manager, bootstrap_iters=0,
)
samples = results.pop("samples")
tracker.save_results_aggregated(results=results, samples=samples)
for task in results["configs"]:
    tracker.save_results_samples(task_name=task, samples=samples[task])
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results file that lm-eval itself wrote, with a task of each kind."""
    folder = tmp_path_factory.mktemp("real")
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, rest in REST.items():
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, data=MODEL / "heldout.jsonl", rest=rest))
    (tasks / "all.yaml").write_text("group: all_of_them\ntask: [ll, mc, roll, gen]\n")
    subprocess.run(
        [sys.executable, "-c", LM_EVAL, str(MODEL), str(tasks), str(folder / "out")],
        check=True,
        capture_output=True,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    return next((folder / "out").rglob("results_*.json"))


@pytest.mark.slow
def test_what_lm_eval_writes_is_read_with_nothing_lost(real: Path) -> None:
    results, raw = read_results(real), json.loads(real.read_text("utf-8"))
    assert list(results.tasks) == ["ll", "mc", "roll", "gen"]
    assert results.groups == {"all_of_them": ("ll", "mc", "roll", "gen")}
    for name, task in results.tasks.items():
        assert {f"{score.metric},{score.filter}": score.value for score in task.scores} == {
            key: value
            for key, value in raw["results"][name].items()
            if "," in key and not key.partition(",")[0].endswith("_stderr")
        }
        assert (task.items, task.version, task.num_fewshot, task.hash) == (ITEMS, "1.0", 0, raw["task_hashes"][name])
    assert {score.metric: score.higher_is_better for score in results.tasks["ll"].scores} == {
        "perplexity": False,
        "acc": True,
    }
    assert (results.backend, results.dtype, results.max_length, results.batch_size) == ("hf", "bfloat16", 256, "4")
    assert results.model == str(MODEL)
    assert results.model_args["softmax_dtype"] == "float32"
    assert results.says_template
    assert results.chat_template_sha256 is None
    assert results.versions["lm_eval"] == raw["lm_eval_version"]


@pytest.mark.slow
def test_the_samples_that_lm_eval_writes_add_up_to_its_scores(real: Path) -> None:
    tasks = read_results(real).tasks
    for task in tasks.values():
        assert task.samples is not None
        samples = list(read_samples(task.samples))
        filters = {score.filter for score in task.scores}
        assert len(samples) == ITEMS * len(filters)
        assert {sample.filter for sample in samples} == filters
        assert all(sample.doc_hash and sample.prompt_hash and sample.target_hash for sample in samples)
        assert all(sample.prompt.endswith(tuple("abcdefghijklmnopqrstuvwxyz,")) for sample in samples)
    accuracy = [sample.values["acc"] for sample in read_samples(_samples(tasks["ll"].samples))]
    assert sum(map(float, accuracy)) / ITEMS == next(s.value for s in tasks["ll"].scores if s.metric == "acc")
    choices = list(read_samples(_samples(tasks["mc"].samples)))
    assert {sample.choices for sample in choices} == {4}
    # What is read as the answer is what lm-eval judged: right exactly where it is the first choice.
    for sample in choices:
        assert sample.answer is not None
        assert sample.answer_by_length is not None
        assert (sample.answer.exact == 0, sample.answer_by_length.exact == 0) == (
            sample.values["acc"] == 1,
            sample.values["acc_norm"] == 1,
        )
    assert all(sample.answer is None for sample in read_samples(_samples(tasks["roll"].samples)))
    assert all(sample.answer and sample.answer.text for sample in read_samples(_samples(tasks["gen"].samples)))


def _samples(path: Path | None) -> Path:
    assert path is not None
    return path


def test_of_a_line_only_what_a_comparison_needs_is_kept(tmp_path: Path) -> None:
    long = "x" * 10_000 + "END"
    rows = [likelihood_sample(0, right=True, loss=0.25, prompt=long)]
    results = read_results(write_results(tmp_path, {"t": rows}))
    (sample,) = read_samples(_samples(results.tasks["t"].samples))
    assert (len(sample.prompt), sample.prompt[-3:]) == (SHOWN, "END")
    assert sample.values == {"perplexity": -0.25, "acc": 1.0}
    assert sample.answer == Answer(exact=True, shown="the target")
    assert sample.prompt_hash == sha256(long)


def test_a_choice_is_known_by_its_number_and_shown_by_its_text(tmp_path: Path) -> None:
    # By likelihood alone the first is best; per character the second is: −3/1 against −4/2.
    write_results(tmp_path, {"t": [choice_sample(0, [-3.0, -4.0, -9.0])]})
    (sample,) = read_samples(tmp_path / f"samples_t_{DATE}.jsonl")
    assert sample.choices == 3
    assert sample.answer == Answer(exact=0, shown="a")
    assert sample.answer_by_length == Answer(exact=1, shown="bb")


def test_choices_without_the_question_are_no_choices(tmp_path: Path) -> None:
    row = choice_sample(0, [-3.0, -2.0, -0.1, -0.2])
    row["metrics"] = ["acc_mutual_info"]
    row["acc_mutual_info"] = 1.0
    write_results(tmp_path, {"t": [row]})
    (sample,) = read_samples(tmp_path / f"samples_t_{DATE}.jsonl")
    assert (sample.choices, sample.answer) == (2, Answer(exact=1, shown="bb"))


def test_generated_texts_are_equal_only_as_a_whole(tmp_path: Path) -> None:
    rows = [text_sample(number, text, "42", score=1.0) for number, text in enumerate(("so 42", "so 42", "thus 42"))]
    write_results(tmp_path, {"t": rows})
    first, second, third = (sample.answer for sample in read_samples(tmp_path / f"samples_t_{DATE}.jsonl"))
    assert first is not None
    assert third is not None
    assert first == second
    assert first.exact != third.exact
    assert (first.shown, first.text, third.text) == ("42", "so 42", "thus 42")


def test_a_generated_number_is_a_text_and_a_likelihood_of_a_page_is_none(tmp_path: Path) -> None:
    write_results(tmp_path, {"gen": [text_sample(0, "-3.5", "-3.5", score=0.0)], "page": [page_sample(0, 3.5, 2)]})
    (number,) = read_samples(tmp_path / f"samples_gen_{DATE}.jsonl")
    (page,) = read_samples(tmp_path / f"samples_page_{DATE}.jsonl")
    assert number.answer is not None
    assert number.answer.shown == "-3.5"
    assert page.answer is None
    assert page.values["word_perplexity"] == (-3.5, 2.0)


def test_model_args_that_were_typed_as_one_text_are_split(tmp_path: Path) -> None:
    config = {"model": "hf", "model_args": "pretrained=org/model,dtype=float16,add_bos_token=True"}
    results = read_results(write_results(tmp_path, {"t": [likelihood_sample(0, right=True)]}, config=config))
    assert (results.model, results.dtype) == ("org/model", "float16")
    assert results.model_args == {"dtype": "float16", "add_bos_token": "True"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "breaks off at character 0"),
        ('{"results": {"t": {"acc,none": 0.5', "breaks off at character"),
        ('{"results": x}', "is not JSON at character 12"),
        ("[]", "is not a results file of lm-eval"),
        ('{"weights": 1}', "is not a results file of lm-eval"),
        ('{"results": {}, "config": {}}', "is not a results file of lm-eval"),
        ('{"results": {"t": {"acc,none": NaN}}}', "has nan as acc of `t`, which is no number"),
        ('{"results": {"t": {"acc,none": 1e999}}}', "has inf as acc of `t`, which is no number"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_a_broken_results_file_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_results(path)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_results_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(BadInput, match="is not UTF-8 at byte 7"):
        read_results(path)
    with pytest.raises(BadInput, match="cannot be read"):
        read_results(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"doc_id": 1, "acc', "breaks off in line 2"),
        (b"{not json}\n", "is not JSON in line 2"),
        (b'{"text": "foreign"}\n', "line 2 has no `doc_id`"),
        (b'{"doc_id": 7, "metrics": ["acc"], "acc": NaN}\n', "has nan as acc of document 7"),
    ],
)
def test_a_broken_line_of_samples_is_refused_with_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_bytes(json.dumps(likelihood_sample(0, right=True)).encode() + b"\n" + line)
    with pytest.raises(BadInput) as caught:
        list(read_samples(path))
    assert message in caught.value.message


SEED = """
- BF16 (not quantized) LLAMA3-8B model.

|    Tasks     |Version|Filter|n-shot|  Metric  |   |Value |   |Stderr|
|--------------|------:|------|-----:|----------|---|-----:|---|-----:|
|lambada_openai|      1|none  |     5|acc       |↑  |0.7120|±  |0.0287|
|              |       |none  |     5|perplexity|↓  |3.8683|±  |0.3716|
"""


def test_a_pasted_table_is_read_with_the_text_around_it(tmp_path: Path) -> None:
    path = tmp_path / "bf16.md"
    path.write_text(SEED, encoding="utf-8")
    results = read_table(path)
    (task,) = results.tasks.values()
    assert (task.name, task.version, task.num_fewshot, task.items) == ("lambada_openai", "1", 5, None)
    assert task.scores == (
        Score(metric="acc", filter="none", value=0.712, stderr=0.0287, higher_is_better=True),
        Score(metric="perplexity", filter="none", value=3.8683, stderr=0.3716, higher_is_better=False),
    )
    assert (results.backend, results.says_template) == (None, False)


def test_the_line_above_a_table_tells_the_model_and_the_limit(tmp_path: Path) -> None:
    head = (
        "hf (pretrained=org/model,dtype=float16), gen_kwargs: (None), limit: 250.0, num_fewshot: 5, "
        "batch_size: 8 (64)\n"
    )
    path = tmp_path / "table.txt"
    path.write_text(head + SEED, encoding="utf-8")
    results = read_table(path)
    assert (results.backend, results.model, results.dtype) == ("hf", "org/model", "float16")
    assert results.tasks["lambada_openai"].items == 250


def test_tasks_of_a_group_are_read_and_the_group_is_not(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    path.write_text(
        "|Tasks|Version|Filter|n-shot|Metric||Value||Stderr|\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        "| - anatomy|1|none|0|acc|↑|0.5|±|0.01|\n"
        "|  - botany|1|none|0|acc|↑|0.6|±|N/A|\n"
        "\n"
        "|Groups|Version|Filter|n-shot|Metric||Value||Stderr|\n"
        "|---|---|---|---|---|---|---|---|---|\n"
        "|mmlu|2|none||acc|↑|0.55|±|0.01|\n",
        encoding="utf-8",
    )
    tasks = read_table(path).tasks
    assert {name: task.scores[0].stderr for name, task in tasks.items()} == {"anatomy": 0.01, "botany": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no table here", "holds no table of lm-eval"),
        (SEED + "\n" + SEED, "has more than one acc of `lambada_openai`"),
        (SEED.replace("0.7120", "many"), "has `many` as acc of `lambada_openai`, which is no number"),
        (SEED.replace("0.7120", "nan"), "has `nan` as acc of `lambada_openai`, which is no number"),
    ],
)
def test_a_text_without_one_clear_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        read_table(path)
    assert message in caught.value.message
