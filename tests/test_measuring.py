"""A measurement: what a model says, kept and compared, against numpy; the process that does it, with the real model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fp8cli.measurer.reference import Reference, clustered_error, share_out
from fp8cli.worker.failures import Failure
from tests.models import llama_config

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
