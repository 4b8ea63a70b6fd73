"""The words of `fp8 push`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fp8cli.cli.running import Json, Quiet, run
from fp8cli.cli.writing_options import Overwrite, Public, Restart, WorkDir
from fp8cli.errors import ExitCode

if TYPE_CHECKING:
    from fp8cli.render.console import Output

EXAMPLES = (
    "Examples: fp8 push ./model-FP8-dynamic org/model-FP8-dynamic · fp8 push ./out s3://bucket/models/out · "
    "fp8 compare base fp8 --json > compare.json && fp8 push ./out org/out --comparison compare.json"
)


def push(
    model: Annotated[Path, typer.Argument(metavar="CKPT", help="A checkpoint folder.")],
    to: Annotated[str, typer.Argument(metavar="ORG/NAME|ADDRESS", help="On the Hub, or s3://…, gs://….")],
    public: Public = False,
    revision: Annotated[str | None, typer.Option(help="Branch on the Hub, made if it is not there.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit on the Hub.")] = None,
    comparison: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What fp8 compare --json printed: its table goes into the model card."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show files and sizes; send nothing.")] = False,
    overwrite: Overwrite = False,
    restart: Restart = False,
    work_dir: WorkDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Send a sound checkpoint to the Hub or a bucket.

    One that fp8 inspect calls damaged is refused. It becomes visible at once, when all of it is there. The
    card is the folder's own.
    """

    def work(output: "Output") -> ExitCode:
        from fp8cli.commands import push as command
        from fp8cli.render import pushing

        compared = measured = None
        if comparison is not None:
            from fp8cli.render.comparison_markdown import comparison_to_markdown

            compared = command.read_comparison(comparison)
            measured = comparison_to_markdown(compared)
        request = command.PushRequest(
            folder=model,
            to=to,
            public=public,
            revision=revision,
            message=message,
            comparison=compared,
            measured=measured,
            overwrite=overwrite,
            restart=restart,
            dry_run=dry_run,
            work_dir=work_dir,
        )
        with pushing.PushBar(output).running() as bar:
            report = command.run(request, bar.notify)
        pushing.show(report, output)
        return ExitCode.DONE

    run("push", work, json=json, quiet=quiet)
