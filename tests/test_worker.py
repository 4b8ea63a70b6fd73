"""The worker on transformers: its files against those of lm-eval's own command, and what happens when it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fp8cli.worker.protocol import answers_file
from tests.working import (
    DOCUMENTS,
    MODEL,
    TASKS,
    events,
    fidelity,
    finish,
    hf_args,
    job,
    result,
    start,
    stories,
    write_tasks,
)

pytestmark = pytest.mark.slow

REQUESTS = 7 * DOCUMENTS
"""One for three of the tasks, and one for each of four choices; the right choice asks what the first task asks."""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("worker") / "tasks")


@pytest.fixture(scope="module")
def whole(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody cut off, with distributions."""
    folder = tmp_path_factory.mktemp("whole") / "job"
    assert finish(start(folder, job(tasks, fidelity=fidelity()))) == 0, result(folder)
    return folder


def samples(folder: Path) -> dict[str, str]:
    return {name: (folder / f"samples_{name}.jsonl").read_text(encoding="utf-8") for name in TASKS}


def test_results_and_samples_are_those_of_lm_evals_own_command(tasks: Path, whole: Path, tmp_path: Path) -> None:
    arguments = ",".join(f"{name}={value}" for name, value in hf_args().items())
    words = ["--model", "hf", "--model_args", arguments, "--tasks", ",".join(TASKS), "--include_path", str(tasks)]
    words += ["--batch_size", "8", "--device", "cpu", "--log_samples", "--output_path", str(tmp_path / "plain.json")]
    subprocess.run([sys.executable, "-m", "lm_eval", "run", *words], check=True, capture_output=True)
    (plain_file,) = tmp_path.glob("plain_*.json")
    plain, ours = json.loads(plain_file.read_text(encoding="utf-8")), result(whole)["results"]
    assert list(ours) == list(plain)
    theirs = {name: (tmp_path.glob(f"samples_{name}_*.jsonl")) for name in TASKS}
    assert samples(whole) == {name: next(files).read_text(encoding="utf-8") for name, files in theirs.items()}
    # The one figure that is made in another way: the command draws 100,000 times for it.
    drawn = plain["results"]["story_end"].pop("perplexity_stderr,none")
    closed = ours["results"]["story_end"].pop("perplexity_stderr,none")  # type: ignore[attr-defined, index]
    assert closed == pytest.approx(drawn, rel=0.1)
    changing = {"config", "date", "fewshot_as_multiturn", "git_hash", "total_evaluation_time_seconds"}
    for key in plain.keys() - changing:
        assert ours[key] == plain[key], key
    assert ours["fewshot_as_multiturn"] is False
    said = {"batch_size": "8", "bootstrap_iters": 100_000, "gen_kwargs": {}}
    assert {**ours["config"], **said} == plain["config"]  # type: ignore[dict-item]


def test_facts_say_what_lm_eval_leaves_out(whole: Path) -> None:
    facts = result(whole)["facts"]
    assert facts["executed_as"] == "unquantized"
    assert (facts["bos"], facts["max_length"], facts["dtype"]) == (True, 256, "bfloat16")
    assert facts["known_answers"] == 0
    assert facts["tokens"] > 40 * DOCUMENTS  # type: ignore[operator]
    assert {name: task["items"] for name, task in facts["tasks"].items()} == dict.fromkeys(TASKS, DOCUMENTS)  # type: ignore[attr-defined]


def test_events_tell_the_work_from_beginning_to_end(whole: Path) -> None:
    told = events(whole)
    kinds = [event["event"] for event in told]
    assert [kind for kind in dict.fromkeys(kinds)] == [  # noqa: C416 - in the order of the first of each
        "started",
        "tasks",
        "loading",
        "loaded",
        "running",
        "answered",
        "fidelity",
        "finished",
    ]
    by_kind = {event["event"]: event for event in told}
    counted = {task["name"]: task["requests"] for task in by_kind["tasks"]["tasks"]}  # type: ignore[attr-defined]
    assert counted == {**dict.fromkeys(TASKS, DOCUMENTS), "story_choice": 4 * DOCUMENTS}
    answered = sum(event["count"] for event in told if event["event"] == "answered")  # type: ignore[misc]
    assert by_kind["running"]["requests"] == answered == REQUESTS - DOCUMENTS
    assert by_kind["fidelity"] == {"event": "fidelity", "done": 300, "total": 300}


def test_distributions_are_those_of_the_model(whole: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    kept = whole / "fidelity"
    meta = json.loads((kept / "meta.json").read_text(encoding="utf-8"))
    arrays = {path.stem: np.load(path) for path in kept.glob("*.npy")}
    assert (meta["kind"], meta["positions"], meta["vocabulary"], meta["of"]) == ("all", 300, 1280, "tasks")
    assert arrays["logprobs"].shape == (300, 1280)
    assert np.allclose(np.exp(arrays["logprobs"].astype(np.float64)).sum(axis=1), 1, atol=1e-5)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16)
    begin = model.config.bos_token_id
    for document in range(meta["documents"]):
        of = arrays["doc"] == document
        tokens = [begin, *arrays["token"][of].tolist()]
        with torch.no_grad():
            expected = model(torch.tensor([tokens[:-1]])).logits[0].double().log_softmax(-1)
        assert np.allclose(arrays["logprobs"][of], expected, atol=1e-5)
        assert np.allclose(arrays["chosen"][of], expected[torch.arange(len(tokens) - 1), tokens[1:]], atol=1e-5)


@pytest.mark.parametrize("answers", [90, 190], ids=["among choices", "among windows"])
def test_a_killed_run_is_gone_on_from_and_ends_in_the_same_digits(
    tasks: Path, whole: Path, tmp_path: Path, answers: int
) -> None:
    folder, todo = tmp_path / "job", job(tasks)
    journal = folder / answers_file(0)
    worker = start(folder, todo)
    while worker.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < answers):
        time.sleep(0.001)
    os.killpg(worker.pid, signal.SIGKILL)
    assert finish(worker) == -signal.SIGKILL
    known = journal.read_bytes().count(b"\n")
    with journal.open("ab") as file:
        file.write(b'{"key": "torn')
    assert finish(start(folder, todo)) == 0
    assert samples(folder) == samples(whole)
    assert result(folder)["results"]["results"] == result(whole)["results"]["results"]
    keys = [json.loads(line)["key"] for line in journal.read_text(encoding="utf-8").splitlines()]
    assert len(set(keys)) == len(keys) >= REQUESTS - DOCUMENTS
    assert 0 < result(folder)["facts"]["known_answers"] <= known  # type: ignore[operator]
    running = [event for event in events(folder) if event["event"] == "running"]
    assert [event["known"] for event in running] == [0, result(folder)["facts"]["known_answers"]]


def test_two_workers_share_the_requests_and_the_first_has_all_answers(tasks: Path, whole: Path, tmp_path: Path) -> None:
    folder, todo = tmp_path / "job", job(tasks, world=2)
    workers = [start(folder, todo, rank) for rank in range(2)]
    assert [finish(worker) for worker in workers] == [0, 0]
    shares = [
        {json.loads(line)["key"] for line in (folder / answers_file(rank)).read_text(encoding="utf-8").splitlines()}
        for rank in range(2)
    ]
    assert not shares[0] & shares[1]
    assert min(map(len, shares)) > REQUESTS // 3
    assert result(folder)["facts"]["tokens"] == pytest.approx(result(whole)["facts"]["tokens"], rel=0.01)
    ours, alone = result(folder)["results"]["results"], result(whole)["results"]["results"]
    for task in TASKS:
        for metric, value in alone[task].items():  # type: ignore[index, attr-defined]
            # Other batches, other last digits of bfloat16.
            same = pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
            assert ours[task][metric] == same, (task, metric)  # type: ignore[index]


def test_an_fp8_checkpoint_on_transformers_is_rounded_and_texts_of_a_file_are_its_own(
    tasks: Path, tmp_path: Path
) -> None:
    from fp8cli.commands import quantize

    quantize.run(quantize.QuantizeRequest(model=str(MODEL), out=tmp_path / "fp8"))
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(stories()[:5]), encoding="utf-8")
    todo = job(
        tasks,
        tasks=("story_end",),
        sample=7,
        model_args=hf_args(tmp_path / "fp8"),
        fidelity=fidelity(texts=str(texts), positions=10_000),
    )
    assert finish(start(tmp_path / "job", todo)) == 0
    found = result(tmp_path / "job")
    facts = found["facts"]
    assert facts["executed_as"] == "fake-quant"
    assert (facts["fidelity"]["of"], facts["fidelity"]["documents"]) == ("texts.txt", 5)  # type: ignore[index]
    rows = (tmp_path / "job" / "samples_story_end.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = [json.loads(row)["doc_id"] for row in rows]
    assert len(drawn) == 7
    assert drawn == sorted(set(drawn)) != list(range(7))


def test_a_worker_whose_parent_is_gone_ends_at_once(tasks: Path, tmp_path: Path) -> None:
    worker = start(tmp_path / "job", job(tasks))
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(timeout=60) == -signal.SIGKILL
    assert not (tmp_path / "job" / "result.json").exists()


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"tasks": ("story_ends",)}, "task", "no task, group or tag is named `story_ends`"),
        ({"tasks": ("lost",)}, "data", "the data set `/nowhere/lost.jsonl` of task `lost` could not be loaded"),
        ({"limit": 0}, "task", "a limit of 0 leaves no document to evaluate"),
        ({"model_args": {"pretrained": "/nowhere/model"}}, "model", "the checkpoint could not be loaded"),
    ],
    ids=["unknown task", "missing data", "nothing to do", "no checkpoint"],
)
def test_what_is_wrong_is_told_in_one_sentence(
    tasks: Path, tmp_path: Path, changes: dict[str, object], kind: str, words: str
) -> None:
    include = tmp_path / "tasks"
    include.mkdir()
    lost = (tasks / "story_end.yaml").read_text(encoding="utf-8").replace("story_end", "lost")
    (include / "lost.yaml").write_text(lost.replace(str(tasks / "stories.jsonl"), "/nowhere/lost.jsonl"))
    todo = job(tasks, **{"include_paths": (str(tasks), str(include)), "tasks": ("story_end",), **changes})
    assert finish(start(tmp_path / "job", todo)) == 1
    last = events(tmp_path / "job")[-1]
    assert (last["event"], last["kind"]) == ("failed", kind)
    message = str(last["message"])
    assert message.startswith(words)
    assert "\n" not in message
    if kind == "task" and "named" in words:
        assert last["hint"] == "names like it: `story_end`, `story_on` or `story_whole`"
