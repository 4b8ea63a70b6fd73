"""The options of the commands that write a checkpoint, `fp8 quantize`, `fp8 convert` and `fp8 dequantize`."""

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="CKPT", help="A folder with an FP8 checkpoint, a Hub id (org/name), or hf://, s3://, gs://…"
    ),
]
Workers = Annotated[int | None, typer.Option(help="Worker threads.  [default: one per usable CPU]")]
MaxMemory = Annotated[str, typer.Option(help="Memory for tiles, on top of the interpreter, such as 500MB or 2GiB.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan; read headers and scales alone, write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output, in one step, when done.")]
Restart = Annotated[bool, typer.Option("--restart", help="Throw an unfinished run away instead of going on with it.")]
NoHashes = Annotated[
    bool, typer.Option("--no-hashes", help="Leave SHA-256 out of fp8.json: less work, and sizes alone to verify by.")
]
Push = Annotated[
    str | None,
    typer.Option(metavar="ORG/NAME", help="Send it to the Hub while it is made: with -o DIR too, else only there."),
]
Public = Annotated[bool, typer.Option("--public", help="A repository that is made on the Hub is for everybody.")]
WorkDir = Annotated[
    Path | None,
    typer.Option(help="Where what goes to an address is made, as .NAME.fp8-partial.  [default: the current directory]"),
]
Stream = Annotated[
    bool,
    typer.Option("--stream", help="Read the source as it is needed and never store it; always so for s3:// and gs://."),
]
Connections = Annotated[int | None, typer.Option(help="While streaming: requests at a time.  [default: 8]")]
Window = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="While streaming: bytes of the source on the disk at a time.  [default: 2GiB]"),
]
