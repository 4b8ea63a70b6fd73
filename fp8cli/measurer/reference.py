"""What the model says as it is, kept, so that what it says in another form can be set beside it.

For every position the log-probabilities of the next token over the whole vocabulary, as float32, in one file that is
mapped into memory. KL of the model as it is, p, against another form, q, is Σ p ln(p/q), summed as
Σ (p ln(p/q) − p + q): equal for distributions that sum to 1, but no term is negative and float32's rounding cancels
(see core.comparing.divergence, which compares what two runs have kept in the same way).

Texts of like length go through together, padded behind: what a causal model says of a token does not depend on later
ones, and all forms get the same batches, so that none differs for its company. No form here has a scale that a batch
shares, unless data found it beforehand.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np

from fp8cli.measurer.protocol import REFERENCE
from fp8cli.worker.failures import Failure

CHUNK_BYTES: Final = 32 * 2**20
"""Of the log-probabilities of a chunk of positions as float64; about six such tensors are alive at a time."""

BATCH_TOKENS: Final = 512
"""Of a batch, padding included; a longer text is a batch of its own."""

_PADDING: Final = 0
_FLOAT32_BYTES: Final = 4
_FLOAT64_BYTES: Final = 8

_OVERFLOWS: Final = "the model overflows in its dtype, or its weights hold NaN: fp8 inspect CHECKPOINT"


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How far another form of a model is from the model as it is, over the positions of a reference."""

    kl: float
    """Mean over the positions of KL(as it is ‖ other form), nats."""
    kl_se: float
    """Standard error of that mean, clustered by text, since positions of one text resemble each other; 0.0 where there
    is one text alone, which says nothing of it."""
    same_top: float
    """Share of the positions where both hold the same token for the likeliest."""
    positions: int
    per_sample: tuple[float, ...]
    """Mean KL of each text, in the order of `Reference.lengths`."""


class Reference:
    """The next-token distributions of a model over some texts."""

    def __init__(
        self,
        model: Any,
        samples: Sequence[Sequence[int]],
        folder: Path,
        *,
        positions: int,
        budget_bytes: int,
        notify: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        """Run the model over the texts once, and keep what it says in a file of `folder`.

        samples: token ids of each text. At most `positions` distributions are kept, and at most `budget_bytes` of
        them: of each text its beginning, short texts whole and long ones cut at one length. notify: positions that are
        done, and all there are.

        Raises Failure where there is nothing to predict, for tokens that the model does not have, or if the model says
        what is no number.
        """
        vocabulary = _vocabulary(model)
        most = min(positions, budget_bytes // (vocabulary * _FLOAT32_BYTES))
        lengths = share_out([max(len(sample) - 1, 0) for sample in samples], most)
        kept = [(sample, length) for sample, length in zip(samples, lengths, strict=True) if length]
        if not kept:
            message = f"of {len(samples):,} texts none has a token to predict within {most:,} positions"
            raise Failure(kind="data", message=message, hint="name longer texts, or allow more positions")
        _check_tokens(model, kept)
        # The last token of a text is predicted, and nothing is asked about it.
        self.samples: tuple[tuple[int, ...], ...] = tuple(tuple(sample[:length]) for sample, length in kept)
        """The token ids of each text that the model is shown."""
        self.lengths: tuple[int, ...] = tuple(length for _, length in kept)
        """Positions of each text: the weights of `Divergence.per_sample` in its mean."""
        self.positions = sum(self.lengths)
        self._batches = _batches(self.lengths)
        self._begins = [0, *accumulate(self.lengths)]
        self._kept = np.memmap(folder / REFERENCE, np.float32, "w+", shape=(self.positions, vocabulary))
        done = 0
        for text, rows in self._ask(model):
            if bool(rows.isnan().any()):
                message = "the model as it is gives log-probabilities that are no numbers"
                raise Failure(kind="model", message=message, hint=_OVERFLOWS)
            self._rows(text)[:] = rows.cpu().numpy()
            done += len(rows)
            notify(done, self.positions)

    def divergence(self, model: Any) -> Divergence:
        """Run a form of the model over the same positions, and say how far it is from the model as it was.

        Raises Failure where it says what is no number.
        """
        sums, same = [0.0] * len(self.samples), 0
        for text, rows in self._ask(model):
            sums[text], agreed = _compare(self._rows(text), rows)
            if not math.isfinite(sums[text]):
                raise Failure(kind="model", message="log-probabilities are no numbers in this form of the model")
            same += agreed
        mean = math.fsum(sums) / self.positions
        return Divergence(
            kl=mean,
            kl_se=clustered_error(sums, self.lengths),
            same_top=same / self.positions,
            positions=self.positions,
            per_sample=tuple(total / length for total, length in zip(sums, self.lengths, strict=True)),
        )

    def _rows(self, text: int) -> Any:
        """Return what is kept of a text: [its positions, V]."""
        return self._kept[self._begins[text] : self._begins[text + 1]]

    def _ask(self, model: Any) -> Iterator[tuple[int, Any]]:
        """Yield the number of each text, and the log-probabilities of its next tokens [its positions, V]."""
        for batch in self._batches:
            found = _log_probabilities(model, [self.samples[text] for text in batch])
            for place, text in enumerate(batch):
                yield text, found[place, : self.lengths[text]]


def share_out(lengths: Sequence[int], most: int) -> list[int]:
    """Return lengths that sum to `most`, or to all there is if that is less: short ones whole, long ones cut at one.

    What does not divide goes to the longest.
    """
    left, shares = most, [0] * len(lengths)
    for place, index in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        # Longer ones come later in this order, so a later one never gets less.
        share = left // (len(lengths) - place)
        shares[index] = min(lengths[index], share)
        left -= shares[index]
    return shares


def clustered_error(sums: Sequence[float], lengths: Sequence[int]) -> float:
    """Return the standard error of Σ sums / Σ lengths: √(C/(C − 1) · Σ_c (s_c − m n_c)²) / N; 0.0 of one text."""
    count, positions = len(sums), sum(lengths)
    if count < 2:
        return 0.0
    mean = math.fsum(sums) / positions
    spread = math.fsum((total - mean * length) ** 2 for total, length in zip(sums, lengths, strict=True))
    return math.sqrt(count / (count - 1) * spread) / positions


def _vocabulary(model: Any) -> int:
    """Return how many tokens the model chooses from: what its output layer has rows for."""
    head = model.get_output_embeddings()
    return int(model.config.get_text_config().vocab_size if head is None else head.weight.shape[0])


def _check_tokens(model: Any, kept: Sequence[tuple[Sequence[int], int]]) -> None:
    rows = int(model.get_input_embeddings().weight.shape[0])
    largest = max(max(sample) for sample, _ in kept)
    if largest >= rows:
        message = f"the tokenizer made a token {largest:,} of the texts, and the model has {rows:,} tokens"
        raise Failure(kind="model", message=message, hint="the tokenizer is not the model's; copy that of the original")


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Put texts of like length together, by their numbers, so that no batch has more than `BATCH_TOKENS`."""
    batches: list[list[int]] = []
    # Longest first, so that the first of a batch says how wide it is.
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= BATCH_TOKENS:
            batches[-1].append(text)
        else:
            batches.append([text])
    return batches


def _log_probabilities(model: Any, texts: Sequence[Sequence[int]]) -> Any:
    """Return the log-probabilities of the next token [texts, longest, V], float32, on the model's device."""
    import torch

    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[_PADDING] * (width - len(text))] for text in texts], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
        return torch.log_softmax(logits.float(), dim=-1)


def _compare(base: Any, other: Any) -> tuple[float, int]:
    """Return the sum over positions of KL, and how many of them agree on the likeliest token.

    base: rows of the reference [P, V]; other: log-probabilities [P, V].
    """
    import torch

    step = max(1, CHUNK_BYTES // (_FLOAT64_BYTES * base.shape[1]))
    total, agreed = 0.0, 0
    with torch.inference_mode():
        for begin in range(0, len(base), step):
            rows = torch.from_numpy(np.array(base[begin : begin + step])).to(other.device)
            theirs = other[begin : begin + step]
            agreed += int((rows.argmax(-1) == theirs.argmax(-1)).sum())
            log_p, log_q = rows.double(), theirs.double()
            p = log_p.exp()
            # Where p is 0 its logarithm may be −∞, and the limit of the product is 0.
            terms = torch.where(p == 0, 0.0, p * (log_p - log_q - 1)) + log_q.exp()
            total += float(terms.sum(-1).clamp(min=0).sum())
    return total, agreed
