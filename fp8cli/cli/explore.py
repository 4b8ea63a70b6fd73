"""The words of `fp8 explore`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fp8cli.cli import evaluation_options as options
from fp8cli.cli import simulation_options as simulation
from fp8cli.cli.running import Json, Quiet, Revision, run
from fp8cli.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from fp8cli.render.console import Output

EXAMPLES = (
    "Examples: fp8 explore ./model --calibration-data texts.jsonl · fp8 explore ./model --scheme fp8,fp8+kv "
    "--calibration-data texts.jsonl --tasks lambada_openai --sample 500"
)


def explore(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, or a Hub id such as org/name.")],
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Forms, joined by commas: fp8_dynamic, mxfp8, fp8+kv, fp8+gptq, none+kv-head, …  "
            "[default: all, +kv too]",
        ),
    ] = None,
    smoothquant: Annotated[
        bool, typer.Option("--smoothquant", help="Each scheme that can be written with SmoothQuant too.")
    ] = False,
    smoothing_strength: simulation.SmoothingStrength = None,
    awq: Annotated[bool, typer.Option("--awq", help="Each with AWQ too.")] = False,
    gptq: Annotated[bool, typer.Option("--gptq", help="Each with GPTQ too, or with one of those and GPTQ.")] = False,
    targets: simulation.Targets = None,
    ignore: simulation.Ignore = None,
    no_default_ignore: simulation.NoDefaultIgnore = False,
    revision: Revision = None,
    calibration_data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|HUB",
            help="Texts to calibrate and to measure on, half of them each: a file as for fp8 quantize, or a data set.",
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column with them.  [default: messages, conversations, text]")
    ] = None,
    samples: Annotated[int, typer.Option("--num-calibration-samples", help="Rows to draw, for both halves.")] = 256,
    max_seq_length: Annotated[int, typer.Option(help="Tokens of a text.")] = 512,
    calibration_seed: Annotated[int, typer.Option("--calibration-seed", help="Of the draw.")] = 1234,
    positions: Annotated[
        int, typer.Option(metavar="N", help="Compare next-token distributions at so many positions, at most.")
    ] = 8192,
    tasks: options.Tasks = None,
    limit: options.Limit = None,
    sample: options.Sample = None,
    seed: options.Seed = 1234,
    include_path: options.IncludePath = None,
    python: Annotated[
        Path | None, typer.Option(help="Interpreter with transformers, and lm-eval for tasks.  [default: this one]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the report as Markdown.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell which FP8 suits a model, and write nothing.

    Every scheme is measured in one loading: size, SQNR of the weights, KL divergence, and what changes on tasks; and
    the one to take is named, by a rule that the report states.
    """

    def work(output: "Output") -> ExitCode:
        from fp8cli.commands import explore as command
        from fp8cli.render import exploration
        from fp8cli.render.progress import MeasureBar

        if json and markdown:
            raise UsageError("--json and --markdown exclude each other", hint="choose one")
        request = command.ExploreRequest(
            model=model,
            revision=revision,
            schemes=tuple(scheme or ()),
            modifiers=command.choose_modifiers(
                smoothquant=smoothquant, strength=smoothing_strength, awq=awq, gptq=gptq
            ),
            modules=command.ModuleOptions(
                targets=tuple(targets or command.TARGETS_DEFAULT),
                ignore=tuple(ignore or ()),
                default_ignore=not no_default_ignore,
            ),
            data=calibration_data,
            column=text_column,
            samples=samples,
            seed=calibration_seed,
            max_seq_length=max_seq_length,
            positions=positions,
            tasks=command.TaskOptions(
                names=tuple(tasks or ()),
                limit=limit,
                sample=sample,
                seed=seed,
                include_paths=tuple(include_path or ()),
            ),
            python=python,
            device=device,
            download_bars=not quiet,
        )
        with MeasureBar(output).running() as bar:
            report = command.run(request, bar.notify)
        exploration.show(report, output, markdown=markdown)
        return ExitCode.DONE

    run("explore", work, json=json, quiet=quiet)
