"""The words of `fp8 dequantize`."""

from typing import TYPE_CHECKING, Annotated

import typer

from fp8cli.cli.running import Details, Json, Quiet, Revision, run
from fp8cli.cli.writing_options import (
    Connections,
    DryRun,
    MaxMemory,
    NoHashes,
    Overwrite,
    Public,
    Push,
    Restart,
    Source,
    Stream,
    Window,
    WorkDir,
    Workers,
)
from fp8cli.errors import ExitCode

if TYPE_CHECKING:
    from fp8cli.render.console import Output

EXAMPLES = (
    "Examples: fp8 dequantize ./model-FP8-dynamic · fp8 dequantize deepseek-ai/DeepSeek-V3 --dtype bfloat16 -o out · "
    "fp8 dequantize ./model --dry-run --details"
)


def dequantize(
    model: Source,
    out: Annotated[
        str | None,
        typer.Option(
            "--output-dir",
            "-o",
            metavar="DIR|ADDRESS",
            help="Output folder, or s3://…, gs://…, hf://org/name.  [default: NAME-dequantized, NAME-BF16, …]",
        ),
    ] = None,
    push: Push = None,
    public: Public = False,
    work_dir: WorkDir = None,
    dtype: Annotated[
        str, typer.Option(help="Dtype of the weights: auto (what config.json says), bfloat16, float16, float32.")
    ] = "auto",
    revision: Revision = None,
    workers: Workers = None,
    max_memory: MaxMemory = "1GiB",
    stream: Stream = False,
    connections: Connections = None,
    window: Window = None,
    dry_run: DryRun = False,
    details: Details = False,
    overwrite: Overwrite = False,
    restart: Restart = False,
    no_hashes: NoHashes = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take an FP8 checkpoint back to 16 or 32 bits.

    Codes times scales, from any dialect of FP8.
    """

    def work(output: "Output") -> ExitCode:
        from fp8cli.commands import dequantize as command
        from fp8cli.render import conversion
        from fp8cli.render.progress import QuantizeBar

        options = command.Options(
            model=model,
            delivery=command.DeliveryOptions(
                out=out, push=push, work_dir=work_dir, options=command.SendOptions(public=public)
            ),
            revision=revision,
            workers=workers,
            max_memory=max_memory,
            dry_run=dry_run,
            overwrite=overwrite,
            restart=restart,
            hashed=not no_hashes,
            download_bars=not quiet,
            streaming=command.StreamOptions(stream=stream, connections=connections, window=window),
        )
        with QuantizeBar(output).running() as bar:
            report = command.run(command.DequantizeRequest(options=options, dtype=dtype), bar.notify)
        conversion.show(report, output, command="dequantize", details=details)
        return ExitCode.DONE

    run("dequantize", work, json=json, quiet=quiet)
