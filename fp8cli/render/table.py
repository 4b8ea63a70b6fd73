"""A table that fits: boxed and cut to the width of a terminal, or whole and bare for a pipe.

On a terminal the long column is shortened in the middle first, then whole columns go, the least useful first.
In a pipe nothing is lost: one row a line, full names, columns apart by two spaces, no art.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from rich.cells import cell_len

_READABLE: Final = 40
"""Columns of other kinds go before a shortened one gets narrower than this."""

_SHORTEST: Final = 5


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column. Of the columns with a `rank` the highest goes first when the terminal is too narrow."""

    title: str
    right: bool = False
    rank: int = 0
    """0 stays whatever happens."""
    shortens: bool = False
    """Its cells may lose their middle."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells are plain text, as many in every row as there are columns; `total` is set apart below."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...] | None = None
    divides: bool = False
    """Whether the columns behind the first may stand in tables of their own, each beside the first again."""

    @property
    def lines(self) -> tuple[tuple[str, ...], ...]:
        """All rows of cells, with the total, without the titles."""
        return self.rows if self.total is None else (*self.rows, self.total)

    def map(self, change: Callable[[str], str]) -> "Table":
        """Return the table with every text changed, cells and titles."""
        columns = tuple(replace(column, title=change(column.title)) for column in self.columns)
        return replace(self.map_rows(lambda row: tuple(map(change, row))), columns=columns)

    def map_rows(self, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> "Table":
        """Return the table with every row changed, the total too."""
        return replace(
            self, rows=tuple(map(change, self.rows)), total=None if self.total is None else change(self.total)
        )

    def without(self, index: int) -> "Table":
        """Return the table with one column less."""
        columns = (*self.columns[:index], *self.columns[index + 1 :])
        return replace(self.map_rows(lambda row: (*row[:index], *row[index + 1 :])), columns=columns)


def to_lines(table: Table) -> Iterator[str]:
    """Write the table for a pipe."""
    widths = _widths(table)
    for cells in (tuple(column.title for column in table.columns), *table.lines):
        padded = [
            _pad(cell, width, right=column.right)
            for column, cell, width in zip(table.columns, cells, widths, strict=True)
        ]
        yield "  ".join(padded).rstrip()


def shorten(text: str, width: int, *, unicode: bool = True) -> str:
    """Cut out of `text` what does not fit into `width` cells; a third of what stays is its start, the rest its end."""
    if cell_len(text) <= width:
        return text
    ellipsis = "…" if unicode else "..."
    room = max(width - len(ellipsis), 0)
    head = _take(text, room // 3)
    tail = _take(text[::-1], room - cell_len(head))[::-1]
    return f"{head}{ellipsis}{tail}"


def fit(table: Table, width: int, *, unicode: bool) -> Table:
    """Drop columns and shorten cells until the box fits, or nothing is left to give."""
    while True:
        excess = box_width(table) - width
        if excess <= 0:
            return table
        ranks = [column.rank for column in table.columns]
        shortened = next((index for index, column in enumerate(table.columns) if column.shortens), None)
        room = 0 if shortened is None else _widths(table)[shortened] - excess
        if shortened is not None and (room >= _READABLE or not any(ranks)):
            return _shorten_column(table, shortened, max(room, _SHORTEST), unicode=unicode)
        if not any(ranks):
            return table
        table = table.without(ranks.index(max(ranks)))


def divide(table: Table, width: int) -> Iterator[Table]:
    """Yield a table that divides in parts whose boxes fit, each with at least two columns; any other as it is."""
    if not table.divides:
        yield table
        return
    taken: list[int] = []
    for index in range(1, len(table.columns)):
        if taken and box_width(_part(table, (*taken, index))) > width:
            yield _part(table, taken)
            taken = []
        taken.append(index)
    yield _part(table, taken)


def _part(table: Table, indices: Iterable[int]) -> Table:
    """Return the first column and some others."""
    kept = (0, *indices)
    columns = tuple(table.columns[index] for index in kept)
    return replace(table.map_rows(lambda row: tuple(row[index] for index in kept)), columns=columns)


def _shorten_column(table: Table, index: int, width: int, *, unicode: bool) -> Table:
    return table.map_rows(lambda row: (*row[:index], shorten(row[index], width, unicode=unicode), *row[index + 1 :]))


def box_width(table: Table) -> int:
    """Cells that the boxed table takes."""
    # An edge or a divider beside every column, and one cell of air on both sides of its text.
    return sum(_widths(table)) + 3 * len(table.columns) + 1


def _widths(table: Table) -> list[int]:
    return [
        max(cell_len(cell) for cell in (column.title, *(row[index] for row in table.lines)))
        for index, column in enumerate(table.columns)
    ]


def _take(text: str, width: int) -> str:
    """Return the longest start of `text` that fills at most `width` cells."""
    while cell_len(text) > width:
        text = text[:width] if len(text) > width else text[:-1]
    return text


def _pad(text: str, width: int, *, right: bool) -> str:
    air = " " * (width - cell_len(text))
    return air + text if right else text + air
