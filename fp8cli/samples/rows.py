"""Rows of a data set: which of them are taken, and that each holds a text or a conversation.

Read by both processes, so that a JSON Lines file, which the parent reads, and a Parquet file, which needs a library,
are judged alike; hence it needs nothing but Python.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

COLUMNS: Final = ("messages", "conversations", "text")
"""Looked for in this order where no column is named: rows with a conversation often have its text as well."""

_SPEAKERS: Final = {"human": "user", "gpt": "assistant"}
"""How the ShareGPT form calls those whom chat templates know by other names."""

_SHOWN_COLUMNS: Final = 8

Content = str | tuple[Mapping[str, str], ...]
"""A text, or a conversation: messages with `role` and `content`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row that is taken."""

    number: int
    """In the source, counted from 1."""
    content: Content


class UnfitData(ValueError):
    """Data that nothing can be calibrated with; `message` is one sentence without a full stop."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        """Keep the sentence and what to do."""
        super().__init__(message)
        self.message = message
        self.hint = hint


def choose_rows(count: int, samples: int, seed: int, source: str) -> tuple[int, ...]:
    """Return the places, from 0, of `samples` out of `count` rows, drawn with the seed, in their order.

    Raises UnfitData if there are too few.
    """
    if count == 0:
        raise UnfitData(f"`{source}` has no rows")
    if count < samples:
        message = f"`{source}` has {counted(count)}, and {samples:,} are to be drawn"
        raise UnfitData(message, f"take all of them with --num-calibration-samples {count}, or name more data")
    drawn = random.Random(seed).sample(range(count), samples)  # noqa: S311 - to be repeated, not kept secret
    return tuple(sorted(drawn))


def find_column(present: Sequence[str], wanted: str | None, source: str) -> str:
    """Return the column that texts or conversations stand in. Raises UnfitData if it is not there."""
    if wanted is not None and wanted in present:
        return wanted
    there = ", ".join(f"`{name}`" for name in present[:_SHOWN_COLUMNS]) or "none"
    more = f" and {len(present) - _SHOWN_COLUMNS:,} more" if len(present) > _SHOWN_COLUMNS else ""
    if wanted is not None:
        message = f"`{source}` has no column `{wanted}`, but {there}{more}"
        raise UnfitData(message, "name one of them with --text-column")
    found = next((name for name in COLUMNS if name in present), None)
    if found is None:
        looked_for = ", ".join(f"`{name}`" for name in COLUMNS)
        message = f"`{source}` has none of the columns {looked_for}, but {there}{more}"
        raise UnfitData(message, "name the one with the texts: --text-column NAME")
    return found


def read_content(value: object, number: int, source: str) -> Content:
    """Return the text or conversation of a row. Raises UnfitData, naming the row, if it is neither, or empty."""
    where = f"row {number:,} of `{source}`"
    if isinstance(value, str):
        return _checked(value, where)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise UnfitData(f"{where} holds {_called(value)}, neither a text nor a conversation")
    if not value:
        raise UnfitData(f"{where} is a conversation without messages", "leave such rows out")
    return tuple(_read_message(message, f"message {place} in {where}") for place, message in enumerate(value, 1))


def counted(rows: int) -> str:
    """Return a number of rows in words."""
    return "1 row" if rows == 1 else f"{rows:,} rows"


def _read_message(message: object, where: str) -> Mapping[str, str]:
    match message:
        case {"role": str(role), "content": str(content)} | {"from": str(role), "value": str(content)}:
            _checked(role, where)
            # A message may be empty: a system prompt that says nothing, a call of a tool.
            return {"role": _SPEAKERS.get(role, role), "content": _encodable(content, where)}
        case _:
            hint = "a message is an object with the texts `role` and `content`"
            raise UnfitData(f"{where} is no message", hint)


def _checked(text: str, where: str) -> str:
    if not text.strip():
        raise UnfitData(f"{where} is empty", "leave empty rows out")
    return _encodable(text, where)


def _encodable(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnfitData(f"{where} is no text: it holds half of a surrogate pair") from None
    return text


def _called(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int | float):
        return "a number"
    return "an object" if isinstance(value, Mapping) else "bytes"
