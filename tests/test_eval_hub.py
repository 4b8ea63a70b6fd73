"""`fp8 eval` of lm-eval's own `lambada_openai`, whose data set comes from a Hub on the loopback device; or does not.

The task's definition is the one that lm-eval brings; the figures are those of its own command.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from fp8cli.core.evaluating.runs import find_records
from tests.loopback_datasets import LAMBADA, bundled_stories, lambada_repo
from tests.loopback_hub import LoopbackHub
from tests.planting import STORIES

pytestmark = pytest.mark.slow

ITEMS = 40
BATCH = 16
TOKEN = "hf_thisOneIsKnownAndNotLetIn"  # noqa: S105 -- no server but the one in loopback_hub.py knows it
UNREACHABLE = "http://127.0.0.1:9"
"""The port of the discard service, which nobody runs."""

Process = subprocess.Popen[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lambada")


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.repos[f"datasets/{LAMBADA}"] = lambada_repo(bundled_stories(2 * ITEMS))
        yield hub


@pytest.fixture(scope="module")
def refusals(folder: Path) -> Iterator[Mapping[str, Process]]:
    """Evaluations that do not get their data, all at once: most of their time is spent on asking again."""
    with LoopbackHub(tokens={TOKEN}) as gate:
        repo = gate.repos[f"datasets/{LAMBADA}"] = lambada_repo(bundled_stories(ITEMS))
        repo.access = "gated"
        circumstances = {
            "offline": {"HF_ENDPOINT": gate.url, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
            "down": {"HF_ENDPOINT": UNREACHABLE},
            "gated": {"HF_ENDPOINT": gate.url},
            "not let in": {"HF_ENDPOINT": gate.url, "HF_TOKEN": TOKEN},
        }
        processes = {name: start_fp8(folder / name, settings) for name, settings in circumstances.items()}
        yield processes
        for process in processes.values():
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def ours(hub: LoopbackHub, folder: Path, refusals: Mapping[str, Process]) -> Path:
    """Return the runs folder of `fp8 eval`."""
    assert refusals
    process = start_fp8(folder / "ours", {"HF_ENDPOINT": hub.url})
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder / "ours/runs"


@pytest.fixture(scope="module")
def theirs(hub: LoopbackHub, folder: Path, ours: Path) -> Path:
    """Return the folder that lm-eval's own command wrote, with the settings of `fp8 eval` written out."""
    assert ours
    settings = f"pretrained={STORIES},dtype=bfloat16,softmax_dtype=float32,max_length=512,add_bos_token=True"
    words = ["--model", "hf", "--model_args", settings, "--tasks", "lambada_openai", "--limit", str(ITEMS)]
    words += ["--batch_size", str(BATCH), "--device", "cpu", "--log_samples", "--output_path", str(folder / "theirs")]
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *words],
        env=environment(folder / "theirs", {"HF_ENDPOINT": hub.url}),
        check=True,
        capture_output=True,
    )
    return folder / "theirs"


def environment(place: Path, settings: Mapping[str, str]) -> dict[str, str]:
    online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(place / "huggingface")}
    return {**os.environ, **online, **settings}


def start_fp8(place: Path, settings: Mapping[str, str]) -> Process:
    words = ["--tasks", "lambada_openai", "--limit", str(ITEMS), "--batch-size", str(BATCH), "--runs"]
    return subprocess.Popen(
        [sys.executable, "-m", "fp8cli", "eval", str(STORIES), *words, str(place / "runs"), "--backend", "hf", "-q"],
        env=environment(place, settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.rglob(pattern)
    return found


def read_samples(folder: Path) -> list[dict[str, object]]:
    lines = only(folder, "samples_lambada_openai_*.jsonl").read_text("utf-8").splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda sample: sample["doc_id"])


def test_the_figures_are_those_of_a_plain_lm_eval(ours: Path, theirs: Path) -> None:
    mine, plain = (json.loads(only(folder, "results_*.json").read_text("utf-8")) for folder in (ours, theirs))
    for metric in ("acc,none", "perplexity,none", "acc_stderr,none"):
        assert mine["results"]["lambada_openai"][metric] == plain["results"]["lambada_openai"][metric]
    assert mine["task_hashes"] == plain["task_hashes"]
    assert mine["versions"] == plain["versions"] == {"lambada_openai": 1.0}
    assert mine["n-samples"] == plain["n-samples"] == {"lambada_openai": {"original": 2 * ITEMS, "effective": ITEMS}}


def test_every_answer_is_that_of_a_plain_lm_eval(ours: Path, theirs: Path) -> None:
    mine, plain = read_samples(ours), read_samples(theirs)
    assert len(mine) == ITEMS
    for key in ("doc_id", "doc", "target", "arguments", "resps", "acc", "doc_hash", "prompt_hash", "target_hash"):
        assert [sample[key] for sample in mine] == [sample[key] for sample in plain]


def test_the_data_came_from_the_hub_and_only_what_the_task_uses(hub: LoopbackHub, ours: Path) -> None:
    assert ours
    fetched = {path.rpartition("/resolve/")[2].partition("/")[2] for path in hub.paths("GET", "/resolve/")}
    assert fetched == {"README.md", "default/test-00000-of-00001.parquet"}


def test_the_record_names_the_version_and_the_hash_of_the_task(ours: Path, theirs: Path) -> None:
    ((_, record),) = find_records(ours)
    facts = record.tasks["lambada_openai"]
    plain = json.loads(only(theirs, "results_*.json").read_text("utf-8"))
    assert (facts.version, facts.items, facts.num_fewshot) == ("1.0", ITEMS, 0)
    assert facts.hash == plain["task_hashes"]["lambada_openai"]


@pytest.mark.parametrize(
    ("name", "error", "hint"),
    [
        ("offline", f"the data set `{LAMBADA}` is not in the cache, and HF_HUB_OFFLINE is set", "HF_HUB_OFFLINE=0 "),
        ("down", f"the data set `{LAMBADA}` is not in the cache, and the Hub cannot be reached", "HF_ENDPOINT"),
        ("gated", f"the data set `{LAMBADA}` is gated: its authors let in only those who", "hf auth login"),
        ("not let in", f"the data set `{LAMBADA}` is gated: its authors let in only those who", "accept its terms"),
    ],
)
def test_data_that_cannot_be_had_are_named_in_one_sentence(
    refusals: Mapping[str, Process], name: str, error: str, hint: str
) -> None:
    process = refusals[name]
    output, errors = process.communicate()
    assert process.returncode == 3
    assert output == ""
    said = re.fullmatch(r"error: (?P<error>[^\n]+)\n\nhint: (?P<hint>[^\n]+)\n", errors)
    assert said is not None, errors
    assert said["error"].startswith(error)
    assert hint in said["hint"]
    assert TOKEN not in errors
