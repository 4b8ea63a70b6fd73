"""`fp8 eval --backend server` against vLLM's own OpenAI-compatible server, with the bundled model in FP8.

The tests stand in the order in which they run: the last one ends the server.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.planting import quantize_stories

pytestmark = pytest.mark.slow

ITEMS = 20
START_SECONDS = 300
"""After so long a server that does not answer is given up."""


class Served(NamedTuple):
    process: subprocess.Popen[bytes]
    model: Path
    address: str

    @property
    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/v1/models", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("served")
    model = quantize_stories(place / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512"]
    log = place / "log"
    with pytest.MonkeyPatch.context() as patch, log.open("wb") as output:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, "--enforce-eager"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Served(process, model, f"127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.is_up:
            assert process.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < deadline, log.read_text("utf-8")
            time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait()


def command(served: Served, runs: Path, *options: str) -> list[str]:
    words = [sys.executable, "-m", "fp8cli", "eval", str(served.model), "--tasks", "fp8_stories", "--runs", str(runs)]
    return [*words, "-q", *options]


def evaluate(served: Served, runs: Path, *options: str) -> list[dict[str, object]]:
    """Evaluate a few stories; return lm-eval's samples in their order."""
    subprocess.run(command(served, runs, "--limit", str(ITEMS), *options), check=True, capture_output=True)
    (samples,) = runs.rglob("samples_fp8_stories_*.jsonl")
    lines = samples.read_text("utf-8").splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda sample: sample["doc_id"])


def test_the_answers_of_the_server_are_close_to_those_of_transformers(served: Served, tmp_path: Path) -> None:
    backend = ("--backend", "server", "--server", f"http://{served.address}/v1")
    there = evaluate(served, tmp_path / "server", *backend)
    here = evaluate(served, tmp_path / "hf", "--backend", "hf", "--device", "cpu")
    assert [sample["doc_hash"] for sample in there] == [sample["doc_hash"] for sample in here]
    assert len(there) == ITEMS
    # lm-eval calls the log-likelihood of a sample's last word `perplexity`. Each side rounds activations to FP8 in its
    # own way, and on a model as sure of itself that seldom moves an answer.
    gaps = [abs(one["perplexity"] - other["perplexity"]) for one, other in zip(there, here, strict=True)]
    assert sum(gaps) / ITEMS < 0.1
    assert 0 < max(gaps) < 1, "the very same numbers: did the server answer?"
    assert sum(one["acc"] != other["acc"] for one, other in zip(there, here, strict=True)) <= 1


def test_a_server_that_goes_away_in_the_middle_is_one_sentence(served: Served, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    # A server that is ended may leave a request open, and lm-eval waits five minutes for its answer.
    patience = ("--model-arg", "timeout=20", "--no-fidelity")
    words = command(served, runs, "--backend", "server", "--server", f"http://{served.address}/v1", *patience)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(file.stat().st_size for file in runs.rglob("answers-0.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    served.process.terminate()
    served.process.wait()
    output, errors = process.communicate()
    assert process.returncode == 3
    assert output == ""
    error, empty, hint = errors.splitlines()
    assert error == f"error: no server answers at {served.address}"
    assert empty == ""
    assert hint.startswith("hint: start it, or name it with --server URL")
