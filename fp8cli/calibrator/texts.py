"""From rows to the token ids that the model is to see: read, put through the chat template, encoded, cut, counted."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fp8cli.calibrator.protocol import ROWS, CalibrationJob
from fp8cli.calibrator.rows import Row, UnfitData, choose_rows, find_column, read_content

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


def encode_data(job: CalibrationJob, folder: Path, tokenizer: Any, positions: int | None) -> Encoded:
    """Read the data of a job and encode it. Raises UnfitData with what is wrong with it.

    positions: of the model; a text is not made longer than them. None: the model has no such limit.
    """
    length = job.max_seq_length if positions is None else min(job.max_seq_length, positions)
    if job.chat_template is not None:
        tokenizer.chat_template = job.chat_template
    rows = read_rows(job, folder)
    return Encoded(
        ids=tuple(_encode(row, tokenizer, length, job.source) for row in rows),
        max_seq_length=length,
        conversations=any(not isinstance(row.content, str) for row in rows),
    )


def read_rows(job: CalibrationJob, folder: Path) -> tuple[Row, ...]:
    """Return the rows of a job, from wherever they are. Raises UnfitData if they are of no use."""
    if job.data == "rows":
        return tuple(_read_handed_over(folder / ROWS, job.source))
    table = _open_parquet(job) if job.data == "parquet" else _open_hub(job)
    column = find_column(list(table.column_names), job.column, job.source)
    places = choose_rows(len(table), job.samples, job.seed, job.source)
    values = table.select_columns([column])
    return tuple(
        Row(number=place + 1, content=read_content(values[place][column], place + 1, job.source)) for place in places
    )


def _read_handed_over(path: Path, source: str) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            fields: Mapping[str, Any] = json.loads(line)
            yield Row(number=fields["row"], content=read_content(fields["content"], fields["row"], source))


def _open_parquet(job: CalibrationJob) -> Any:
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from pyarrow import ArrowException, parquet

    try:
        # The rows are drawn from an Arrow table; `Dataset.from_parquet` would write a second copy into a cache.
        return Dataset(InMemoryTable(parquet.read_table(job.place)))
    except (ArrowException, OSError) as problem:
        reason = (str(problem).strip().splitlines() or ["it is broken"])[0]
        raise UnfitData(f"`{job.source}` cannot be read as Parquet: {reason.rstrip('.')}") from problem


def _open_hub(job: CalibrationJob) -> Any:
    from datasets import load_dataset

    try:
        # A data set that cannot be had says so in words that `root_cause` knows.
        return load_dataset(job.place, job.configuration, split=job.split)
    except ValueError as refusal:
        reason = (str(refusal).strip().splitlines() or ["it cannot be loaded"])[0]
        hint = "name a configuration and a split that it has: org/name/configuration:split"
        raise UnfitData(f"`{job.source}`: {reason.rstrip('.')}", hint) from refusal


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
