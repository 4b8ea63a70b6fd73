"""Which samples of text a process is to read, as its job says it.

The parent reads what Python can read by itself, and hands the rows over in a file `ROWS` in the folder of the job, a
line each: {"row": number, "content": text or messages}. What needs a library is read by the process.
"""

from dataclasses import dataclass
from typing import Final, Literal

ROWS: Final = "rows.jsonl"

DataKind = Literal["rows", "parquet", "hub"]
"""Rows that the parent has read; a Parquet file; a data set of the Hub. The last two need libraries to be read."""


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """Samples of a data set, every setting explicit."""

    kind: DataKind
    source: str
    """What messages call the data."""
    place: str | None
    """The file, or the name on the Hub, of data that the parent has not read."""
    configuration: str | None
    """Of a data set on the Hub."""
    split: str
    column: str | None
    """None: the first of `rows.COLUMNS` that is there."""
    samples: int
    max_seq_length: int
    """Tokens of a sample; what is longer is cut."""
    seed: int
    chat_template: str | None
    """For rows that are conversations, in the place of the tokenizer's own."""
