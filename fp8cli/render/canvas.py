"""A sheet to draw on, measured in inches from its top left corner: all that this tool knows of matplotlib.

It is a figure of its own, so no display is needed and no state of pyplot is touched; the user's matplotlibrc does not
count, and the same drawing gives the same bytes. Texts are never read as formulas, and characters that the font
lacks are written as escapes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from typing import Any, Final, Literal

from fp8cli.render.names import shorten
from fp8cli.render.palette import GRID, INK, PAPER, SOFT

Format = Literal["png", "svg"]

WIDTH: Final = 10.0
EDGE: Final = 0.3
"""Left free all around."""

_DPI: Final = 150
_LINE: Final = 150
_FONT: Final = "DejaVu Sans"
"""It comes with matplotlib; the others are for a reader of an SVG who has it not."""
_SETTINGS: Final = {
    "font.family": "sans-serif",
    "font.sans-serif": [_FONT, "Verdana", "Arial"],
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.6,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.columnspacing": 1.6,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "fp8",
}


class Canvas:
    """A sheet WIDTH inches wide; made by `canvas`, and valid only inside it."""

    def __init__(self, height: float) -> None:
        """Begin an empty sheet of that height in inches."""
        self.height = height
        self._figure = import_module("matplotlib.figure").Figure(figsize=(WIDTH, height))
        self._legible = _characters()

    def text(self, left: float, top: float, words: str, *, longest: int = _LINE, **style: object) -> None:
        """Write a line of text, of `longest` characters at most, whose upper left corner is there."""
        # Shortened twice, because escapes are longer than what they stand for.
        words = shorten(self.legible(shorten(words, longest)), longest)
        self._figure.text(left / WIDTH, 1 - top / self.height, words, **({"ha": "left", "va": "top"} | style))

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Return matplotlib axes that fill this rectangle."""
        bottom = self.height - top - height
        return self._figure.add_axes((left / WIDTH, bottom / self.height, width / WIDTH, height / self.height))

    def legend(self, axes: Any, top: float) -> None:
        """Explain the lines of some axes, at the right end of the line of text at that height."""
        lines, names = axes.get_legend_handles_labels()
        corner = {"bbox_to_anchor": (1 - EDGE / WIDTH, 1 - top / self.height), "loc": "upper right"}
        if lines:
            axes.legend(lines, names, ncols=len(lines), bbox_transform=self._figure.transFigure, **corner)

    def legible(self, text: str) -> str:
        """Return the text with an escape for every character that the font lacks."""
        if text.isascii():
            return text
        escaped = (ch if ord(ch) in self._legible else ch.encode("unicode_escape").decode("ascii") for ch in text)
        return "".join(escaped)

    def save(self, kind: Format) -> bytes:
        """Return the sheet as a PNG, or as an SVG with texts as texts."""
        paper = BytesIO()
        metadata = {"Date": None, "Creator": "fp8"} if kind == "svg" else {"Software": "fp8"}
        self._figure.savefig(paper, format=kind, dpi=_DPI, metadata=metadata)
        return paper.getvalue()


@contextmanager
def canvas(height: float) -> Iterator[Canvas]:
    """Give a sheet of that height in inches. Raises ImportError without matplotlib."""
    matplotlib = import_module("matplotlib")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield Canvas(height)


def _characters() -> frozenset[int]:
    """Code points that the font has, both regular and bold."""
    manager = import_module("matplotlib.font_manager")
    fonts = (manager.FontProperties(family=_FONT, weight=weight) for weight in ("regular", "bold"))
    covered = [frozenset(manager.get_font(manager.findfont(font)).get_charmap()) for font in fonts]
    return covered[0] & covered[1]
