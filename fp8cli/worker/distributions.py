"""Next-token distributions of a loaded model, by backend: whole ones where they can be had, else the likeliest tokens.

Log-probabilities are natural logarithms, of a softmax in float32.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from fp8cli.worker.failures import Failure, sentence
from fp8cli.worker.models import SMALL_VOCABULARY

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTES_PER_VALUE: Final = 4

ROWS_AT_ONCE: Final = 256
"""Of a document, in float32: beside the logits of a large vocabulary no second copy of all of them."""

TOKEN_ID: Final = "token_id:"  # noqa: S105 - no secret
"""What vLLM's server puts before the id of a token that it was asked not to spell out."""

SERVERS_TOPS: Final = (20, 5)
"""Log-probabilities per position that servers give at most: vLLM by default, and OpenAI's protocol."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The distributions over the tokens of one document after its first, P of them."""

    chosen: "NDArray[np.float32]"
    """[P]: log-probability of the token that comes next."""
    logprobs: "NDArray[np.float32] | None" = None
    """[P, vocabulary], where whole distributions can be had."""
    ids: "NDArray[np.int32] | None" = None
    """[P, K]: the likeliest tokens, the first one most likely."""
    top: "NDArray[np.float32] | None" = None
    """[P, K]: their log-probabilities."""


class Transformers:
    """All log-probabilities from the logits of a model of transformers, one document at a time."""

    kind: Literal["all", "top"] = "all"
    columns: int
    """Values kept per position."""

    def __init__(self, lm: Any) -> None:
        """Find the width of the output layer, which may be more than the tokenizer knows."""
        if lm.backend != "causal":
            raise Failure(kind="other", message="an encoder-decoder has no next-token distributions over a prompt")
        self._lm = lm
        self.vocabulary = self.columns = int(self._logits([lm.eot_token_id or 0]).shape[-1])

    def rows(self, tokens: Sequence[int]) -> Rows:
        """Return the distributions over a document."""
        logits = self._logits(tokens[:-1])
        logprobs = np.empty((len(tokens) - 1, self.vocabulary), dtype=np.float32)
        for start in range(0, len(logprobs), ROWS_AT_ONCE):
            part = logits[start : start + ROWS_AT_ONCE].float().log_softmax(dim=-1)
            logprobs[start : start + ROWS_AT_ONCE] = part.cpu().numpy()
        return Rows(chosen=_chosen(logprobs, tokens), logprobs=logprobs)

    def _logits(self, tokens: Sequence[int]) -> Any:
        import torch

        return self._lm._model_call(torch.tensor([list(tokens)], device=self._lm.device))[0]


class Vllm:
    """Log-probabilities of prompts from vLLM: all of them for a small vocabulary."""

    def __init__(self, lm: Any, top_k: int) -> None:
        """Ask for as many as the engine was told at its start."""
        from vllm import SamplingParams

        config = lm.model.llm_engine.model_config
        self._lm = lm
        self.vocabulary = int(config.get_vocab_size())
        self.kind: Literal["all", "top"] = "all" if self.vocabulary <= SMALL_VOCABULARY else "top"
        self.columns = self.vocabulary if self.kind == "all" else top_k
        # In vLLM's flat form a position is no dictionary of objects, which halves the time.
        flat = {"flat_logprobs": True} if "flat_logprobs" in SamplingParams.__annotations__ else {}
        self._sampling = SamplingParams(
            temperature=0,
            max_tokens=1,
            detokenize=False,
            prompt_logprobs=-1 if self.kind == "all" else top_k,
            **flat,
        )

    def rows(self, tokens: Sequence[int]) -> Rows:
        """Return the distributions over a document."""
        prompt = {"prompt_token_ids": list(tokens)}
        (output,) = self._lm.model.generate([prompt], self._sampling, use_tqdm=False)
        positions = [dict(position) for position in _positions(output.prompt_logprobs)]
        if self.kind == "top":
            return _likeliest(positions, tokens, self.columns)
        logprobs = np.full((len(positions), self.vocabulary), -np.inf, dtype=np.float32)
        for row, position in zip(logprobs, positions, strict=True):
            row[np.fromiter(position.keys(), dtype=np.int64)] = np.fromiter(position.values(), dtype=np.float32)
        return Rows(chosen=_chosen(logprobs, tokens), logprobs=logprobs)


class Server:
    """The likeliest tokens that a server names when it repeats a prompt."""

    kind: Literal["all", "top"] = "top"

    def __init__(self, lm: Any, top_k: int) -> None:
        """Find out how many the server gives. Raises Failure where it gives none by their ids."""
        if not lm.tokenized_requests:
            raise Failure(kind="server", message="the server is sent texts, so that nobody here knows its tokens")
        self._lm = lm
        self.vocabulary = len(lm.tokenizer) if hasattr(lm.tokenizer, "__len__") else 0
        self.columns = 0
        probe = list(lm.tok_encode("a b"))
        refused: Exception | None = None
        for columns in (top_k, *(top for top in SERVERS_TOPS if top < top_k)):
            self.columns = columns
            try:
                self.rows(probe)
            except Failure:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the server may do with less
                refused = error
            else:
                return
        reason = "" if refused is None else f" ({sentence(refused)})"
        raise Failure(kind="server", message=f"the server gives no log-probabilities of prompts{reason}")

    def rows(self, tokens: Sequence[int]) -> Rows:
        """Return the likeliest tokens over a document."""
        plain = self._lm._create_payload

        def payload(*arguments: Any, **options: Any) -> dict[str, Any]:
            return {**plain(*arguments, **options), "logprobs": self.columns, "return_tokens_as_token_ids": True}

        # lm-eval's class keeps the address, the certificates and the token; only what is asked for is another thing.
        self._lm._create_payload = payload
        try:
            answer = self._lm.model_call([list(tokens)], generate=False)
        finally:
            self._lm._create_payload = plain
        tops = answer["choices"][0]["logprobs"]["top_logprobs"][1 : len(tokens)]
        if not all(name.startswith(TOKEN_ID) for position in tops for name in position):
            raise Failure(kind="server", message="the server names tokens by their texts, not by their ids")
        positions = [
            {int(name.removeprefix(TOKEN_ID)): float(value) for name, value in position.items()} for position in tops
        ]
        return _likeliest(positions, tokens, self.columns)


def _positions(prompt_logprobs: Any) -> Iterator[Mapping[int, float]]:
    """Yield log-probabilities by token id for each position after the first, of either form that vLLM has."""
    starts = getattr(prompt_logprobs, "start_indices", None)
    if starts is None:
        for position in prompt_logprobs[1:]:
            yield {token: float(entry.logprob) for token, entry in position.items()}
        return
    for start, end in zip(starts[1:], prompt_logprobs.end_indices[1:], strict=True):
        yield dict(zip(prompt_logprobs.token_ids[start:end], prompt_logprobs.logprobs[start:end], strict=True))


def _likeliest(positions: Sequence[Mapping[int, float]], tokens: Sequence[int], count: int) -> Rows:
    """Keep `count` tokens of each position; the one that comes next may be named beside them."""
    ids = np.empty((len(positions), count), dtype=np.int32)
    top = np.empty((len(positions), count), dtype=np.float32)
    for index, position in enumerate(positions):
        ordered = sorted(position.items(), key=lambda entry: -entry[1])[:count]
        ids[index] = [token for token, _ in ordered]
        top[index] = [value for _, value in ordered]
    chosen = [position[token] for position, token in zip(positions, tokens[1:], strict=True)]
    return Rows(chosen=np.array(chosen, dtype=np.float32), ids=ids, top=top)


def _chosen(logprobs: "NDArray[np.float32]", tokens: Sequence[int]) -> "NDArray[np.float32]":
    return logprobs[np.arange(len(logprobs)), list(tokens[1:])]
