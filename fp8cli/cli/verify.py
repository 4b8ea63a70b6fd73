"""The words of `fp8 verify`."""

from typing import TYPE_CHECKING, Annotated

import typer

from fp8cli.cli.running import Json, Quiet, Revision, run
from fp8cli.errors import ExitCode

if TYPE_CHECKING:
    from fp8cli.render.console import Output

EXAMPLES = (
    "Examples: fp8 verify ./model-FP8-dynamic · fp8 verify ./model-FP8-dynamic --source ./model · "
    "fp8 verify org/model-FP8 · fp8 verify ./model-FP8-dynamic/model-00001-of-00004.safetensors"
)


def verify(
    ckpt: Annotated[str, typer.Argument(metavar="CKPT", help="Checkpoint folder, a file of one, or Hub id.")],
    revision: Revision = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Check also what it was made from: the folder or Hub id."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare every file with the SHA-256 in its fp8.json.

    Every checkpoint made here carries one. Found are files that are missing, cut short, changed, or that nobody put
    there. Nothing is loaded.
    """

    def work(output: "Output") -> ExitCode:
        from fp8cli.commands import verify as command
        from fp8cli.render import verification
        from fp8cli.render.progress import ReadingBar

        request = command.VerifyRequest(checkpoint=ckpt, revision=revision, source=source)
        with ReadingBar(output).running() as bar:
            report = command.run(request, bar.notify)
        verification.show(report, output)
        return report.exit_code

    run("verify", work, json=json, quiet=quiet)
