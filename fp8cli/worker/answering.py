"""A model of lm-eval whose answers are kept as they come, and that is not asked again what it answered before.

lm-eval asks a model with a list of requests per method, and the model sorts and batches that list itself. A list none
of which is known goes through untouched, so that a run that nobody cut off sends exactly the batches of lm-eval's own
command and gets the same digits. Of a list that is partly known only the rest is sent; since lists are sorted by
length and journals hold whole batches, that rest falls into the batches it would have been in. Rolling likelihoods
are cut into windows by the model, in the order of the documents: there the windows are known or not.

Workers that share a job build the same list each, and answer every so manyth document of it; the first one waits for
the journals of the others and goes on with all answers.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from lm_eval.api.model import hash_args

from fp8cli.worker.journal import Journal
from fp8cli.worker.progress import Progress

LIKELIHOOD: Final = "loglikelihood"
ROLLING: Final = "loglikelihood_rolling"
GENERATION: Final = "generate_until"
METHODS: Final = (LIKELIHOOD, ROLLING, GENERATION)

CALLS: Final = ("_model_call", "_model_generate", "model_call")
"""By which the classes of lm-eval run one batch: whatever was answered before is a whole batch."""

HERE: Final = "huggingface"
"""Where lm-eval's class for servers runs a tokenizer, if not on the server."""

SECONDS_BETWEEN_LOOKS: Final = 0.1
"""While the first worker waits for the others."""

SAMPLED: Final = ""
"""In place of a key: drawn at random, and drawn anew each time."""


class ShareDone(Exception):
    """Everything that a worker which is not the first was to answer is in its journal."""


class Answering:
    """What stands between lm-eval and its model."""

    def __init__(
        self, lm: Any, tasks: Mapping[str, Any], *, journal: Journal, progress: Progress, rank: int, world: int
    ) -> None:
        """Take the place of the methods of `lm` that lm-eval asks with, to answer every `world`-th document."""
        self._lm = lm
        self._tasks = tasks
        self._journal = journal
        self._progress = progress
        self._rank, self._world = rank, world
        self._method = ""
        self._keys_of_context: dict[Any, set[str]] = {}
        self._expected = 0
        self._left: set[str] | None = None
        self.known = 0
        """Requests that an earlier worker answered."""
        self.tokens = 0
        """That went through the model."""
        self._concurrent = int(getattr(lm, "_concurrent", 1)) > 1
        lm.set_cache_hook(self)
        for method in METHODS:
            setattr(lm, method, self._intercept(method, getattr(lm, method)))
        self._score = lm._loglikelihood_tokens
        lm._loglikelihood_tokens = self._score_tokens
        for call in CALLS:
            if hasattr(lm, call):
                setattr(lm, call, self._write_before(getattr(lm, call)))

    def add_partial(self, method: str, arguments: Any, answer: Any) -> None:
        """Keep one answer; lm-eval's models call this for each, in a batch as soon as the batch is done."""
        if arguments is None or method != self._method or method == ROLLING:
            return
        if method == LIKELIHOOD:
            self._keep(hash_args(LIKELIHOOD, arguments), answer)
        else:
            # vLLM's class names a request by other options than it was asked with; the context is the same. Where
            # one context was asked with several options, the answers are told apart when all of them are there.
            keys = self._keys_of_context.get(arguments[0], set())
            if keys == {SAMPLED}:
                self._count(1)
            elif len(keys) == 1:
                self._keep(next(iter(keys)), answer)
        if self._concurrent:
            self._journal.write()

    def _intercept(self, method: str, ask: Callable[[Sequence[Any]], Sequence[Any]]) -> Callable[..., list[Any]]:
        def answer(requests: Sequence[Any]) -> list[Any]:
            self._announce()
            keys = [_key(method, request) for request in requests]
            own = self._own(requests, keys)
            asked = self._windowed(own, keys) if method == ROLLING else self._unknown(own, keys)
            self._method = method
            answers = dict(zip(asked, self._ask(ask, requests, keys, asked), strict=True))
            self._method = ""
            self._wait_for(keys)
            self._leave(method)
            known = self._journal.answers
            return [
                answers[index] if index in answers else _restored(method, known.get(key))
                for index, key in enumerate(keys)
            ]

        return answer

    def _ask(
        self,
        ask: Callable[[Sequence[Any]], Sequence[Any]],
        requests: Sequence[Any],
        keys: Sequence[str],
        asked: Sequence[int],
    ) -> Sequence[Any]:
        """Ask the model, and keep what it did not hand over on the way."""
        if not asked:
            return []
        self._keys_of_context = {}
        for index in asked:
            self._keys_of_context.setdefault(requests[index].args[0], set()).add(keys[index])
        new = {keys[index] for index in asked} - {SAMPLED} - self._journal.answers.keys()
        self._expected = len(new) + sum(keys[index] == SAMPLED for index in asked)
        answers = ask([requests[index] for index in asked])
        for index, answer in zip(asked, answers, strict=True):
            if keys[index] != SAMPLED:
                self._journal.add(keys[index], answer)
        self._journal.write()
        self._count(self._expected)
        self._progress.tell_answered()
        if self._method == GENERATION:
            self._count_generated([requests[index] for index in asked], answers)
        return answers

    def _own(self, requests: Sequence[Any], keys: Sequence[str]) -> Sequence[int]:
        """Return what this worker answers: all, or its share by documents; the first one, all that is sampled."""
        if self._world == 1:
            return range(len(requests))
        owners = self._owners(requests, keys)
        return [index for index, key in enumerate(keys) if owners[key] == self._rank]

    def _owners(self, requests: Sequence[Any], keys: Sequence[str]) -> dict[str, int]:
        documents: dict[tuple[Any, Any], int] = {}
        owners = {SAMPLED: 0}
        for request, key in zip(requests, keys, strict=True):
            # All choices of a document go to one worker: hf answers those of one token from one pass.
            document = documents.setdefault((request.task_name, request.doc_id), len(documents))
            owners.setdefault(key, document % self._world)
        return owners

    def _unknown(self, own: Sequence[int], keys: Sequence[str]) -> list[int]:
        """Return what to ask: the list as it is where nothing in it is known, else each unknown request once."""
        known = self._journal.answers
        if not any(keys[index] in known for index in own):
            return list(own)
        first = {keys[index]: index for index in reversed(own) if keys[index] != SAMPLED}
        return [
            index
            for index in own
            if keys[index] == SAMPLED or (keys[index] not in known and first[keys[index]] == index)
        ]

    def _windowed(self, own: Sequence[int], keys: Sequence[str]) -> list[int]:
        """Return all documents, so that they fall into the same windows again, unless none of them is left to do."""
        return list(own) if any(keys[index] not in self._journal.answers for index in own) else []

    def _announce(self) -> None:
        """Say, before the first request, how many there are; lm-eval has built all of them by then."""
        if self._left is not None:
            return
        requests = [
            request for task in self._tasks.values() for request in task.instances for _ in range(request.repeats or 1)
        ]
        by_method: dict[str, list[Any]] = {}
        for request in requests:
            by_method.setdefault(request.request_type, []).append(request)
        total = 0
        for method, asked in by_method.items():
            keys = [_key(method, request) for request in asked]
            own = self._own(asked, keys)
            answered = {keys[index] for index in own} - {SAMPLED}
            self.known += len(answered & self._journal.answers.keys())
            total += len(answered) + sum(keys[index] == SAMPLED for index in own)
        self._left = set(by_method)
        self._progress.tell("running", requests=total, known=self.known)

    def _wait_for(self, keys: Sequence[str]) -> None:
        """Wait, as the first of several workers, until the others have answered their shares."""
        wanted = set(keys) - {SAMPLED}
        while self._rank == 0 and not wanted <= self._journal.answers.keys():
            time.sleep(SECONDS_BETWEEN_LOOKS)
            self._journal.refresh()

    def _leave(self, method: str) -> None:
        left = self._left or set()
        left.discard(method)
        if self._rank != 0 and not left:
            raise ShareDone

    def _keep(self, key: str, answer: Any) -> None:
        if self._journal.add(key, answer):
            self._count(1)

    def _count(self, count: int) -> None:
        """Count answers, at most as many as are expected of the list that is being asked."""
        count = min(count, self._expected)
        self._expected -= count
        self._progress.answered(count)

    def _score_tokens(self, requests: Sequence[Any], **options: Any) -> list[Any]:
        """Score token ids; of the windows of a rolling likelihood, only those that no journal knows."""
        if self._method != ROLLING:
            self._count_scored(requests)
            scores: list[Any] = self._score(requests, **options)
            return scores
        keys = [hash_args("window", (list(context), list(scored))) for _, context, scored in requests]
        unknown = [index for index, key in enumerate(keys) if key not in self._journal.answers]
        if unknown:
            windows = [requests[index] for index in unknown]
            self._count_scored(windows)
            for index, score in zip(unknown, self._score(windows, **options), strict=True):
                self._journal.add(keys[index], score)
            self._journal.write()
        # A document begins with the window that follows the prefix token alone.
        self._count(sum(list(context) == [self._lm.prefix_token_id] for _, context, _ in requests))
        return [_restored(LIKELIHOOD, self._journal.answers[key]) for key in keys]

    def _count_scored(self, requests: Sequence[Any]) -> None:
        longest = int(self._lm.max_length)
        scored: Iterator[Sequence[int]] = (context + continuation for _, context, continuation in requests)
        if getattr(self._lm, "logits_cache", False):
            # hf runs requests that differ in their last token alone once.
            scored = iter({tuple(tokens[:-1]) for tokens in scored})
        self.tokens += sum(min(len(tokens), longest) for tokens in scored)

    def _count_generated(self, requests: Sequence[Any], answers: Sequence[str]) -> None:
        if self._lm.tokenizer is None or getattr(self._lm, "tokenizer_backend", HERE) != HERE:
            return  # to ask a server for the length of each answer would cost more than it tells
        longest = int(self._lm.max_length)
        for request, answer in zip(requests, answers, strict=True):
            prompt = self._lm.tok_encode(str(request.args[0]))
            self.tokens += min(len(prompt), longest) + len(self._lm.tok_encode(answer, add_special_tokens=False))

    def _write_before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def write_and_call(*arguments: Any, **options: Any) -> Any:
            self._journal.write()
            return call(*arguments, **options)

        return write_and_call


def _key(method: str, request: Any) -> str:
    if method == GENERATION and _is_sampled(request.args[1]):
        return SAMPLED
    return str(hash_args(method, request.args))


def _is_sampled(options: Mapping[str, Any]) -> bool:
    # As lm-eval normalizes them: `do_sample` decides, and where it is not given, the temperature.
    drawn = options.get("do_sample")
    return float(options.get("temperature") or 0) > 0 if drawn is None else bool(drawn)


def _restored(method: str, answer: Any) -> Any:
    """Return an answer as the model gave it; JSON has no tuples."""
    return tuple(answer) if method == LIKELIHOOD and answer is not None else answer
