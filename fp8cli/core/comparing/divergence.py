"""How far apart two models' next-token distributions are: KL divergence, agreement, and change of probability.

KL of base p against other q is Σ p ln(p/q), summed here as Σ (p ln(p/q) − p + q). For distributions that sum to 1 the
two are equal, but no term of the second is negative, and it is flat where p = q, so the rounding of the stored float32
logarithms cancels: equal distributions give 0, and those that differ by rounding about 10⁻¹², not ±10⁻⁷.

Where only the likeliest tokens were kept, let A be those whose probability is known on both sides, the token that
came next among them. All others count as one token more: Σ_A p ln(p/q) + (1 − P_A) ln((1 − P_A)/(1 − Q_A)). Lumping
tokens together can only lower KL (log sum inequality; Cover and Thomas, Elements of Information Theory, 2.7.1), so
this is a lower bound, and it is called one.

Positions of one document resemble each other, so errors are clustered by document. Rows are worked on in chunks; what
is kept for all positions is a few numbers each.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fp8cli.core.comparing.comparison import FidelityComparison, Interval, Quantiles
from fp8cli.core.comparing.kept_distributions import Kept, check_same_tokens, open_kept
from fp8cli.core.comparing.means import perplexity_ratio
from fp8cli.core.comparing.shares import wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CHUNK_BYTES: Final = 8 * 2**20
"""Of the values of a chunk as float64; about eight such arrays are alive at a time."""
STRETCHES: Final = 20
"""Parts of equal length that stand for documents where there is only one."""
FINEST: Final = 1e-8
"""Nats, the lowest edge of the histogram; its first bin holds all below as well."""
STEPS_PER_DECADE: Final = 4

_TOLERANCE: Final = 1e-3
"""How far probabilities may be from summing to 1."""
_LEAST_REST: Final = 1e-6
"""Of the probability of all tokens that were not kept: below it the float32 of those that were is rounding."""


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """What a chunk of positions comes to, one value each."""

    kl: "Floats"
    captured: "Floats"
    same_top: "NDArray[np.bool_]"


def compare_distributions(base: Path, other: Path, confidence: float = 0.95) -> FidelityComparison:
    """Compare the distributions in two fidelity folders over the same tokens; KL in nats, of base against other.

    Raises ValueError with the reason if the two cannot be compared: other tokens, another vocabulary, a broken file,
    numbers that are no log-probabilities, fewer than two positions, or an infinite divergence.
    """
    import numpy as np

    ours, theirs = open_kept(base), open_kept(other)
    check_same_tokens(ours, theirs)
    if ours.positions < 2:
        raise ValueError("a single position says nothing of the spread")
    # exp of a garbled number may overflow; what comes of it is refused below.
    with np.errstate(all="ignore"):
        parts = [_compare_rows(ours, theirs, rows) for rows in _chunks(ours, theirs)]
        kl = np.concatenate([part.kl for part in parts])
        same = np.concatenate([part.same_top for part in parts]).astype(np.float64)
        captured = np.concatenate([part.captured for part in parts])
        chosen, other_chosen = ours.chosen.astype(np.float64), theirs.chosen.astype(np.float64)
        changes = np.exp(other_chosen) - np.exp(chosen)
    _refuse_what_is_not_finite(kl, chosen, other_chosen)
    clusters = _clusters(ours)
    ratio, ratio_interval = perplexity_ratio(
        np.bincount(clusters, -chosen).tolist(),
        np.bincount(clusters, -other_chosen).tolist(),
        np.bincount(clusters).tolist(),
        confidence,
    )
    if ratio_interval is None:
        raise ValueError("the positions cannot be split, so nothing is known of their spread")
    edges, counts = _histogram(kl)
    return FidelityComparison(
        exact=ours.kind == theirs.kind == "all",
        of=ours.of,
        positions=ours.positions,
        documents=int(np.unique(ours.document).size),
        kl_mean=float(kl.mean()),
        kl_stderr=_clustered_stderr(kl, clusters),
        kl=_quantiles(kl),
        captured=float(captured.mean()),
        same_top=float(same.mean()),
        same_top_interval=_clustered_wilson(same, clusters, confidence),
        delta_p_mean=float(changes.mean()),
        delta_p_rms=float(np.sqrt(np.mean(changes**2))),
        delta_p=_quantiles(changes),
        perplexity_base=math.exp(min(-float(chosen.mean()), 700.0)),
        perplexity_other=math.exp(min(-float(other_chosen.mean()), 700.0)),
        perplexity_ratio=ratio,
        perplexity_ratio_interval=ratio_interval,
        histogram_edges=edges,
        histogram_counts=counts,
    )


def _chunks(*sides: Kept) -> Iterator[slice]:
    columns = max(side.logprobs.shape[1] for side in sides)
    rows = max(1, CHUNK_BYTES // (8 * columns))
    for start in range(0, sides[0].positions, rows):
        yield slice(start, min(start + rows, sides[0].positions))


def _compare_rows(base: Kept, other: Kept, rows: slice) -> _Rows:
    import numpy as np

    same_top = _most_likely(base, rows) == _most_likely(other, rows)
    if base.ids is None and other.ids is None:
        kl, captured = _exact(base.logprobs[rows].astype(np.float64), other.logprobs[rows].astype(np.float64))
    else:
        kl, captured = _bound(base, other, rows)
    return _Rows(kl=kl, captured=captured, same_top=same_top)


def _most_likely(side: Kept, rows: slice) -> "NDArray[np.integer[Any]]":
    if side.ids is not None:
        return side.ids[rows, 0]
    likeliest: NDArray[np.int64] = side.logprobs[rows].argmax(axis=1)
    return likeliest


def _exact(base: "Floats", other: "Floats") -> "tuple[Floats, Floats]":
    """KL of each row of log-probabilities [rows, V], and the whole probability, which is 1."""
    import numpy as np

    p, q = np.exp(base), np.exp(other)
    for side in (p, q):
        # NaN is left to be refused by its own name.
        if (abs(side.sum(axis=1) - 1) > _TOLERANCE).any():
            raise ValueError("what was kept are no log-probabilities: they do not sum to 1")
    return np.maximum(_terms(p, q, base - other).sum(axis=1), 0.0), np.ones(len(base))


def _terms(p: "Floats", q: "Floats", log_ratio: "Floats") -> "Floats":
    """Terms of KL, none of them negative but by rounding: p ln(p/q) − p + q."""
    import numpy as np

    # Where p is 0 the logarithm is −∞, and the limit of the product is 0.
    terms: Floats = np.where(p == 0, 0.0, p * (log_ratio - 1)) + q
    return terms


def _bound(base: Kept, other: Kept, rows: slice) -> "tuple[Floats, Floats]":
    """Lower bound of KL of each row, and the base's probability of the tokens that are known on both sides."""
    import numpy as np

    count = rows.stop - rows.start
    tables = [None if side.ids is None else _table(side, side.ids, rows) for side in (base, other)]
    places = [table[0] for table in tables if table is not None]
    known = places[0] if len(places) == 1 else np.intersect1d(places[0], places[1], assume_unique=True)
    ours, theirs = (
        side.logprobs[rows].reshape(-1)[known].astype(np.float64)
        if table is None
        else table[1][np.searchsorted(table[0], known)]
        for side, table in zip((base, other), tables, strict=True)
    )
    row = known // base.vocabulary
    p, q = np.exp(ours), np.exp(theirs)
    captured, others = np.bincount(row, p, count), np.bincount(row, q, count)
    for side in (captured, others):
        if (side > 1 + _TOLERANCE).any():
            raise ValueError("what was kept are no log-probabilities: they sum to more than 1")
    rest, rest_of_other = np.maximum(1 - captured, _LEAST_REST), np.maximum(1 - others, _LEAST_REST)
    kl = np.bincount(row, _terms(p, q, ours - theirs), count) + _terms(
        rest, rest_of_other, np.log(rest / rest_of_other)
    )
    return np.maximum(kl, 0.0), np.minimum(captured, 1.0)


def _table(side: Kept, likeliest: "NDArray[np.int32]", rows: slice) -> "tuple[NDArray[np.int64], Floats]":
    """The tokens of some rows whose log-probabilities are known, each as row · V + token, ascending, and the values.

    The token that came next is known even where it is not among the likeliest. Places that hold no token are left out.
    """
    import numpy as np

    ids = np.column_stack([likeliest[rows], side.token[rows]]).astype(np.int64)
    values = np.column_stack([side.logprobs[rows], side.chosen[rows]]).astype(np.float64)
    held = (ids >= 0) & (ids < side.vocabulary) & (values != -np.inf)
    places = (np.arange(len(ids))[:, None] * side.vocabulary + ids)[held]
    unique, first = np.unique(places, return_index=True)
    return unique, values[held][first]


def _refuse_what_is_not_finite(kl: "Floats", *chosen: "Floats") -> None:
    import numpy as np

    if np.isnan(kl).any() or not all(np.isfinite(side).all() for side in chosen):
        raise ValueError("a log-probability is not a number")
    if not np.isfinite(kl).all():
        raise ValueError("the divergence is infinite: a token that is possible on the base is impossible on the other")


def _clusters(side: Kept) -> "NDArray[np.int64]":
    """Number of the document of each position, or of the stretch where there is one document only."""
    import numpy as np

    documents, cluster = np.unique(side.document, return_inverse=True)
    if documents.size > 1:
        return cluster.astype(np.int64)
    stretches = min(STRETCHES, side.positions)
    return np.arange(side.positions, dtype=np.int64) * stretches // side.positions


def _clustered_stderr(values: "Floats", clusters: "NDArray[np.int64]") -> float:
    """Standard error of the mean: √(C/(C − 1) · Σ_c (Σ_{i∈c} (x_i − x̄))²) / P."""
    import numpy as np

    sums = np.bincount(clusters, values - values.mean())
    return float(np.sqrt(sums.size / (sums.size - 1) * np.sum(sums**2)) / values.size)


def _clustered_wilson(same: "Floats", clusters: "NDArray[np.int64]", confidence: float) -> Interval:
    """Wilson's interval with as many positions as independent ones would give the same standard error, if fewer."""
    share, error = float(same.mean()), _clustered_stderr(same, clusters)
    items = float(same.size)
    if error > 0:
        items = min(items, share * (1 - share) / error**2)
    interval = wilson(share * items, items, confidence)
    return Interval(low=interval.low, high=interval.high, confidence=confidence, method="Wilson, clustered")


def _quantiles(values: "Floats") -> Quantiles:
    import numpy as np

    low, median, *high, largest = (
        float(value) for value in np.quantile(values, (0.01, 0.5, 0.9, 0.95, 0.99, 0.999, 1))
    )
    return Quantiles(
        low_1=low,
        median=median,
        high_90=high[0],
        high_95=high[1],
        high_99=high[2],
        high_999=high[3],
        largest=largest,
    )


def _histogram(kl: "Floats") -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Edges on a fixed logarithmic grid, so that two histograms lie on one axis, up to the largest value; counts."""
    import numpy as np

    edges = [FINEST]
    while edges[-1] < kl.max() or len(edges) == 1:
        edges.append(float(10 ** (math.log10(FINEST) + len(edges) / STEPS_PER_DECADE)))
    counts, _ = np.histogram(np.maximum(kl, FINEST), edges)
    return tuple(edges), tuple(int(count) for count in counts)
