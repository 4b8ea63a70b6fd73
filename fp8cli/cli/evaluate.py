"""The words of `fp8 eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fp8cli.cli import evaluation_options as options
from fp8cli.cli import simulation_options as simulation
from fp8cli.cli.running import Json, Quiet, Revision, run
from fp8cli.errors import ExitCode

if TYPE_CHECKING:
    from fp8cli.render.console import Output

EXAMPLES = (
    "Examples: fp8 eval ./model --tasks lambada_openai · fp8 eval ./model-FP8-dynamic --tasks lambada_openai · "
    "fp8 eval --tasks gsm8k --sample 500 --apply-chat-template · fp8 eval --tasks fp8_stories · "
    "fp8 eval --tasks fp8_stories --simulate mxfp8+kv · fp8 eval --tasks fp8_stories --simulate fp8_dynamic --gptq "
    "--calibration-data texts.jsonl"
)


def evaluate(
    ckpt: Annotated[
        str | None, typer.Argument(metavar="[CKPT]", help="Checkpoint folder or Hub id.  [default: the one here]")
    ] = None,
    tasks: options.Tasks = None,
    revision: Revision = None,
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
    backend: options.Backend = "auto",
    server: options.Server = None,
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
    label: Annotated[
        str | None,
        typer.Option(help="Folder of the run.  [default: base; fp8 for an FP8 checkpoint; sim-SCHEME]"),
    ] = None,
    runs: options.Runs = Path("fp8-runs"),
    rerun: options.Rerun = False,
    full_hash: options.FullHash = False,
    text: options.Text = None,
    no_fidelity: options.NoFidelity = False,
    fidelity_positions: options.FidelityPositions = 2048,
    stall_timeout: options.StallTimeout = 1800.0,
    confirm_unsafe_code: options.ConfirmUnsafeCode = False,
    simulate: options.Simulate = None,
    smoothquant: simulation.SmoothQuant = False,
    smoothing_strength: simulation.SmoothingStrength = None,
    awq: simulation.Awq = False,
    gptq: simulation.Gptq = False,
    targets: simulation.Targets = None,
    ignore: simulation.Ignore = None,
    no_default_ignore: simulation.NoDefaultIgnore = False,
    calibration_data: options.CalibrationData = None,
    text_column: options.TextColumn = None,
    num_calibration_samples: options.CalibrationSamples = None,
    max_seq_length: options.MaxSeqLength = None,
    calibration_seed: options.CalibrationSeed = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a checkpoint with lm-evaluation-harness.

    In settings that can be compared; on record, with all that decides the result.
    """

    def work(output: "Output") -> ExitCode:
        from fp8cli.commands import evaluate as command
        from fp8cli.render import evaluation
        from fp8cli.render.progress import EvalBar

        request = command.EvaluateRequest(
            tasks=tuple(tasks or ()),
            checkpoint=ckpt,
            revision=revision,
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
            server=server,
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
            label=label,
            runs=runs,
            rerun=rerun,
            full_hash=full_hash,
            text=text,
            fidelity=not no_fidelity,
            fidelity_positions=fidelity_positions,
            stall_timeout=stall_timeout,
            confirm_unsafe_code=confirm_unsafe_code,
            download_bars=not quiet,
            simulate=simulate,
            modifiers=command.choose_modifiers(
                smoothquant=smoothquant, strength=smoothing_strength, awq=awq, gptq=gptq
            ),
            modules=command.ModuleOptions(
                targets=tuple(targets or command.TARGETS_DEFAULT),
                ignore=tuple(ignore or ()),
                default_ignore=not no_default_ignore,
            ),
            calibration=command.CalibrationOptions(
                data=calibration_data,
                column=text_column,
                samples=num_calibration_samples,
                max_seq_length=max_seq_length,
                seed=calibration_seed,
            ),
        )
        with EvalBar(output).running() as bar:
            report = command.run(request, bar.notify)
        evaluation.show(report, output)
        return report.exit_code

    run("eval", work, json=json, quiet=quiet)
