"""What all commands share: the options that mean the same everywhere, and the way from a result to an exit code."""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fp8cli.errors import ExitCode, Fp8Error, Interrupted

if TYPE_CHECKING:
    from fp8cli.render.console import Output

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, with a schema version.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notes; results, warnings and errors stay.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")]
Details = Annotated[bool, typer.Option("--details", help="List the tensors, repeated layers folded.")]


def run(command: str, work: "Callable[[Output], ExitCode]", *, json: bool, quiet: bool) -> NoReturn:
    """Do the work of a command, and turn whatever comes out of it into an exit code."""
    from fp8cli.render.console import Output

    output = Output.standard(json=json, quiet=quiet)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        code = work(output)
    except Interrupted as stopped:
        again = shlex.join(["fp8", *sys.argv[1:]])
        output.error(Interrupted(stopped.message, hint=f"{stopped.hint or 'go on with'}: {again}"), command=command)
        code = stopped.exit_code
    except Fp8Error as error:
        if os.environ.get("FP8_DEBUG") == "1":
            raise
        output.error(error, command=command)
        code = error.exit_code
    except KeyboardInterrupt:
        output.error(Interrupted("interrupted"), command=command)
        code = ExitCode.INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    raise typer.Exit(int(code))


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
