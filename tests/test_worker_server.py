"""The worker and a server: all kinds of task through `local-completions`, and the likeliest tokens it gives."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.completions_server import serving
from tests.working import DOCUMENTS, MODEL, TASKS, events, fidelity, finish, hf_args, job, result, start, write_tasks

pytestmark = pytest.mark.slow

SOME = 10


def server_args(address: str) -> dict[str, object]:
    return {
        "model": "stories",
        "base_url": address,
        "tokenizer": str(MODEL),
        "tokenizer_backend": "huggingface",
        "add_bos_token": True,
        "max_length": 256,
        "num_concurrent": 4,
    }


def test_a_server_is_scored_as_the_model_behind_it_and_asked_nothing_twice(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    order = {"limit": SOME, "fidelity": fidelity(positions=60)}
    here = job(tasks, model_args={**hf_args(), "dtype": "float32"}, **order)
    assert finish(start(tmp_path / "here", here)) == 0
    with serving(MODEL) as (address, completions):
        there = job(tasks, backend="server", model_args=server_args(address), device=None, batch_size=4, **order)
        assert finish(start(tmp_path / "there", there)) == 0, result(tmp_path / "there")
        ours, theirs = result(tmp_path / "there"), result(tmp_path / "here")
        asked = len(completions.requests)
        # A server that names tokens by their texts alone: nobody could tell which they are.
        completions.ids = False
        assert finish(start(tmp_path / "there", there)) == 0
        assert len(completions.requests) == asked + 1
    again = result(tmp_path / "there")["facts"]
    assert again["known_answers"] == 6 * SOME
    assert again["fidelity"] == {"missing": "the server names tokens by their texts, not by their ids"}
    for task in TASKS:
        for name, value in theirs["results"]["results"][task].items():  # type: ignore[index]
            same = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert ours["results"]["results"][task][name] == same, (task, name)  # type: ignore[index]
    facts = ours["facts"]
    assert (facts["executed_as"], facts["dtype"], facts["bos"], facts["max_length"]) == ("unknown", None, True, 256)
    kept, whole = tmp_path / "there" / "fidelity", tmp_path / "here" / "fidelity"
    meta = json.loads((kept / "meta.json").read_text(encoding="utf-8"))
    assert meta["kind"] == "top"
    assert meta["tokens_sha256"] == json.loads((whole / "meta.json").read_text(encoding="utf-8"))["tokens_sha256"]
    top = np.load(kept / "top.npy")
    assert top.shape == (60, 5)  # 20 are refused, and 5 are what any server gives
    logprobs = np.load(whole / "logprobs.npy")
    assert np.allclose(top, np.sort(logprobs, axis=1)[:, :-6:-1], atol=1e-3)
    assert np.allclose(np.take_along_axis(logprobs, np.load(kept / "ids.npy"), axis=1), top, atol=1e-3)
    assert np.allclose(np.load(kept / "chosen.npy"), np.load(whole / "chosen.npy"), atol=1e-3)


def test_a_server_that_is_not_there_is_told_in_one_sentence(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    arguments = {**server_args("http://127.0.0.1:9/v1/completions"), "max_retries": 1}
    todo = job(tasks, backend="server", model_args=arguments, device=None, tasks=("story_end",), limit=DOCUMENTS)
    assert finish(start(tmp_path / "job", todo)) == 1
    last = events(tmp_path / "job")[-1]
    assert (last["event"], last["kind"]) == ("failed", "server")
    assert "127.0.0.1:9" in str(last["message"])
