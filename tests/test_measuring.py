"""A measurement: what a model says, kept and compared, against numpy; the process that does it, with the real model."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fp8cli.core.measuring.measurement import measure
from fp8cli.core.measuring.outlook import Memory, check_memory, estimate_memory
from fp8cli.core.sampling.data import BUNDLED_MODEL, read_calibration
from fp8cli.core.simulating.words import simulated_scheme
from fp8cli.errors import BadInput
from fp8cli.measurer.explore_protocol import ExploreWork
from fp8cli.measurer.model import choose_device
from fp8cli.measurer.protocol import MeasureJob, read_job, write_job
from fp8cli.measurer.reference import Reference, _batches, clustered_error, share_out
from fp8cli.worker.failures import Failure
from fp8cli.worker.protocol import Job
from tests.calibrated import plan_of
from tests.models import llama_config, save_model

TEXTS = ((1, 5, 9, 200, 31, 7), (1, 8), (3, 3, 250, 17, 60, 2, 90, 11), (4,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder: Path = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(llama_config()).save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def nudge(model: Any) -> None:
    """Change a model a little."""
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)


def logits(model: Any, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    with torch.no_grad():
        found: np.ndarray[Any, np.dtype[np.float64]] = model(torch.tensor([ids])).logits[0].double().numpy()
    return found


def log_softmax(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = values - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_rows(base: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    p, q = log_softmax(base), log_softmax(other)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=-1))


def test_a_model_is_at_no_distance_from_itself(model: Any, tmp_path: Path) -> None:
    found = Reference(model, TEXTS, tmp_path, positions=100, budget_bytes=10**9).divergence(model)
    assert (found.kl, found.kl_se, found.same_top) == (0, 0, 1)
    assert found.positions == 5 + 1 + 7


def test_the_divergence_is_what_numpy_finds(model: Any, tmp_path: Path) -> None:
    before = [logits(model, ids) for ids in TEXTS]
    reference = Reference(model, TEXTS, tmp_path, positions=100, budget_bytes=10**9)
    nudge(model)
    found = reference.divergence(model)
    after = [logits(model, ids) for ids in TEXTS]
    rows = [kl_rows(b, a)[:-1] for b, a in zip(before, after, strict=True) if len(b) > 1]
    every = np.concatenate(rows)
    assert found.kl == pytest.approx(every.mean(), rel=1e-5)
    assert found.per_sample == pytest.approx([each.mean() for each in rows], rel=1e-5)
    sums = np.array([(each - every.mean()).sum() for each in rows])
    assert found.kl_se == pytest.approx(np.sqrt(len(rows) / (len(rows) - 1) * (sums**2).sum()) / every.size, rel=1e-4)
    same = [b[:-1].argmax(-1) == a[:-1].argmax(-1) for b, a in zip(before, after, strict=True)]
    assert found.same_top == np.concatenate(same).mean()


def test_only_as_much_is_kept_as_was_allowed(model: Any, tmp_path: Path) -> None:
    reference = Reference(model, TEXTS, tmp_path, positions=100, budget_bytes=7 * 320 * 4 + 3)
    assert reference.lengths == (3, 1, 3)
    assert (tmp_path / "reference.f32").stat().st_size == 7 * 320 * 4
    nudge(model)
    before = reference.divergence(model)
    assert before.positions == 7
    assert len(before.per_sample) == 3


def test_texts_without_a_token_to_predict_are_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="of 2 texts none has a token to predict within 100 positions"):
        Reference(model, [[1], [2]], tmp_path, positions=100, budget_bytes=10**9)
    with pytest.raises(Failure, match="within 0 positions"):
        Reference(model, TEXTS, tmp_path, positions=100, budget_bytes=320 * 4 - 1)


def test_a_model_that_says_no_numbers_is_refused_whichever_side_it_is(model: Any, tmp_path: Path) -> None:
    reference = Reference(model, TEXTS, tmp_path, positions=100, budget_bytes=10**9)
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    with pytest.raises(Failure, match="no numbers in this form"):
        reference.divergence(model)
    with pytest.raises(Failure, match="the model as it is gives log-probabilities that are no numbers"):
        Reference(model, TEXTS, tmp_path, positions=100, budget_bytes=10**9)


def test_positions_are_shared_out_evenly_and_to_the_last() -> None:
    assert share_out([5, 1, 7], 100) == [5, 1, 7]
    assert share_out([5, 1, 7], 7) == [3, 1, 3]
    assert share_out([9, 9, 9], 10) == [3, 3, 4]
    assert share_out([0, 4], 3) == [0, 3]
    assert share_out([], 3) == []
    for most in range(40):
        shares = share_out([3, 30, 1, 8], most)
        assert sum(shares) == min(most, 42)


def test_one_text_alone_has_no_spread() -> None:
    assert clustered_error([0.5], [10]) == 0
    assert clustered_error([1.0, 1.0], [10, 10]) == 0


WORK = ExploreWork(schemes=(simulated_scheme("fp8+kv"), simulated_scheme("mxfp8")), weights=("a.weight",))
JOB = MeasureJob(model="m", dtype="bfloat16", device="auto", samples=None, positions=10, budget_bytes=10**6, work=WORK)


def test_a_job_comes_back_from_its_folder_as_it_was_written(tmp_path: Path) -> None:
    data = read_calibration(None, model=BUNDLED_MODEL, samples=4)
    asked = data.request(samples=4, max_seq_length=16, seed=7, chat_template=None)
    evaluation = Job(
        backend="hf",
        model_args={"pretrained": "m", "max_length": 256},
        tasks=("fp8_stories",),
        include_paths=("tasks",),
        include_defaults=False,
        num_fewshot=None,
        limit=5.0,
        sample=None,
        sample_seed=1,
        apply_chat_template=False,
        system_instruction=None,
        fewshot_as_multiturn=False,
        batch_size=16,
        device="cpu",
        gen_kwargs=None,
        seeds={"random": 0},
        confirm_unsafe_code=False,
        fidelity=None,
    )
    for job in (JOB, replace(JOB, samples=asked, work=replace(WORK, evaluation=evaluation))):
        write_job(job, tmp_path)
        assert read_job(tmp_path) == job


def test_a_job_of_another_version_or_with_unknown_work_is_refused(tmp_path: Path) -> None:
    write_job(replace(JOB, version=99), tmp_path)
    with pytest.raises(ValueError, match="version 99"):
        read_job(tmp_path)
    write_job(JOB, tmp_path)
    path = tmp_path / "measurement.json"
    path.write_text(path.read_text("utf-8").replace('"explore"', '"guess"'), encoding="utf-8")
    with pytest.raises(ValueError, match="`guess` is no work"):
        read_job(tmp_path)


def test_a_gpu_that_is_not_there_is_refused_and_where_there_is_none_the_processor_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choose_device("cpu", 10**12).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto", 10).type == "cpu"
    with pytest.raises(Failure, match="`cuda:1` was asked for, and torch here sees 0 GPUs"):
        choose_device("cuda:1", 10)


@pytest.mark.parametrize(
    ("size", "room", "device"), [(400, 2.25, "cuda"), (500, 2.25, "cpu"), (300, 3.25, "cuda"), (400, 3.25, "cpu")]
)
def test_a_gpu_is_taken_where_the_weights_fit_twice_or_more_often_and_some_room_is_left(
    size: int, room: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 2000))
    assert choose_device("auto", size, room=room).type == device


def test_memory_is_what_the_weights_take_twice_with_one_batch_of_outputs() -> None:
    plan = plan_of(BUNDLED_MODEL, "FP8_DYNAMIC")
    rounded = sum(tensor.source.bytes for tensor in plan.tensors if tensor.action == "quantize")
    weights = sum(tensor.source.bytes for tensor in plan.tensors)
    needed = estimate_memory(plan, 1024)
    assert needed.least == 10**9 + weights
    assert needed.most == needed.least + rounded + 1024 * 1280 * 12
    assert estimate_memory(plan, 16).most == needed.least + rounded + 512 * 1280 * 12


@pytest.mark.parametrize(("total", "available", "status"), [(1, 1, "failed"), (8, 1, "warning"), (8, 4, "passed")])
def test_memory_that_can_never_do_is_refused_and_memory_that_is_taken_now_is_warned_of(
    total: int, available: int, status: str, tmp_path: Path
) -> None:
    gib = 2**30
    (tmp_path / "proc").mkdir()
    meminfo = f"MemTotal: {total * gib // 1024} kB\nMemAvailable: {available * gib // 1024} kB\n"
    (tmp_path / "proc/meminfo").write_text(meminfo)
    check = check_memory(Memory(least=2 * gib, most=3 * gib), tmp_path)
    assert check.status == status
    assert check.found.startswith(f"{available}.00 GiB available of the {total}.00 GiB")


def test_texts_of_one_batch_are_no_wider_than_it_may_be() -> None:
    lengths = [3, 500, 100, 90, 2, 513, 80, 240]
    batches = _batches(lengths)
    assert sorted(text for batch in batches for text in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[text] for text in batch) <= 512
    assert [5] in batches
    assert len(batches) == 4


@pytest.mark.slow
def test_a_measurement_that_fails_keeps_its_log_and_takes_what_it_kept_away(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", llama_config())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED_MODEL / name, model)
    data = read_calibration(None, model=BUNDLED_MODEL, samples=4)
    job = replace(
        JOB,
        model=str(model),
        device="cpu",
        samples=data.request(samples=4, max_seq_length=16, seed=7, chat_template=None),
        work=replace(WORK, schemes=WORK.schemes[1:], weights=("model.layers.0.mlp.up_proj.weight",)),
    )
    heard: list[object] = []
    with pytest.raises(BadInput, match=r"the tokenizer made a token .* and the model has 320 tokens") as refusal:
        measure(job, data, tmp_path / "work", python=None, notify=heard.append)
    assert "the whole log: " in str(refusal.value.hint)
    assert "measurement.log" in {path.name for path in (tmp_path / "work").iterdir()}
    assert not (tmp_path / "work" / "reference.f32").exists()
    assert not (tmp_path / "work" / "result.json").exists()
