"""Distances of kept distributions: against scipy, with bounds that are bounds, and refusals that say why."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from fp8cli.core.comparing import divergence
from fp8cli.core.comparing.divergence import FINEST, compare_distributions

POSITIONS, VOCABULARY, DOCUMENTS = 300, 50, 12


@dataclass(frozen=True)
class Model:
    """Log-probabilities [P, V] of a model over tokens that come next."""

    logprobs: Any
    token: Any
    document: Any

    def keep(self, folder: Path, *, top: int | None = None, **changes: object) -> Path:
        """Write a fidelity folder, of kind `top` with so many tokens, or `all`."""
        folder.mkdir()
        logprobs = self.logprobs.astype(np.float32)
        meta = {
            "kind": "all" if top is None else "top",
            "positions": len(logprobs),
            "documents": len(np.unique(self.document)),
            "vocabulary": logprobs.shape[1],
            "tokens_sha256": hashlib.sha256(self.token.tobytes()).hexdigest(),
            "of": "tasks",
        }
        (folder / "meta.json").write_text(json.dumps(meta | changes))
        np.save(folder / "doc.npy", self.document.astype(np.int32))
        np.save(folder / "token.npy", self.token.astype(np.int32))
        np.save(folder / "chosen.npy", logprobs[np.arange(len(logprobs)), self.token])
        if top is None:
            np.save(folder / "logprobs.npy", logprobs)
        else:
            ids = np.argsort(-logprobs, axis=1, kind="stable")[:, :top].astype(np.int32)
            np.save(folder / "ids.npy", ids)
            np.save(folder / "top.npy", np.take_along_axis(logprobs, ids, axis=1))
        return folder


@pytest.fixture
def base() -> Model:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (POSITIONS, VOCABULARY))
    token = random.integers(0, VOCABULARY, POSITIONS)
    document = np.sort(random.integers(0, DOCUMENTS, POSITIONS))
    return Model(special.log_softmax(logits, axis=1), token, document)


@pytest.fixture
def other(base: Model) -> Model:
    noise = np.random.default_rng(1).normal(0, 0.3, base.logprobs.shape)
    return replace(base, logprobs=special.log_softmax(base.logprobs + noise, axis=1))


def exact_kl(base: Model, other: Model) -> Any:
    return stats.entropy(np.exp(base.logprobs), np.exp(other.logprobs), axis=1)


def test_divergence_of_whole_distributions_is_scipys(base: Model, other: Model, tmp_path: Path) -> None:
    found = compare_distributions(base.keep(tmp_path / "base"), other.keep(tmp_path / "other"))
    kl = exact_kl(base, other)
    assert found.exact
    assert (found.of, found.positions, found.documents) == ("tasks", POSITIONS, DOCUMENTS)
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-5)
    assert found.captured == 1
    for name, share in (("low_1", 0.01), ("median", 0.5), ("high_90", 0.9), ("high_999", 0.999), ("largest", 1)):
        assert getattr(found.kl, name) == pytest.approx(np.quantile(kl, share), rel=1e-4)


def test_agreement_and_changes_of_probability_are_those_of_the_arrays(
    base: Model, other: Model, tmp_path: Path
) -> None:
    found = compare_distributions(base.keep(tmp_path / "base"), other.keep(tmp_path / "other"))
    rows = np.arange(POSITIONS)
    change = np.exp(other.logprobs[rows, base.token]) - np.exp(base.logprobs[rows, base.token])
    assert found.same_top == (base.logprobs.argmax(1) == other.logprobs.argmax(1)).mean()
    assert found.same_top_interval.low < found.same_top < found.same_top_interval.high
    assert found.delta_p_mean == pytest.approx(change.mean(), abs=1e-7)
    assert found.delta_p_rms == pytest.approx(np.sqrt((change**2).mean()), rel=1e-5)
    assert found.delta_p.median == pytest.approx(np.median(change), abs=1e-7)
    assert found.perplexity_base == pytest.approx(np.exp(-base.logprobs[rows, base.token].mean()), rel=1e-5)
    assert found.perplexity_ratio == pytest.approx(found.perplexity_other / found.perplexity_base, rel=1e-9)
    assert found.perplexity_ratio_interval.low < found.perplexity_ratio < found.perplexity_ratio_interval.high


def test_the_error_is_that_of_documents_not_of_positions(base: Model, other: Model, tmp_path: Path) -> None:
    found = compare_distributions(base.keep(tmp_path / "base"), other.keep(tmp_path / "other"))
    kl = exact_kl(base, other)
    sums = [(kl[base.document == document] - kl.mean()).sum() for document in np.unique(base.document)]
    expected = np.sqrt(DOCUMENTS / (DOCUMENTS - 1) * np.square(sums).sum()) / POSITIONS
    assert found.kl_stderr == pytest.approx(expected, rel=1e-4)


def test_copies_of_a_position_in_its_document_do_not_make_the_error_smaller(
    base: Model, other: Model, tmp_path: Path
) -> None:
    once = compare_distributions(base.keep(tmp_path / "base"), other.keep(tmp_path / "other"))
    many = [
        Model(model.logprobs.repeat(9, 0), model.token.repeat(9), model.document.repeat(9)) for model in (base, other)
    ]
    copied = compare_distributions(many[0].keep(tmp_path / "many"), many[1].keep(tmp_path / "many other"))
    assert copied.kl_stderr == pytest.approx(once.kl_stderr)
    assert copied.perplexity_ratio_interval.low == pytest.approx(once.perplexity_ratio_interval.low)
    width = once.same_top_interval.high - once.same_top_interval.low
    assert copied.same_top_interval.high - copied.same_top_interval.low > 0.6 * width


@pytest.mark.parametrize("sides", [(10, 10), (10, None), (None, 10), (3, 20)])
def test_the_likeliest_tokens_give_a_lower_bound(
    sides: tuple[int | None, int | None], base: Model, other: Model, tmp_path: Path
) -> None:
    folders = base.keep(tmp_path / "base", top=sides[0]), other.keep(tmp_path / "other", top=sides[1])
    whole = compare_distributions(base.keep(tmp_path / "all"), other.keep(tmp_path / "all other"))
    bound = compare_distributions(*folders)
    assert not bound.exact
    assert 0.1 * whole.kl_mean < bound.kl_mean < whole.kl_mean
    assert bound.kl.median < whole.kl.median
    assert bound.kl.largest < whole.kl.largest + 1e-6
    assert 0.5 < bound.captured < 1
    assert bound.same_top == whole.same_top
    assert bound.perplexity_ratio == whole.perplexity_ratio


def test_the_bound_is_the_divergence_of_the_lumped_distributions(base: Model, other: Model, tmp_path: Path) -> None:
    found = compare_distributions(base.keep(tmp_path / "base", top=5), other.keep(tmp_path / "other", top=7))
    expected, captured = [], []
    for p, q, token in zip(np.exp(base.logprobs), np.exp(other.logprobs), base.token, strict=True):
        known = sorted({*np.argsort(-p)[:5], token} & {*np.argsort(-q)[:7], token})
        lumped = [np.append(side[known], 1 - side[known].sum()) for side in (p, q)]
        expected.append(stats.entropy(*lumped))
        captured.append(p[known].sum())
    assert found.kl_mean == pytest.approx(np.mean(expected), rel=1e-4)
    assert found.captured == pytest.approx(np.mean(captured), rel=1e-5)


def test_more_tokens_make_the_bound_sharper_until_all_make_it_exact(base: Model, other: Model, tmp_path: Path) -> None:
    bounds = [
        compare_distributions(base.keep(tmp_path / f"b{top}", top=top), other.keep(tmp_path / f"o{top}", top=top))
        for top in (1, 5, 20, VOCABULARY)
    ]
    assert [bound.kl_mean for bound in bounds] == sorted(bound.kl_mean for bound in bounds)
    assert bounds[-1].kl_mean == pytest.approx(exact_kl(base, other).mean(), rel=1e-3)
    assert bounds[-1].captured == pytest.approx(1)


def test_a_distribution_against_itself_is_at_no_distance(base: Model, tmp_path: Path) -> None:
    found = compare_distributions(base.keep(tmp_path / "base"), base.keep(tmp_path / "again"))
    assert found.kl_mean == found.kl.largest == found.kl_stderr == 0
    assert found.same_top == 1
    assert 0.98 < found.same_top_interval.low < 1
    assert found.histogram_counts == (POSITIONS,)
    assert found.perplexity_ratio == 1


def test_rounding_of_the_stored_logarithms_is_no_divergence(base: Model, tmp_path: Path) -> None:
    last_digit = np.random.default_rng(2).choice([-1e-6, 1e-6], base.logprobs.shape)
    rounded = replace(base, logprobs=base.logprobs + last_digit)
    found = compare_distributions(base.keep(tmp_path / "base"), rounded.keep(tmp_path / "rounded"))
    assert 0 < found.kl_mean < 2e-12


def test_the_result_does_not_depend_on_the_size_of_chunks(
    base: Model, other: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = base.keep(tmp_path / "base", top=9), other.keep(tmp_path / "other")
    at_once = compare_distributions(*folders)
    monkeypatch.setattr(divergence, "CHUNK_BYTES", 7 * 8 * VOCABULARY)
    assert compare_distributions(*folders) == at_once


def test_the_histogram_counts_every_position_once(base: Model, other: Model, tmp_path: Path) -> None:
    kl = exact_kl(base, other)
    equal = replace(other, logprobs=np.where(np.arange(POSITIONS)[:, None] < 40, base.logprobs, other.logprobs))
    found = compare_distributions(base.keep(tmp_path / "base"), equal.keep(tmp_path / "equal"))
    edges, counts = found.histogram_edges, found.histogram_counts
    assert len(edges) == len(counts) + 1
    assert edges[0] == FINEST
    assert edges[-2] < kl[40:].max() <= edges[-1]
    assert counts[0] == 40
    assert sum(counts) == POSITIONS
    assert np.log10(np.divide(edges[1:], edges[:-1])) == pytest.approx(0.25)


def test_one_long_document_is_split_into_stretches(base: Model, other: Model, tmp_path: Path) -> None:
    one = [replace(model, document=np.zeros(POSITIONS)) for model in (base, other)]
    found = compare_distributions(one[0].keep(tmp_path / "base"), one[1].keep(tmp_path / "other"))
    assert found.documents == 1
    # Positions here are independent, so stretches must find about what positions would.
    alone = exact_kl(base, other).std(ddof=1) / np.sqrt(POSITIONS)
    assert 0.5 * alone < found.kl_stderr < 2 * alone


def test_a_token_that_is_impossible_on_both_sides_counts_for_nothing(base: Model, other: Model, tmp_path: Path) -> None:
    padded = [
        replace(model, logprobs=np.column_stack([model.logprobs, np.full(POSITIONS, -np.inf)]))
        for model in (base, other)
    ]
    found = compare_distributions(padded[0].keep(tmp_path / "base"), padded[1].keep(tmp_path / "other"))
    assert found.kl_mean == pytest.approx(exact_kl(base, other).mean(), rel=1e-5)


def test_places_that_hold_no_token_are_left_out(base: Model, other: Model, tmp_path: Path) -> None:
    expected = compare_distributions(base.keep(tmp_path / "base", top=5), other.keep(tmp_path / "other", top=5))
    for side in ("base", "other"):
        ids, top = np.load(tmp_path / side / "ids.npy"), np.load(tmp_path / side / "top.npy")
        np.save(tmp_path / side / "ids.npy", np.pad(ids, ((0, 0), (0, 2)), constant_values=(-1, -1)))
        np.save(tmp_path / side / "top.npy", np.pad(top, ((0, 0), (0, 2)), constant_values=-np.inf))
    assert compare_distributions(tmp_path / "base", tmp_path / "other") == expected
    np.save(tmp_path / "other" / "ids.npy", np.pad(ids, ((0, 0), (0, 2)), constant_values=VOCABULARY - 1))
    assert compare_distributions(tmp_path / "base", tmp_path / "other") == expected


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda model: replace(model, token=model.token[::-1].copy()), "read different tokens"),
        (lambda model: replace(model, document=model.document[::-1].copy()), "read different tokens"),
        (lambda model: replace(model, logprobs=model.logprobs * 1.5), "do not sum to 1"),
        (lambda model: replace(model, logprobs=np.full_like(model.logprobs, np.nan)), "not a number"),
        (lambda model: replace(model, logprobs=without_a_token(model)), "divergence is infinite"),
        (lambda model: Model(model.logprobs[:-1], model.token[:-1], model.document[:-1]), "300 positions .* 299 here"),
        (lambda model: replace(model, logprobs=np.pad(model.logprobs, ((0, 0), (0, 1)))), "50 tokens .* 51 here"),
    ],
)
def test_what_cannot_be_compared_is_refused(break_it: Any, reason: str, base: Model, tmp_path: Path) -> None:
    folders = base.keep(tmp_path / "base"), break_it(base).keep(tmp_path / "other")
    with pytest.raises(ValueError, match=reason):
        compare_distributions(*folders)


def without_a_token(model: Model) -> Any:
    """Log-probabilities of a model that gives no probability to a token that does not come next."""
    logprobs = model.logprobs.copy()
    logprobs[0, (model.token[0] + 1) % VOCABULARY] = -np.inf
    return special.log_softmax(logprobs, axis=1)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("meta.json", b"{", "cannot be read"),
        ("meta.json", b"[]", "does not describe"),
        ("meta.json", None, "cannot be read"),
        ("logprobs.npy", b"\x93NUMPY\x01", "cannot be read"),
        ("logprobs.npy", b"", "cannot be read"),
        ("chosen.npy", None, "cannot be read"),
        ("chosen.npy", np.zeros(POSITIONS), "is float64"),
        ("token.npy", np.zeros(3, np.int32), r"of shape \(3,\)"),
        ("chosen.npy", np.array([{}]), "cannot be read"),
    ],
)
def test_a_broken_folder_is_refused_with_its_file(
    name: str, content: Any, reason: str, base: Model, tmp_path: Path
) -> None:
    good, broken = base.keep(tmp_path / "base"), base.keep(tmp_path / "broken")
    if content is None:
        (broken / name).unlink()
    elif isinstance(content, bytes):
        (broken / name).write_bytes(content)
    else:
        np.save(broken / name, content)
    with pytest.raises(ValueError, match=reason) as refusal:
        compare_distributions(good, broken)
    assert name in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "some"}, "unknown kind `some`"),
        ({"positions": 0}, "positions must be a number above 0"),
        ({"vocabulary": True}, "vocabulary must be a number above 0"),
        ({"tokens_sha256": "x"}, "different tokens"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    changes: dict[str, object], reason: str, base: Model, tmp_path: Path
) -> None:
    folders = base.keep(tmp_path / "base"), base.keep(tmp_path / "other", **changes)
    with pytest.raises(ValueError, match=reason):
        compare_distributions(*folders)


def test_a_single_position_is_refused(base: Model, tmp_path: Path) -> None:
    one = Model(base.logprobs[:1], base.token[:1], base.document[:1])
    with pytest.raises(ValueError, match="a single position"):
        compare_distributions(one.keep(tmp_path / "base"), one.keep(tmp_path / "other"))
