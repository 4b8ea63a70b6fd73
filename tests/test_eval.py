"""`fp8 eval` whole: the real command, the real lm-eval on transformers, killed, resumed, short of memory, repeated."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fp8cli.core.evaluating.runs import find_records
from fp8cli.formats.run_record import RunRecord, read_record
from tests.planting import STORIES, quantize_stories
from tests.starting import Run, fp8, words_of

pytestmark = pytest.mark.slow

TASK = "fp8_stories"
DOCUMENTS = 40

# Written by hand, and not by what is tested: the last word of each of the bundled stories.
PLAIN = """\
task: plain
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' '+text.split(' ')[-1]}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
PLAIN_RUN = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
manager = TaskManager(include_path=sys.argv[1], include_defaults=False)
done = simple_evaluate(model="hf", model_args=sys.argv[2], tasks=["plain"], limit=int(sys.argv[3]), batch_size=16,
                       task_manager=manager, device="cpu", bootstrap_iters=10)
print(json.dumps({name: done["results"]["plain"][name] for name in ("acc,none", "perplexity,none", "acc_stderr,none")}))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("eval") / "runs"


@pytest.fixture(scope="module")
def base(runs: Path) -> Run:
    """The first evaluation of the bundled model."""
    run = fp8(runs.parent, "eval", STORIES, "--tasks", TASK, "--limit", DOCUMENTS, "--runs", runs, "--json")
    assert run.code == 0, run.err
    return run


def record_of(run: Run) -> RunRecord:
    return read_record(Path(run.report["record_file"]))


def values(run: Run) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in run.report["results"]}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "plain.yaml").write_text(PLAIN.format(data=STORIES / "heldout.jsonl"), "utf-8")
    return folder


def test_values_are_those_of_plain_lm_eval_on_the_same_settings(base: Run, tasks: Path) -> None:
    arguments = f"pretrained={STORIES},dtype=bfloat16,softmax_dtype=float32,max_length=512,add_bos_token=True"
    command = [sys.executable, "-c", PLAIN_RUN, str(tasks), arguments, str(DOCUMENTS)]
    plain = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert values(base) == {"acc": plain["acc,none"], "perplexity": plain["perplexity,none"]}
    (stderr,) = (row["stderr"] for row in base.report["results"] if row["metric"] == "acc")
    assert stderr == plain["acc_stderr,none"]


def test_the_record_says_what_lm_eval_leaves_out_and_its_files_are_there(base: Run, runs: Path) -> None:
    record = record_of(base)
    assert (record.label, record.executed_as, record.asked_tasks) == ("base", "unquantized", (TASK,))
    assert (record.settings.backend, record.settings.bos, record.settings.max_length) == ("hf", True, 512)
    assert record.settings.model_args["softmax_dtype"] == "float32"
    assert (record.model.path, record.model.bytes_on_disk) == (str(STORIES), 1_640_192)
    assert record.tasks[TASK].items == DOCUMENTS
    assert record.speed.tokens > DOCUMENTS
    assert record.speed.peak_memory_bytes is not None
    assert record.fidelity is not None
    assert record.fidelity.vocabulary == 1280
    found = sorted(path.name for path in (runs / "base").iterdir())
    assert found == sorted(
        [
            f"run_{record.id}.json",
            f"results_{record.id}.json",
            f"samples_{TASK}_{record.id}.jsonl",
            f"log_{record.id}.txt",
            f"fidelity_{record.id}",
        ]
    )
    assert list((runs / ".work").iterdir()) == []
    samples = (runs / "base" / record.tasks[TASK].samples).read_text("utf-8").splitlines()
    assert [json.loads(line)["doc_id"] for line in samples] == list(range(DOCUMENTS))


def test_progress_and_the_outlook_are_told_on_stderr(base: Run) -> None:
    assert f"{TASK}: 40 items" in base.err
    assert "40 items: if 3 % of them flip, a comparison with another model can settle a change of 6.8 pp" in base.err
    assert "because" in base.err
    assert "0/40 requests" in base.err


def test_the_same_again_is_answered_from_the_record_without_any_heavy_library(base: Run, runs: Path) -> None:
    again = fp8(runs.parent, "eval", STORIES, "--tasks", TASK, "--limit", DOCUMENTS, "--runs", runs, "--json")
    assert again.code == 0, again.err
    assert again.loaded == []
    assert again.err == ""
    assert again.report["answered"]
    assert again.report["results"] == base.report["results"]
    assert len(find_records(runs)) == len({record.id for _, record in find_records(runs)})
    labelled = fp8(
        runs.parent, "eval", STORIES, "-t", TASK, "--limit", DOCUMENTS, "--runs", runs, "--label", "other", "--json"
    )
    assert labelled.report["answered"]
    assert labelled.report["notes"] == ["answered from a run with the label `base`: a label changes no result"]
    assert not (runs / "other").exists()


def test_only_what_is_not_known_is_run(base: Run, runs: Path, tasks: Path) -> None:
    both = fp8(
        runs.parent,
        "eval",
        *(STORIES, "--tasks", f"{TASK},plain", "--include-path", tasks, "--limit", DOCUMENTS),
        *("--runs", runs, "--json", "--no-fidelity"),
    )
    assert both.code == 0, both.err
    record = record_of(both)
    assert record.asked_tasks == ("plain",)
    assert record.fidelity is None
    assert f"records answer {TASK}" in both.err
    assert both.report["earlier"] == [base.report["record_file"]]
    by_task = {row["task"]: row["value"] for row in both.report["results"] if row["metric"] == "acc"}
    assert by_task == {"plain": values(base)["acc"], TASK: values(base)["acc"]}


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    words = [STORIES, "-t", TASK, "--limit", "200", "--batch-size", "4", "--no-fidelity", "--runs", runs, "--json"]
    process = subprocess.Popen(words_of(tmp_path, "eval", *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    answers: list[Path] = []
    while process.poll() is None and not any(path.stat().st_size > 4000 for path in answers):
        time.sleep(0.05)
        answers = list(runs.glob(".work/*/answers-0.jsonl"))
    assert process.poll() is None, "it was done before it could be killed"
    (folder,) = (runs / ".work").iterdir()
    worker = json.loads((folder / "events-0.jsonl").read_text("utf-8").splitlines()[0])["pid"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists(), "the worker outlives its parent"
    assert find_records(runs) == ()
    assert [path.name for path in runs.iterdir()] == [".work"]

    resumed = fp8(tmp_path, "eval", *words)
    assert resumed.code == 0, resumed.err
    record = record_of(resumed)
    assert record.resumed
    assert "going on with a run of" in resumed.err
    assert any("answers are those of an earlier run that was cut off" in note for note in record.notes)
    whole = fp8(tmp_path, "eval", *words, "--rerun", "--label", "whole")
    assert not record_of(whole).resumed
    assert values(resumed)["acc"] == values(whole)["acc"]
    assert values(resumed)["perplexity"] == pytest.approx(values(whole)["perplexity"], rel=1e-3)


OUT_OF_MEMORY = """\
#!/bin/sh
# A Python whose first worker runs out of memory, and whose second does not.
case "$*" in
*.work*)
  for word in "$@"; do case "$word" in */.work/*) job="$word";; esac; done
  if [ ! -e {mark} ]; then
    touch {mark}
    echo 'RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: not enough memory' >&2
    echo '{{"event": "failed", "kind": "memory", "message": "memory ran out", "hint": null}}' >> "$job/events-0.jsonl"
    exit 1
  fi;;
esac
exec {python} "$@"
"""


def test_when_memory_runs_out_it_tries_once_with_half_the_batch(tmp_path: Path) -> None:
    quantized = quantize_stories(tmp_path / "stories-FP8-dynamic")
    python = tmp_path / "python"
    script = OUT_OF_MEMORY.format(mark=tmp_path / "mark", python=sys.executable)
    python.write_text(script, "utf-8")
    python.chmod(0o755)
    words = [quantized, "-t", TASK, "--limit", "20", "--no-fidelity", "--runs", tmp_path / "runs", "--json"]
    run = fp8(tmp_path, "eval", *words, "--python", python)
    assert run.code == 0, run.err
    record = record_of(run)
    assert record.settings.batch_size == 8
    assert record.notes == ("memory ran out, so this run has batches of 8",)
    assert (record.label, record.executed_as) == ("fp8", "fake-quant")
    assert record.model.quantization == "FP8_DYNAMIC, compressed-tensors"
    assert "memory ran out; once more, with batches of 8" in run.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk that is full")
def test_a_disk_that_is_full_is_said_and_nothing_half_written_is_left(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        run = fp8(tmp_path, "eval", STORIES, "-t", TASK, "--limit", "20", "--no-fidelity", "--runs", disk / "runs")
        assert run.code == 3
        assert "disk" in run.err
        assert find_records(disk / "runs") == ()
    finally:
        subprocess.run(["umount", disk], check=True)
