"""Options of a simulation besides its scheme, the same words with the same meaning as in `fp8 quantize`."""

from typing import Annotated

import typer

SmoothQuant = Annotated[
    bool, typer.Option("--smoothquant", help="Simulate with SmoothQuant, as llm-compressor does it. Needs data.")
]
SmoothingStrength = Annotated[float | None, typer.Option(metavar="0…1", help="Of --smoothquant.  [default: 0.5]")]
Awq = Annotated[bool, typer.Option("--awq", help="The same with AWQ. Needs data.")]
Gptq = Annotated[bool, typer.Option("--gptq", help="The same with GPTQ. Needs data.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(help="Modules to round in a simulation: Linear, a name, a glob or re:REGEX.  [default: Linear]"),
]
Ignore = Annotated[
    list[str] | None, typer.Option(help="Modules that a simulation leaves alone besides the default, in these words.")
]
NoDefaultIgnore = Annotated[bool, typer.Option("--no-default-ignore", help="Simulate lm_head in FP8 too.")]
