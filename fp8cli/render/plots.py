"""`fp8 inspect --plot FILE`: the drawing of a report as a .png, .svg or .html file, written whole or not at all."""

import os
import secrets
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from fp8cli.commands.inspect import InspectReport
from fp8cli.core.inspection.depth import over_depth
from fp8cli.errors import CannotRun, UsageError
from fp8cli.render.figure import draw_figure
from fp8cli.render.page import to_html

ENDINGS: Final = (".png", ".svg", ".html")

_INSTALL: Final = "pip install 'fp8cli[plot]'"


def check_plot_path(path: Path) -> None:
    """Refuse, before any work is done, a file that `draw` could not write.

    Raises UsageError for another ending than those of ENDINGS, a folder under that name, or a parent that is none;
    CannotRun if the parent cannot be written, or matplotlib is missing.
    """
    _ending(path)
    folder = _target(path).parent
    if path.is_dir():
        message = f"`{path}` is a folder, and the drawing is a file"
        raise UsageError(message, hint=f"name a file in it: --plot {path / 'inspect.png'}")
    if not folder.is_dir():
        message = f"`{path}` cannot be written: there is no folder `{folder}`"
        raise UsageError(message, hint="make the folder first, or name a file in one that exists")
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise _unwritable(path, problem) from problem
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
    _write(path, content)


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        found = f"`{ending}`" if ending else "no ending"
        message = f"`{path}` has {found}, and a drawing is one of {', '.join(ENDINGS)}"
        raise UsageError(message, hint=f"choose one of them: --plot {path.stem or 'inspect'}.png")
    return ending


def _write(path: Path, content: bytes) -> None:
    target = _target(path)
    growing = target.with_name(f".{secrets.token_hex(8)}.fp8-partial")
    try:
        try:
            # Created by hand: tempfile would make it private, and the umask shall decide.
            descriptor = os.open(growing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            growing.replace(target)
        except BaseException:
            with suppress(OSError):
                growing.unlink()
            raise
    except OSError as problem:
        raise _unwritable(path, problem) from problem


def _target(path: Path) -> Path:
    """The file itself where `path` is a link to it, so that the link stays one."""
    return Path(os.path.realpath(path))


def _unwritable(path: Path, problem: OSError) -> CannotRun:
    message = f"`{path}` cannot be written: {problem.strerror or problem}"
    return CannotRun(message, hint="make room or choose another place with --plot")


def _without_matplotlib() -> CannotRun:
    return CannotRun("a drawing needs matplotlib, which is not installed", hint=_INSTALL)
