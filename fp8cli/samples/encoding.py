"""From rows to the token ids that the model is to see: read, put through the chat template, encoded, cut, counted."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fp8cli.samples.request import ROWS, SampleRequest
from fp8cli.samples.rows import Row, UnfitData, choose_rows, find_column, read_content
from fp8cli.worker.failures import Failure, sentence

NO_TOKENIZER: Final = "the checkpoint has no tokenizer that can be loaded"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What the model is to see."""

    ids: tuple[tuple[int, ...], ...]
    """Token ids of each sample."""
    max_seq_length: int
    """At most so many tokens a sample: what was asked for, or what the model has positions for."""
    conversations: bool

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(map(len, self.ids))

    def sha256(self) -> str:
        """Return the digest of all token ids, of their JSON without blanks: `[[1,5],[1,7]]`."""
        return hashlib.sha256(json.dumps(self.ids, separators=(",", ":")).encode()).hexdigest()


def load_tokenizer(checkpoint: str) -> Any:
    """Load the tokenizer of a checkpoint. Raises Failure if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint)
    except Exception as error:
        hint = "copy tokenizer.json and tokenizer_config.json from the original model"
        raise Failure(kind="model", message=f"{NO_TOKENIZER} ({sentence(error)})", hint=hint) from error


def positions_of(checkpoint: str) -> int | None:
    """Return how many positions the model is made for; None where its config names no number."""
    from transformers import AutoConfig

    found = getattr(AutoConfig.from_pretrained(checkpoint).get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def encode_samples(request: SampleRequest, folder: Path, tokenizer: Any, positions: int | None) -> Encoded:
    """Read the samples and encode them. Raises UnfitData with what is wrong with the data.

    folder: of the job, where the rows lie that the parent has read.

    positions: of the model; a text is not made longer than them. None: the model has no such limit.
    """
    length = request.max_seq_length if positions is None else min(request.max_seq_length, positions)
    if request.chat_template is not None:
        tokenizer.chat_template = request.chat_template
    rows = read_rows(request, folder)
    return Encoded(
        ids=tuple(_encode(row, tokenizer, length, request.source) for row in rows),
        max_seq_length=length,
        conversations=any(not isinstance(row.content, str) for row in rows),
    )


def read_rows(request: SampleRequest, folder: Path) -> tuple[Row, ...]:
    """Return the rows of a request, from wherever they are. Raises UnfitData if they are of no use."""
    if request.kind == "rows":
        return tuple(_read_handed_over(folder / ROWS, request.source))
    table = _open_parquet(request) if request.kind == "parquet" else _open_hub(request)
    column = find_column(list(table.column_names), request.column, request.source)
    places = choose_rows(len(table), request.samples, request.seed, request.source)
    values = table.select_columns([column])
    return tuple(
        Row(number=place + 1, content=read_content(values[place][column], place + 1, request.source))
        for place in places
    )


def _read_handed_over(path: Path, source: str) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            fields: Mapping[str, Any] = json.loads(line)
            yield Row(number=fields["row"], content=read_content(fields["content"], fields["row"], source))


def _open_parquet(request: SampleRequest) -> Any:
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from pyarrow import ArrowException, parquet

    try:
        # The rows are drawn from an Arrow table; `Dataset.from_parquet` would write a second copy into a cache.
        return Dataset(InMemoryTable(parquet.read_table(request.place)))
    except (ArrowException, OSError) as problem:
        reason = (str(problem).strip().splitlines() or ["it is broken"])[0]
        raise UnfitData(f"`{request.source}` cannot be read as Parquet: {reason.rstrip('.')}") from problem


def _open_hub(request: SampleRequest) -> Any:
    from datasets import load_dataset

    try:
        # A data set that cannot be had says so in words that `root_cause` knows.
        return load_dataset(request.place, request.configuration, split=request.split)
    except ValueError as refusal:
        reason = (str(refusal).strip().splitlines() or ["it cannot be loaded"])[0]
        hint = "name a configuration and a split that it has: org/name/configuration:split"
        raise UnfitData(f"`{request.source}`: {reason.rstrip('.')}", hint) from refusal


def _encode(row: Row, tokenizer: Any, length: int, source: str) -> tuple[int, ...]:
    if isinstance(row.content, str):
        ids: Sequence[int] = tokenizer(row.content, truncation=True, max_length=length)["input_ids"]
    else:
        text = _apply_template(row.content, row.number, tokenizer, source)
        # The template has placed BOS where the model expects it; the tokenizer would add another.
        ids = tokenizer(text, truncation=True, max_length=length, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UnfitData(f"row {row.number:,} of `{source}` has no tokens")
    return tuple(ids)


def _apply_template(messages: Sequence[Mapping[str, str]], number: int, tokenizer: Any, source: str) -> str:
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        message = f"the rows of `{source}` are conversations, and the model's tokenizer has no chat template"
        raise UnfitData(message, "name a column of texts with --text-column, or data of texts")
    try:
        return str(tokenizer.apply_chat_template([dict(each) for each in messages], tokenize=False))
    except TemplateError as refusal:
        message = f"row {number:,} of `{source}` does not fit the chat template: {refusal}"
        raise UnfitData(message.rstrip("."), "leave such rows out") from refusal
