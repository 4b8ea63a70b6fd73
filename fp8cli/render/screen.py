"""What only a terminal gets, drawn by Rich: colour, boxes, and lines broken between words.

A room of its own, because Rich takes longer to load than `fp8 inspect` takes to run: `console.py` comes here when
it has a terminal in front of it, and not for a pipe.
"""

from io import StringIO
from typing import TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from fp8cli.render.table import Table, box_width, fit


def draw_line(*parts: tuple[str, str], width: int, color: bool, wrap: bool) -> str:
    """Draw one line of (text, style) parts; without `wrap` it stays whole, whatever the width."""
    return _draw(Text.assemble(*parts), width=width, color=color, wrap=wrap)


def draw_table(table: Table, *, width: int, color: bool, unicode: bool) -> str:
    """Draw a table in a box that fits; `unicode` allows the round one."""
    fitted = fit(table, width, unicode=unicode)
    # Too wide even so: the terminal may fold the lines, but no digit of a number is cut off.
    width = max(width, box_width(fitted))
    return _draw(_boxed(fitted, unicode=unicode), width=width, color=color, wrap=True)


def make_console(stream: TextIO, *, width: int, terminal: bool, color: bool) -> Console:
    """Return a Rich console that decides nothing by itself: what the stream can take is settled before."""
    return Console(
        file=stream,
        width=width,
        force_terminal=terminal,
        color_system="standard" if color else None,
        no_color=not color,
        markup=False,
        emoji=False,
        highlight=False,
        force_jupyter=False,
        legacy_windows=False,
    )


def _boxed(table: Table, *, unicode: bool) -> RichTable:
    boxed = RichTable(box=box.ROUNDED if unicode else box.ASCII, header_style="bold")
    for column in table.columns:
        boxed.add_column(Text(column.title), justify="right" if column.right else "left", no_wrap=True)
    for row in table.rows:
        boxed.add_row(*map(Text, row))
    if table.total is not None:
        boxed.add_section()
        boxed.add_row(*(Text(cell, style="bold") for cell in table.total))
    return boxed


def _draw(renderable: RenderableType, *, width: int, color: bool, wrap: bool) -> str:
    paper = StringIO()
    make_console(paper, width=width, terminal=True, color=color).print(renderable, soft_wrap=not wrap)
    return paper.getvalue()
