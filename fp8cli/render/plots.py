"""`fp8 inspect --plot FILE`: the drawing of a report as a .png, .svg or .html file, written whole or not at all."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fp8cli.commands.inspect import InspectReport
from fp8cli.core.inspection.depth import over_depth
from fp8cli.errors import CannotRun, UsageError
from fp8cli.render.figure import draw_figure
from fp8cli.render.page import to_html
from fp8cli.render.report_files import ReportFile

ENDINGS: Final = (".png", ".svg", ".html")

_INSTALL: Final = "pip install 'fp8cli[plot]'"


def check_plot_path(path: Path) -> None:
    """Refuse, before any work is done, a file that `draw` could not write.

    Raises UsageError for another ending than those of ENDINGS, a folder under that name, or a parent that is none;
    CannotRun if the parent cannot be written, or matplotlib is missing.
    """
    _ending(path)
    _file(path).check()
    if find_spec("matplotlib") is None:
        raise _without_matplotlib()


def draw(report: InspectReport, path: Path) -> None:
    """Draw a report into a file; what was there is replaced in one step.

    Raises UsageError for another ending than those of ENDINGS, CannotRun if matplotlib is missing or the file cannot
    be written; then nothing of it is left.
    """
    ending = _ending(path)
    weights = () if report.against is None else report.against.weights
    depth = over_depth(report.scales, report.findings, weights)
    try:
        if ending == ".html":
            drawing = draw_figure(report, depth, "svg", headline=False)
            content = to_html(report, drawing.decode("utf-8")).encode("utf-8")
        else:
            content = draw_figure(report, depth, "png" if ending == ".png" else "svg")
    except ImportError as problem:
        raise _without_matplotlib() from problem
    _file(path).write(content)


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        found = f"`{ending}`" if ending else "no ending"
        message = f"`{path}` has {found}, and a drawing is one of {', '.join(ENDINGS)}"
        raise UsageError(message, hint=f"choose one of them: --plot {path.stem or 'inspect'}.png")
    return ending


def _file(path: Path) -> ReportFile:
    return ReportFile(path=path, option="--plot", what="the drawing", example="inspect.png")


def _without_matplotlib() -> CannotRun:
    return CannotRun("a drawing needs matplotlib, which is not installed", hint=_INSTALL)
