"""Options of an evaluation, the same words with the same meaning in `fp8 eval` and wherever else one is run."""

from pathlib import Path
from typing import Annotated

import typer

Tasks = Annotated[
    list[str] | None,
    typer.Option("--tasks", "-t", metavar="NAMES", help="Tasks, groups, tags, globs or YAML files, joined by commas."),
]
NumFewshot = Annotated[
    int | None, typer.Option(metavar="N", help="Examples in front of each question.  [default: the task's own]")
]
Limit = Annotated[
    float | None, typer.Option(metavar="N", help="Only the first N items of each task, or a share below 1.")
]
Sample = Annotated[
    int | None, typer.Option(metavar="N", help="N items of each task, drawn with --seed, the same for every model.")
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the sample.")]
ApplyChatTemplate = Annotated[
    bool, typer.Option("--apply-chat-template", help="Put prompts into the tokenizer's chat template.")
]
ChatTemplate = Annotated[
    str | None, typer.Option(metavar="NAME", help="The chat template of that name, where there are several.")
]
SystemInstruction = Annotated[str | None, typer.Option(metavar="TEXT", help="What stands in front of every prompt.")]
FewshotAsMultiturn = Annotated[
    bool | None,
    typer.Option(
        "--fewshot-as-multiturn/--no-fewshot-as-multiturn",
        help="Examples as turns of the chat.  [default: with a chat template]",
    ),
]
GenKwargs = Annotated[
    str | None,
    typer.Option(metavar="K=V,…", help="For generation, as lm-eval takes it: temperature=0,max_gen_toks=64."),
]
BatchSize = Annotated[int | None, typer.Option(metavar="N", help="Always a number.  [default: 16; GPU 32; vLLM 256]")]
Backend = Annotated[
    str, typer.Option(help="auto, hf (transformers), vllm, server. auto: vLLM with a GPU that it can use, else hf.")
]
Server = Annotated[
    str | None, typer.Option(metavar="URL", help="An OpenAI-compatible server that has the model already.")
]
TensorParallel = Annotated[int, typer.Option(metavar="N", help="GPUs that share each layer, on vLLM.")]
PipelineParallel = Annotated[
    int, typer.Option(metavar="N", help="Groups of GPUs that the layers are dealt out to, on vLLM.")
]
Cluster = Annotated[
    str | None, typer.Option(metavar="ray[=ADDRESS]", help="A Ray cluster, whose GPUs vLLM shares the model among.")
]
DataParallel = Annotated[
    int, typer.Option(metavar="N", help="Workers that share the items, each with the whole model.")
]
MaxLength = Annotated[
    int | None, typer.Option(metavar="TOKENS", help="Prompt and answer together.  [default: the model's, at most 4096]")
]
Dtype = Annotated[str, typer.Option(help="auto (what config.json says), bfloat16, float16, float32.")]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="Of the hf backend: cpu, cuda, cuda:N.")]
GpuMemory = Annotated[float, typer.Option(metavar="SHARE", help="Part of each GPU that vLLM takes.")]
ModelArg = Annotated[
    list[str] | None, typer.Option("--model-arg", metavar="KEY=VALUE", help="For lm-eval's model class; repeatable.")
]
IncludePath = Annotated[
    list[Path] | None, typer.Option("--include-path", metavar="DIR", help="A folder of your own tasks; repeatable.")
]
Python = Annotated[
    Path | None,
    typer.Option(help="The interpreter that evaluates, or its environment.  [default: this; vLLM's as in fp8 doctor]"),
]
Runs = Annotated[Path, typer.Option(metavar="DIR", help="Where runs and their records lie.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Run it again, whatever is on record.")]
FullHash = Annotated[bool, typer.Option("--full-hash", help="Know a checkpoint by all of its bytes, not by samples.")]
Text = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Texts to keep log-probabilities over.  [default: the tasks']")
]
NoFidelity = Annotated[bool, typer.Option("--no-fidelity", help="Keep no log-probabilities.")]
FidelityPositions = Annotated[
    int, typer.Option(metavar="N", help="Log-probabilities over so many tokens, 512 MiB at most.")
]
StallTimeout = Annotated[
    float, typer.Option(metavar="SECONDS", help="A worker so long without a sign of life is ended.")
]
ConfirmUnsafeCode = Annotated[
    bool, typer.Option("--confirm-unsafe-code", help="Let tasks run the code that the model writes.")
]
Simulate = Annotated[
    str | None,
    typer.Option(
        metavar="SCHEME",
        help="Evaluate it as it would be under a scheme, on transformers: fp8_dynamic, fp8_block, fp8, fp8_w8a16, "
        "e5m2_dynamic, mxfp8; with +kv or +kv-head an FP8 KV cache too, none+kv that alone; the first three with "
        "+gptq, +awq, +smoothquant too.",
    ),
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|HUB",
        help="Texts for a simulation of fp8, +kv, +gptq, +awq: .jsonl, .json, .txt, .parquet, or org/name[:split].",
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column with them.  [default: messages, conversations, text]"),
]
CalibrationSamples = Annotated[
    int | None, typer.Option("--num-calibration-samples", metavar="N", help="Rows to draw.  [default: 512]")
]
MaxSeqLength = Annotated[int | None, typer.Option(metavar="TOKENS", help="Of such a text.  [default: 2048]")]
CalibrationSeed = Annotated[int | None, typer.Option(metavar="N", help="Of the draw.  [default: 1234]")]
