"""The front door: words in, exit code out. The only file that knows Typer.

Each command builds a frozen request, hands it to its room in `commands/`, and picks how to print what comes
back. Imports stand inside the functions, so that `fp8 --help` and a mistyped option cost nothing.
"""

import atexit
import gc
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fp8cli import __version__
from fp8cli.errors import ExitCode, Fp8Error, Interrupted, UsageError
from fp8cli.schemes import DEFAULT_SCHEME, SCHEMES

if TYPE_CHECKING:
    from fp8cli.render.console import Output

_EXIT_CODES = "\n\n".join(f"{code.value}: {code.meaning}" for code in ExitCode)
_SCHEME_NAMES = ", ".join(SCHEMES)

app = typer.Typer(
    name="fp8",
    help="Take a Hugging Face checkpoint to FP8, ready for vLLM, and prove that nothing was lost.",
    epilog=f"Exit codes\n\n{_EXIT_CODES}",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, with a schema version.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notes; results, warnings and errors stay.")
]
Details = Annotated[bool, typer.Option("--details", help="List the tensors, repeated layers folded.")]


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


@app.command(
    epilog="Examples: fp8 quantize ./Llama-3-8B · fp8 quantize Qwen/Qwen3-8B --scheme FP8_BLOCK -o out · "
    "fp8 quantize ./model --dry-run --details"
)
def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, or a Hub id such as org/name.")],
    out: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Output folder.  [default: NAME-FP8-dynamic, …]")
    ] = None,
    scheme: Annotated[str, typer.Option(help=f"One of {_SCHEME_NAMES}, in any case.")] = DEFAULT_SCHEME,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            "--torch-dtype",
            help="Dtype to quantize from: auto (what config.json says), bfloat16, float16, float32.",
        ),
    ] = "auto",
    targets: Annotated[
        list[str] | None,
        typer.Option(help="Modules to quantize: Linear, a name, a glob or re:REGEX.  [default: Linear]"),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Modules to leave alone besides the default: a name, a glob or re:REGEX.")
    ] = None,
    no_default_ignore: Annotated[bool, typer.Option("--no-default-ignore", help="Quantize lm_head too.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N. The bytes are the same.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Worker threads.  [default: one per usable CPU]")] = None,
    max_memory: Annotated[
        str, typer.Option(help="Memory for tiles, on top of the interpreter, such as 500MB or 2GiB.")
    ] = "1GiB",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan from the headers alone; write nothing.")
    ] = False,
    details: Details = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing output, in one step, when done.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw an unfinished run away instead of going on with it.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make the FP8 checkpoint of MODEL."""

    def work(output: "Output") -> ExitCode:
        from fp8cli.commands import quantize as command
        from fp8cli.render import quantization
        from fp8cli.render.progress import QuantizeBar

        request = command.QuantizeRequest(
            model=model,
            out=out,
            scheme=scheme,
            revision=revision,
            dtype=dtype,
            targets=tuple(targets or command.DEFAULT_TARGETS),
            ignore=tuple(ignore or ()),
            default_ignore=not no_default_ignore,
            device=device,
            workers=workers,
            max_memory=max_memory,
            dry_run=dry_run,
            overwrite=overwrite,
            restart=restart,
            download_bars=not quiet,
        )
        with QuantizeBar(output).running() as bar:
            report = command.run(request, bar.notify)
        quantization.show(report, output, details=details)
        return ExitCode.DONE

    _run("quantize", work, json=json, quiet=quiet)


@app.command(
    epilog="Examples: fp8 inspect · fp8 inspect ./model-FP8-dynamic --details · fp8 inspect Qwen/Qwen3-8B-FP8 · "
    "fp8 inspect ./model-FP8-dynamic --verify --against ./model"
)
def inspect(
    ckpt: Annotated[
        str | None,
        typer.Argument(
            metavar="[CKPT]", help="Checkpoint folder, .safetensors file, or Hub id.  [default: the one here]"
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every weight too, and compare files with their stored hashes.")
    ] = False,
    against: Annotated[
        str | None, typer.Option(metavar="BASE", help="Compare every tensor with the checkpoint it was made from.")
    ] = None,
    context: Annotated[
        list[int] | None, typer.Option(metavar="TOKENS", help="Context length to serve; may be given more than once.")
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="GPU to serve on, such as H100.  [default: those here, else a short list]"),
    ] = None,
    details: Annotated[
        bool, typer.Option("--details", help="List every check, and the tensors, repeated layers folded.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="List every tensor by itself.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print one line for each tensor.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the report as Markdown.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw it too: bytes, scales and errors, as .png, .svg or .html.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a checkpoint holds, and what is wrong with it.

    From headers and scales alone: the scheme, memory by dtype and role, faults, and whether it will run.
    """

    def work(output: "Output") -> ExitCode:
        from fp8cli.commands import inspect as command
        from fp8cli.render import inspection

        if json + csv + markdown > 1:
            message = "--json, --csv and --markdown exclude each other"
            raise UsageError(message, hint="choose one; --plot goes with any of them")
        if plot is not None:
            from fp8cli.render import plots

            plots.check_plot_path(plot)
        request = command.InspectRequest(
            source=ckpt,
            revision=revision,
            details=details,
            full=full or csv,
            verify=verify,
            against=against,
            contexts=tuple(context or ()),
            gpus=tuple(gpu or ()),
        )
        if verify or against is not None:
            from fp8cli.render.progress import ReadingBar

            with ReadingBar(output).running() as bar:
                report = command.run(request, bar.notify)
        else:
            report = command.run(request)
        view: inspection.View = "csv" if csv else "markdown" if markdown else "text"
        inspection.show(report, output, view=view, details=details)
        if plot is not None:
            plots.draw(report, plot)
            output.note(f"drawn: {plot}")
        return report.exit_code

    _run("inspect", work, json=json, quiet=quiet)


@app.command(
    epilog="Examples: fp8 doctor · fp8 doctor ./model-FP8-dynamic · fp8 doctor --check torch --check GPU · "
    "fp8 doctor --python .venv-vllm"
)
def doctor(
    ckpt: Annotated[
        str | None, typer.Argument(metavar="[CKPT]", help="Does this checkpoint run here? A folder or a Hub id.")
    ] = None,
    check: Annotated[
        list[str] | None, typer.Option("--check", help="Make this check only; may be given more than once.")
    ] = None,
    list_checks: Annotated[bool, typer.Option("--list-checks", help="List the checks; make none.")] = False,
    python: Annotated[
        Path | None,
        typer.Option(help="The interpreter vLLM lives in, or its environment.  [default: FP8_VLLM_PYTHON, this, PATH]"),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what this machine can do with FP8, and what to mend."""

    def work(output: "Output") -> ExitCode:
        from fp8cli.commands import doctor as command
        from fp8cli.render import doctor as rendering

        if list_checks:
            rendering.show_checks(command.list_checks(), output)
            return ExitCode.DONE
        request = command.DoctorRequest(checkpoint=ckpt, checks=tuple(check or ()), python=python)
        report = command.run(request)
        rendering.show(report, output)
        return report.exit_code

    _run("doctor", work, json=json, quiet=quiet)


def _run(command: str, work: "Callable[[Output], ExitCode]", *, json: bool, quiet: bool) -> NoReturn:
    """Do the work of a command, and turn whatever comes out of it into an exit code."""
    from fp8cli.render.console import Output

    output = Output.standard(json=json, quiet=quiet)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        code = work(output)
    except Interrupted as stopped:
        again = shlex.join(["fp8", *sys.argv[1:]])
        output.error(Interrupted(stopped.message, hint=f"go on with: {again}"), command=command)
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
    command_line()
