"""The words of `fp8 quantize`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fp8cli.cli.running import Details, Json, Quiet, Revision, run
from fp8cli.cli.writing_options import (
    Connections,
    MaxMemory,
    NoHashes,
    Overwrite,
    Public,
    Push,
    Restart,
    Stream,
    Window,
    WorkDir,
    Workers,
)
from fp8cli.errors import ExitCode
from fp8cli.schemes import DEFAULT_SCHEME, SCHEMES

if TYPE_CHECKING:
    from fp8cli.render.console import Output

_SCHEME_NAMES = ", ".join(SCHEMES)
EXAMPLES = (
    "Examples: fp8 quantize ./Llama-3-8B · fp8 quantize Qwen/Qwen3-8B --scheme FP8_BLOCK -o out · "
    "fp8 quantize ./model --scheme FP8 --kv-cache fp8 --calibration-data texts.jsonl · "
    "fp8 quantize ./model --keep-bf16 auto --target-size 4.5GB · "
    "fp8 quantize ./model --cluster ray=auto · "
    "fp8 quantize ./model --dry-run --details"
)


def quantize(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A checkpoint folder, a Hub id (org/name), or hf://, s3://, gs://…"),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--output-dir",
            "-o",
            metavar="DIR|ADDRESS",
            help="Output folder, or s3://…, gs://…, hf://org/name.  [default: NAME-FP8-dynamic, NAME-FP8-KV, …]",
        ),
    ] = None,
    push: Push = None,
    public: Public = False,
    work_dir: WorkDir = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            help=f"One of {_SCHEME_NAMES}, in any case; none with --kv-cache.  [default: {DEFAULT_SCHEME}]",
        ),
    ] = None,
    kv_cache: Annotated[
        str | None, typer.Option(help="An FP8 KV cache too: fp8, a scale per layer, or fp8-head, one per KV head.")
    ] = None,
    smoothquant: Annotated[
        bool, typer.Option("--smoothquant", help="Move outliers of activations into weights first. Needs data.")
    ] = False,
    smoothing_strength: Annotated[
        float | None, typer.Option(metavar="0…1", help="How much of them.  [default: 0.5]")
    ] = None,
    awq: Annotated[bool, typer.Option("--awq", help="The same by a search for the least error. Needs data.")] = False,
    gptq: Annotated[
        bool, typer.Option("--gptq", help="Round column by column, each making up for those before. Needs data.")
    ] = False,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An llm-compressor recipe (YAML) instead of all of these.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="auto, streaming or llmcompressor: the same bytes where both can, at the cost of memory."),
    ] = "auto",
    revision: Revision = None,
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
    calibration_data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|HUB",
            help="Texts or conversations for what needs them: .jsonl, .json, .txt, .parquet, or org/name[:split].",
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column with them.  [default: messages, conversations, text]",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--num-calibration-samples", help="Rows to draw.  [default: 512]"),
    ] = None,
    max_seq_length: Annotated[int | None, typer.Option(help="Tokens of a sample.  [default: 2048]")] = None,
    seed: Annotated[
        int | None,
        typer.Option("--calibration-seed", help="Of the draw.  [default: 1234]"),
    ] = None,
    keep_bf16: Annotated[
        str | None,
        typer.Option(
            metavar="auto", help="Measure what FP8 costs where, and keep 16 bits where one of these needs it:"
        ),
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(metavar="NATS", help="KL to the source, measured on texts, at most that.")
    ] = None,
    min_sqnr: Annotated[
        float | None, typer.Option(metavar="DB", help="SQNR of every output (without texts: weight), at least that.")
    ] = None,
    target_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Size of the files, at most that, such as 4.5GB.")
    ] = None,
    offload: Annotated[
        str | None,
        typer.Option(
            metavar="auto|disk|none",
            help="Weights while calibrating: disk reads them layer by layer, none loads all.  [default: auto]",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--calibration-processes", metavar="N", help="Share the samples, a GPU each.  [default: 1]"),
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(help="Interpreter with llm-compressor.  [default: this one]"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N. The weights are the same.")] = "auto",
    workers: Workers = None,
    max_memory: MaxMemory = "1GiB",
    tp: Annotated[
        int | None, typer.Option(metavar="N", help="Refuse a result that vLLM cannot split over N GPUs.")
    ] = None,
    tp_fallback: Annotated[
        bool, typer.Option("--tp-fallback", help="With --tp: FP8_DYNAMIC where blocks of FP8_BLOCK cannot be split.")
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ray[=ADDRESS]", help="Make the weights on the nodes of a Ray cluster: caps are those of each."
        ),
    ] = None,
    stream: Stream = False,
    connections: Connections = None,
    window: Window = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan from the headers alone; write nothing.")
    ] = False,
    details: Details = False,
    overwrite: Overwrite = False,
    restart: Restart = False,
    no_hashes: NoHashes = False,
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
            delivery=command.DeliveryOptions(
                out=out, push=push, work_dir=work_dir, options=command.SendOptions(public=public)
            ),
            scheme=scheme,
            kv_cache=kv_cache,
            engine=engine,
            modifiers=command.choose_modifiers(
                smoothquant=smoothquant, strength=smoothing_strength, awq=awq, gptq=gptq
            ),
            recipe=recipe,
            calibration=command.CalibrationOptions(
                data=calibration_data,
                column=text_column,
                samples=samples,
                max_seq_length=max_seq_length,
                seed=seed,
                python=python,
                offload=offload,
                processes=processes,
            ),
            budget=command.BudgetOptions(keep=keep_bf16, max_kl=max_kl, min_sqnr=min_sqnr, target_size=target_size),
            revision=revision,
            dtype=dtype,
            targets=tuple(targets or command.DEFAULT_TARGETS),
            ignore=tuple(ignore or ()),
            default_ignore=not no_default_ignore,
            device=device,
            workers=workers,
            max_memory=max_memory,
            tp=tp,
            tp_fallback=tp_fallback,
            cluster=cluster,
            dry_run=dry_run,
            overwrite=overwrite,
            restart=restart,
            hashed=not no_hashes,
            download_bars=not quiet,
            streaming=command.StreamOptions(stream=stream, connections=connections, window=window),
        )
        with QuantizeBar(output).running() as bar:
            report = command.run(request, bar.notify)
        quantization.show(report, output, details=details)
        return ExitCode.DONE

    run("quantize", work, json=json, quiet=quiet)
