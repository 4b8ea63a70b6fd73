"""The front door: words in, exit code out. Only this room knows Typer.

Each command has a file here: it builds a frozen request, hands it to its room in `commands/`, and picks how to print
what comes back. Imports stand inside the functions, so that `fp8 --help` and a mistyped option cost nothing.
"""

import atexit
import gc
import os
import sys
from typing import Annotated, NoReturn

import typer

from fp8cli import __version__
from fp8cli.cli import compare, convert, dequantize, doctor, evaluate, explore, inspect, push, quantize, verify
from fp8cli.cli.waking import wake_on_signals
from fp8cli.errors import ExitCode

_EXIT_CODES = "\n\n".join(f"{code.value}: {code.meaning}" for code in ExitCode)

app = typer.Typer(
    name="fp8",
    help="Take a Hugging Face checkpoint to FP8, ready for vLLM, and prove that nothing was lost.",
    epilog=f"Exit codes\n\n{_EXIT_CODES}",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fp8 {__version__}")
        raise typer.Exit


@app.callback()
def _fp8(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


for _name, _module, _command in (
    ("quantize", quantize, quantize.quantize),
    ("inspect", inspect, inspect.inspect),
    ("explore", explore, explore.explore),
    ("eval", evaluate, evaluate.evaluate),
    ("compare", compare, compare.compare),
    ("convert", convert, convert.convert),
    ("dequantize", dequantize, dequantize.dequantize),
    ("verify", verify, verify.verify),
    ("push", push, push.push),
    ("doctor", doctor, doctor.doctor),
):
    app.command(_name, epilog=_module.EXAMPLES)(_command)


def command_line() -> NoReturn:
    """Run the command that stands in `sys.argv` and leave with its exit code."""
    try:
        app()
    except Exception as problem:
        if os.environ.get("FP8_DEBUG") == "1":
            raise
        sys.stderr.write(f"error: this is a fault of fp8 itself: {type(problem).__name__}: {problem}\n\n")
        sys.stderr.write("hint: run it again with FP8_DEBUG=1 and report what it prints\n")
        sys.exit(ExitCode.COULD_NOT_RUN)
    sys.exit(ExitCode.DONE)


def main() -> NoReturn:
    """Be the `fp8` program: `command_line`, in a process of its own."""
    # The garbage collector would walk torch's million objects while they are imported and again at the end, half a
    # second in all, and find nothing: this process is short, and its memory is freed by counting references.
    gc.disable()
    atexit.register(gc.freeze)
    wake_on_signals()
    command_line()
