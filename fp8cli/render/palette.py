"""The colours of every drawing and page, by day and by night."""

from collections.abc import Mapping
from typing import Final

INK: Final = "#1b1f24"
SOFT: Final = "#59636e"
GRID: Final = "#d8dee4"
PAPER: Final = "#fffffe"
"""Not quite white, so that a page finds it in an SVG and can replace it."""
ALARM: Final = "#c62828"
GOOD: Final = "#137a58"
DOUBT: Final = "#8f5b00"

BLUE: Final = "#0b62a8"
ORANGE: Final = "#e08e00"
GREEN: Final = "#1f9d76"
VIOLET: Final = "#8a6fb0"
GREY: Final = "#9aa7b4"

COLORS: Final[Mapping[str, tuple[str, str]]] = {
    "ink": (INK, "#e6edf3"),
    "soft": (SOFT, "#9aa5b1"),
    "grid": (GRID, "#30363d"),
    "paper": (PAPER, "#0f1419"),
    "alarm": (ALARM, "#ff7b72"),
    "good": (GOOD, "#4cc38a"),
    "doubt": (DOUBT, "#f2b134"),
    "blue": (BLUE, "#58a6ff"),
    "orange": (ORANGE, "#f2b134"),
    "green": (GREEN, "#4cc38a"),
    "violet": (VIOLET, "#b79cf0"),
    "grey": (GREY, "#6b7785"),
}
"""Name → the colour by day, as a drawing has it, and by night. Words in the first seven can be read on paper."""
