"""The words of `fp8 compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fp8cli.cli import evaluation_options as options
from fp8cli.cli import simulation_options as simulation
from fp8cli.cli.running import Json, Quiet, run
from fp8cli.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from fp8cli.commands.compare import CompareReport
    from fp8cli.render.console import Output
    from fp8cli.render.report_files import ReportFile

EXAMPLES = (
    "Examples: fp8 compare base fp8 · fp8 compare ./model ./model-FP8-dynamic --tasks lambada_openai · "
    "fp8 compare base fp8 --sample 1855 --html compare.html · fp8 compare results_bf16.json results_fp8.json · "
    "fp8 compare ./model sim:fp8_dynamic sim:mxfp8+kv --tasks fp8_stories"
)


def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE OTHER…",
            help="Labels, runs, checkpoints, results of lm-eval, or a table of it in .md; the first is the base. "
            "sim:SCHEME is the base's checkpoint simulated; sim:fp8_dynamic+gptq, see fp8 eval --simulate.",
        ),
    ],
    tasks: options.Tasks = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="A setting in which the sides may differ; repeatable.")
    ] = None,
    margin: Annotated[float, typer.Option(metavar="SHARE", help="What may be lost: 0.01 is one percentage point.")] = (
        0.01
    ),
    margin_perplexity: Annotated[
        float, typer.Option(metavar="SHARE", help="The same of a perplexity, which may be so much larger.")
    ] = 0.01,
    confidence: Annotated[float, typer.Option(metavar="SHARE", help="Of intervals and verdicts.")] = 0.95,
    noise_floor: Annotated[
        bool, typer.Option("--noise-floor", help="Evaluate the base in float32 too: what changes without any loss.")
    ] = False,
    show_flips: Annotated[
        int, typer.Option(metavar="N", help="List so many items that changed, of each comparison.")
    ] = 0,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the report as Markdown, for a model card.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as a page too, with drawings and all changed items.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as JUnit XML too, for CI.")] = None,
    num_fewshot: options.NumFewshot = None,
    limit: options.Limit = None,
    sample: options.Sample = None,
    seed: options.Seed = 1234,
    apply_chat_template: options.ApplyChatTemplate = False,
    chat_template: options.ChatTemplate = None,
    system_instruction: options.SystemInstruction = None,
    fewshot_as_multiturn: options.FewshotAsMultiturn = None,
    gen_kwargs: options.GenKwargs = None,
    batch_size: options.BatchSize = None,
    backend: Annotated[str, typer.Option(help="auto, hf (transformers), vllm; the same for all sides.")] = "auto",
    tensor_parallel: options.TensorParallel = 1,
    pipeline_parallel: options.PipelineParallel = 1,
    data_parallel: options.DataParallel = 1,
    cluster: options.Cluster = None,
    max_length: options.MaxLength = None,
    dtype: options.Dtype = "auto",
    device: options.Device = None,
    gpu_memory: options.GpuMemory = 0.8,
    model_arg: options.ModelArg = None,
    include_path: options.IncludePath = None,
    python: options.Python = None,
    runs: options.Runs = Path("fp8-runs"),
    rerun: options.Rerun = False,
    full_hash: options.FullHash = False,
    text: options.Text = None,
    no_fidelity: options.NoFidelity = False,
    fidelity_positions: options.FidelityPositions = 2048,
    stall_timeout: options.StallTimeout = 1800.0,
    confirm_unsafe_code: options.ConfirmUnsafeCode = False,
    calibration_data: options.CalibrationData = None,
    text_column: options.TextColumn = None,
    num_calibration_samples: options.CalibrationSamples = None,
    max_seq_length: options.MaxSeqLength = None,
    calibration_seed: options.CalibrationSeed = None,
    targets: simulation.Targets = None,
    ignore: simulation.Ignore = None,
    no_default_ignore: simulation.NoDefaultIgnore = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell whether a model is as good as its base, and how sure.

    What is missing is evaluated first. The verdict is PASS, REGRESSION or INCONCLUSIVE, item by item and within a
    margin; the exit code is 0, 1 or 4, and 5 where the sides cannot be compared.
    """

    def work(output: "Output") -> ExitCode:
        from fp8cli.commands import compare as command
        from fp8cli.render.progress import EvalBar

        files = _check_output(json=json, markdown=markdown, html=html, junit=junit, flips=show_flips)
        request = command.CompareRequest(
            sides=tuple(sides),
            allow=tuple(allow or ()),
            margin=margin,
            perplexity_margin=margin_perplexity,
            confidence=confidence,
            noise_floor=noise_floor,
            evaluation=command.EvaluationRequest(
                tasks=tuple(tasks or ()),
                num_fewshot=num_fewshot,
                limit=limit,
                sample=sample,
                seed=seed,
                chat_template=chat_template or apply_chat_template,
                system_instruction=system_instruction,
                fewshot_as_multiturn=fewshot_as_multiturn,
                gen_kwargs=gen_kwargs,
                batch_size=batch_size,
                backend=backend.lower(),
                tensor_parallel=tensor_parallel,
                pipeline_parallel=pipeline_parallel,
                data_parallel=data_parallel,
                cluster=cluster,
                max_length=max_length,
                dtype=dtype,
                device=device,
                gpu_memory=gpu_memory,
                model_args=tuple(model_arg or ()),
                include_paths=tuple(include_path or ()),
                python=python,
                runs=runs,
                rerun=rerun,
                full_hash=full_hash,
                text=text,
                fidelity=not no_fidelity,
                fidelity_positions=fidelity_positions,
                stall_timeout=stall_timeout,
                confirm_unsafe_code=confirm_unsafe_code,
                download_bars=not quiet,
                calibration=command.CalibrationOptions(
                    data=calibration_data,
                    column=text_column,
                    samples=num_calibration_samples,
                    max_seq_length=max_seq_length,
                    seed=calibration_seed,
                ),
                modules=command.ModuleOptions(
                    targets=tuple(targets or command.TARGETS_DEFAULT),
                    ignore=tuple(ignore or ()),
                    default_ignore=not no_default_ignore,
                ),
            ),
        )
        with EvalBar(output).running() as bar:
            report = command.run(request, bar.notify)
        _show(report, output, markdown=markdown, flips=show_flips)
        _write(report, files, output)
        return report.exit_code

    run("compare", work, json=json, quiet=quiet)


def _check_output(
    *, json: bool, markdown: bool, html: Path | None, junit: Path | None, flips: int
) -> "tuple[ReportFile, ...]":
    """Refuse before any work is done what could not be shown. Returns the files to be written."""
    from fp8cli.render.report_files import ReportFile

    if json and markdown:
        raise UsageError("--json and --markdown exclude each other", hint="choose one; --html and --junit go with any")
    if flips < 0:
        raise UsageError(f"--show-flips is {flips}, and must be 0 or more", hint="--show-flips 20")
    named = (("--html", html, "the page", "compare.html"), ("--junit", junit, "the XML", "compare.xml"))
    files = tuple(
        ReportFile(path=path, option=option, what=what, example=example)
        for option, path, what, example in named
        if path is not None
    )
    for file in files:
        file.check()
    return files


def _show(report: "CompareReport", output: "Output", *, markdown: bool, flips: int) -> None:
    if markdown:
        from fp8cli.render.comparison_markdown import comparison_to_markdown

        output.out.write(comparison_to_markdown(report.comparison))
        return
    from fp8cli.render import comparison

    comparison.show(report, output, flips=flips)


def _write(report: "CompareReport", files: "tuple[ReportFile, ...]", output: "Output") -> None:
    for file in files:
        if file.option == "--html":
            from fp8cli.render.comparison_html import comparison_to_html

            text = comparison_to_html(report.comparison)
        else:
            from fp8cli.render.junit import to_junit

            text = to_junit(report.comparison)
        file.write(text.encode("utf-8"))
        output.note(f"written: {file.path}")
