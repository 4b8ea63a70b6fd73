"""The words of `fp8 inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fp8cli.cli.running import Json, Quiet, Revision, run
from fp8cli.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from fp8cli.render.console import Output

EXAMPLES = (
    "Examples: fp8 inspect · fp8 inspect ./model-FP8-dynamic --details · fp8 inspect Qwen/Qwen3-8B-FP8 · "
    "fp8 inspect ./model-FP8-dynamic --verify --against ./model"
)


def inspect(
    ckpt: Annotated[
        str | None,
        typer.Argument(
            metavar="[CKPT]", help="Checkpoint folder, .safetensors file, Hub id, or address.  [default: the one here]"
        ),
    ] = None,
    revision: Revision = None,
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
    tp: Annotated[
        int | None, typer.Option(metavar="N", help="Exit with 1 where vLLM cannot split it over N GPUs.")
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
            tp=tp,
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

    run("inspect", work, json=json, quiet=quiet)
