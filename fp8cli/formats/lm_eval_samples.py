"""The samples of lm-eval, `samples_TASK_DATE.jsonl`: one line per document and filter, read as a stream.

A file can have gigabytes, most of them few-shot prompts; of each line only what a comparison needs is kept. Numbers
and booleans inside `resps` are texts there: `[["-0.32", "True"], …]`.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from fp8cli.errors import BadInput

SHOWN: Final = 300
"""Characters kept of a prompt (its end), a target and an answer (their beginning)."""

Value = float | tuple[float, float]
"""Of a metric for one document: a number, or a log-likelihood and how many words or bytes it is of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model answered."""

    exact: object
    """Equal for equal answers: the number of the choice, whether the text was the most likely one, or a text's hash."""
    shown: str
    """As it was scored: what a filter took out of the text."""
    text: str | None = None
    """Beginning of the whole text, where it was generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One document through one filter."""

    doc_id: int
    filter: str
    doc_hash: str | None
    prompt_hash: str | None
    target_hash: str | None
    values: Mapping[str, Value]
    """By metric. What is neither a number nor a pair is left out: nothing can be said about it item by item."""
    answer: Answer | None
    """None where there is none, as for a log-likelihood over a whole document."""
    answer_by_length: Answer | None
    """Of a multiple choice: the choice with the best log-likelihood per character, which `acc_norm` goes by."""
    choices: int | None
    """Of a multiple choice: how many there are."""
    prompt: str
    target: str


class _Request(NamedTuple):
    """What the model was asked: how likely a continuation is, how likely the prompt itself is, or to generate."""

    prompt: str
    continuation: str
    generates: bool


def read_samples(path: Path) -> Iterator[Sample]:
    """Read the samples of one task, line by line. Raises BadInput, in one sentence, at the first broken line."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _read_line(path, number, line)
    except OSError as problem:
        raise BadInput(f"`{path}` cannot be read: {problem.strerror}") from problem


def _read_line(path: Path, number: int, line: bytes) -> Sample:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as problem:
        what = "breaks off in line" if not line.endswith(b"\n") else "is not JSON in line"
        raise BadInput(f"`{path}` {what} {number:,}", hint="evaluate it again, or leave that task out") from problem
    if not isinstance(raw, dict) or not isinstance(raw.get("doc_id"), int):
        message = f"`{path}` is not a file of lm-eval's samples: line {number:,} has no `doc_id`"
        raise BadInput(message, hint="give a file that lm-eval wrote with --log_samples")
    metrics = raw.get("metrics")
    names = metrics if isinstance(metrics, list) else [name for name in raw if name not in _FIELDS]
    values = {str(name): value for name in names if (value := _value(raw.get(name))) is not None}
    for name, value in values.items():
        if not all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
            message = f"`{path}` has {value} as {name} of document {raw['doc_id']}, which is no number"
            raise BadInput(message, hint="evaluate it again, and look into the log for what the model answered")
    requests = _requests(raw.get("arguments"))
    answers = _answers(raw, requests, mutual_information="acc_mutual_info" in values)
    return Sample(
        doc_id=raw["doc_id"],
        filter=str(raw.get("filter", "none")),
        doc_hash=_hash(raw.get("doc_hash")),
        prompt_hash=_hash(raw.get("prompt_hash")),
        target_hash=_hash(raw.get("target_hash")),
        values=values,
        answer=answers.answer,
        answer_by_length=answers.by_length,
        choices=answers.choices,
        prompt=requests[0].prompt[-SHOWN:] if requests else "",
        target=str(raw.get("target", ""))[:SHOWN],
    )


_FIELDS: Final = frozenset(
    "doc_id doc target arguments resps filtered_resps filter metrics doc_hash prompt_hash target_hash".split()
)


def _value(value: object) -> Value | None:
    match value:
        case bool() | int() | float():
            return float(value)
        case [bool() | int() | float() as first, bool() | int() | float() as second]:
            return float(first), float(second)
        case _:
            return None


def _hash(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _requests(arguments: object) -> list[_Request]:
    """Split the arguments of each request; newer files hold objects, older ones lists."""
    if isinstance(arguments, dict):
        arguments = [list(inner.values()) if isinstance(inner, dict) else [inner] for inner in arguments.values()]
    if not isinstance(arguments, list):
        return []
    requests: list[_Request] = []
    for request in arguments:
        match request:
            case [str() as prompt, str() as continuation, *_]:
                requests.append(_Request(prompt=prompt, continuation=continuation, generates=False))
            case [str() as prompt, *rest]:
                requests.append(_Request(prompt=prompt, continuation="", generates=bool(rest)))
            case _:
                return []
    return requests


@dataclass(frozen=True, kw_only=True)
class _Answers:
    answer: Answer | None = None
    by_length: Answer | None = None
    choices: int | None = None


def _answers(raw: Mapping[str, object], requests: list[_Request], *, mutual_information: bool) -> _Answers:
    scored = raw.get("filtered_resps")
    if requests and requests[0].generates:
        return _Answers(answer=_text_answer(raw.get("resps"), scored))
    likelihoods = _likelihoods(scored, len(requests))
    if likelihoods is None:
        return _Answers()
    if len(likelihoods) == 1:
        greedy = likelihoods[0][1]
        return _Answers(answer=Answer(exact=greedy, shown="the target" if greedy else "another text"))
    if mutual_information:
        # The second half are the choices without the question.
        likelihoods = likelihoods[: len(likelihoods) // 2]
    texts = [request.continuation for request in requests[: len(likelihoods)]]
    # lm-eval's delimiter between question and choice, one blank by default, is no part of the choice's length.
    lengths = [max(1, len(text.removeprefix(" "))) for text in texts]
    best = [likelihood for likelihood, _ in likelihoods]
    by_length = [likelihood / length for likelihood, length in zip(best, lengths, strict=True)]
    return _Answers(answer=_choice(best, texts), by_length=_choice(by_length, texts), choices=len(likelihoods))


def _likelihoods(scored: object, requests: int) -> list[tuple[float, bool]] | None:
    """Log-likelihood of each request, and whether its text was the most likely; None for other kinds of answers."""
    if not isinstance(scored, list) or len(scored) != requests or not scored:
        return None
    pairs: list[tuple[float, bool]] = []
    for pair in scored:
        match pair:
            case [str() | int() | float() as likelihood, str() | bool() as greedy]:
                try:
                    pairs.append((float(likelihood), str(greedy) == "True"))
                except ValueError:
                    return None
            case _:
                return None
    return pairs


def _choice(scores: list[float], texts: list[str]) -> Answer:
    chosen = max(range(len(scores)), key=scores.__getitem__)
    # Where the question differs and the continuation does not, as in Winogrande, only the number tells.
    shown = texts[chosen].strip()[:SHOWN] if len(set(texts)) == len(texts) else f"choice {chosen + 1}"
    return Answer(exact=chosen, shown=shown)


def _text_answer(responses: object, scored: object) -> Answer | None:
    whole, taken = _first_text(responses), _first_text(scored)
    if whole is None or taken is None:
        return None
    # All responses count, where a document was asked more than once.
    exact = hashlib.sha256(json.dumps(responses).encode()).digest()
    return Answer(exact=exact, shown=taken[:SHOWN], text=whole[:SHOWN])


def _first_text(nested: object) -> str | None:
    while isinstance(nested, list) and nested:
        nested = nested[0]
    return nested if isinstance(nested, str) else None
