"""The texts whose next-token distributions are kept, as the token ids that the model gets.

They are those of the tasks' own documents, the prompt with the right answer behind it, or the lines of a file. Which
ones depends on the tasks and the tokenizer alone, so that two models with the same tokenizer get the same tokens.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final

from fp8cli.worker.failures import Failure

TOO_SHORT: Final = 1
"""Tokens of a text in which there is nothing to predict."""

Documents = tuple[tuple[int, ...], ...]


def encode_documents(lm: Any, tasks: Mapping[str, Any], file: Path | None, longest: int) -> Iterator[tuple[int, ...]]:
    """Yield the documents, each once, as at most `longest` token ids."""
    seen = set()
    for tokens in _of_file(lm, file, longest) if file is not None else _of_tasks(lm, tasks, longest):
        if len(tokens) > TOO_SHORT and tokens not in seen:
            seen.add(tokens)
            yield tokens


def take_positions(documents: Iterator[tuple[int, ...]], positions: int) -> Documents:
    """Return documents with that many tokens to predict in all, or as many as there are; the last one is cut."""
    taken = []
    left = positions
    for tokens in documents:
        if left <= 0:
            break
        taken.append(tokens[: left + 1])
        left -= len(taken[-1]) - 1
    return tuple(taken)


def hash_documents(documents: Documents) -> str:
    """Return the SHA-256 over the token ids of all documents."""
    return hashlib.sha256(json.dumps(documents).encode()).hexdigest()


def _of_file(lm: Any, file: Path, longest: int) -> Iterator[tuple[int, ...]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            text = _text_of(line, number, file) if file.suffix == ".jsonl" else line.rstrip("\n")
            if text:
                yield tuple(lm.tok_encode(text)[:longest])


def _text_of(line: str, number: int, file: Path) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(kind="data", message=f"line {number} of `{file}` is no JSON object with a `text`") from error
    return str(text)


def _of_tasks(lm: Any, tasks: Mapping[str, Any], longest: int) -> Iterator[tuple[int, ...]]:
    """Yield documents of all tasks in turn, those of each task in an order drawn by its name."""
    orders = []
    for name, task in tasks.items():
        by_document: dict[Any, list[Any]] = {}
        for request in task.instances:
            by_document.setdefault(request.doc_id, []).append(request)
        documents = list(by_document.values())
        random.Random(name).shuffle(documents)  # noqa: S311 - no secret
        orders.append([(task, requests) for requests in documents])
    for task, requests in filter(None, chain.from_iterable(zip_longest(*orders))):
        yield _encode(lm, _of_the_right_answer(task, requests), longest)


def _of_the_right_answer(task: Any, requests: Sequence[Any]) -> Any:
    right = task.doc_to_target(requests[0].doc) if len(requests) > 1 else 0
    return next((request for request in requests if request.idx == right), requests[0])


def _encode(lm: Any, request: Any, longest: int) -> tuple[int, ...]:
    """Encode a request as lm-eval's models do; of one that is too long they drop the beginning."""
    match request.request_type, request.args:
        case "loglikelihood_rolling", (text,):
            return (lm.prefix_token_id, *lm.tok_encode(text))[:longest]
        case "loglikelihood", ("", answer):
            return (lm.prefix_token_id, *lm.tok_encode(answer, add_special_tokens=False))[-longest:]
        case "loglikelihood", (prompt, answer):
            before, after = lm._encode_pair(prompt, answer)
            return (*before, *after)[-longest:]
        case _, (prompt, *_):
            return tuple(lm.tok_encode(str(prompt))[-longest:])
    raise Failure(kind="other", message=f"a request of type `{request.request_type}` has no text")
