"""The words of `fp8 convert`."""

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
    "Examples: fp8 convert deepseek-ai/DeepSeek-V3 --to compressed-tensors -o out · "
    "fp8 convert ./model-FP8-block --to deepseek · fp8 convert ./model-FP8 --to modelopt --dry-run --details"
)


def convert(
    model: Source,
    to: Annotated[
        str, typer.Option("--to", help="Dialect to write: compressed-tensors, fp8, deepseek, modelopt, fbgemm.")
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--output-dir",
            "-o",
            metavar="DIR|ADDRESS",
            help="Output folder, or s3://…, gs://…, hf://org/name.  [default: NAME-DIALECT]",
        ),
    ] = None,
    push: Push = None,
    public: Public = False,
    work_dir: WorkDir = None,
    requantize: Annotated[
        bool,
        typer.Option("--requantize", help="Round weights a second time where the dialect has no words for their form."),
    ] = False,
    scheme: Annotated[
        str | None, typer.Option(help="With --requantize: FP8_DYNAMIC or FP8_BLOCK.  [default: the dialect's first]")
    ] = None,
    tp: Annotated[
        int | None, typer.Option(metavar="N", help="Refuse a result that vLLM cannot split over N GPUs.")
    ] = None,
    tp_fallback: Annotated[
        bool,
        typer.Option("--tp-fallback", help="With --tp and --requantize: FP8_DYNAMIC where blocks cannot be split."),
    ] = False,
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
    """Write an FP8 checkpoint in another dialect of FP8.

    Its weights stay the same, bit for bit.
    """

    def work(output: "Output") -> ExitCode:
        from fp8cli.commands import convert as command
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
        request = command.ConvertRequest(
            options=options, to=to, scheme=scheme, requantize=requantize, tp=tp, tp_fallback=tp_fallback
        )
        with QuantizeBar(output).running() as bar:
            report = command.run(request, bar.notify)
        conversion.show(report, output, command="convert", details=details)
        return ExitCode.DONE

    run("convert", work, json=json, quiet=quiet)
