"""What the user asked `fp8 eval` for, and the refusals that need to look at nothing but that."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fp8cli.core.calibrating.ordering import CalibrationOptions
from fp8cli.core.clustering.choice import parse_cluster
from fp8cli.core.evaluating.model_args import EXECUTOR, parse_model_arg
from fp8cli.core.evaluating.runs import RUNS_DEFAULT, check_label
from fp8cli.core.quantizing.modifiers import NO_MODIFIERS, Modifiers
from fp8cli.core.simulating.modules import EVERY_LINEAR, ModuleOptions
from fp8cli.errors import UsageError

BACKENDS: Final = ("auto", "hf", "vllm", "server")
DTYPES: Final = ("auto", "bfloat16", "float16", "float32")

SAMPLE_SEED: Final = 1234
GPU_MEMORY: Final = 0.8
"""Share of the GPU that vLLM takes. Its own default, 0.92, leaves too little for the log-probabilities of prompts,
which it does not count when it measures memory (lm-evaluation-harness issues 2490, 2698, 2779)."""
STALL_SECONDS: Final = 1800.0
FIDELITY_POSITIONS: Final = 2048


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """One evaluation, as asked for. None: the tool decides."""

    tasks: tuple[str, ...]
    """Names, each perhaps several joined by commas."""
    checkpoint: str | None = None
    """A folder or a Hub id; None: the one here."""
    revision: str | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    sample: int | None = None
    seed: int = SAMPLE_SEED
    """Of the sample."""
    chat_template: bool | str = False
    """True: the default one; a text: the one of that name."""
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None
    """None: with a chat template, as lm-eval's command does."""
    gen_kwargs: str | None = None
    batch_size: int | None = None
    backend: str = "auto"
    """One of BACKENDS."""
    server: str | None = None
    """Address of an OpenAI-compatible server."""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    cluster: str | None = None
    """`ray`, or `ray=ADDRESS`, whose GPUs vLLM is to use; None: those of this machine."""
    max_length: int | None = None
    dtype: str = "auto"
    device: str | None = None
    gpu_memory: float = GPU_MEMORY
    model_args: tuple[str, ...] = ()
    """KEY=VALUE, for lm-eval's model class."""
    include_paths: tuple[Path, ...] = ()
    python: Path | None = None
    label: str | None = None
    runs: Path = RUNS_DEFAULT
    rerun: bool = False
    full_hash: bool = False
    text: Path | None = None
    """Texts for fidelity; None: those of the tasks."""
    fidelity: bool = True
    fidelity_positions: int = FIDELITY_POSITIONS
    stall_timeout: float = STALL_SECONDS
    """Seconds."""
    confirm_unsafe_code: bool = False
    download_bars: bool = True
    simulate: str | None = None
    """A word for the scheme that is simulated; None: the checkpoint as it is."""
    modifiers: Modifiers = NO_MODIFIERS
    """Those of the simulation, where its word names none."""
    modules: ModuleOptions = EVERY_LINEAR
    """What the simulation rounds."""
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    """Data for the simulation of a scheme that needs some."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, each once."""
        words = (word.strip() for names in self.tasks for word in names.split(","))
        return tuple(dict.fromkeys(word for word in words if word))


def check_request(request: EvaluationRequest) -> None:
    """Refuse what makes no sense whatever the checkpoint is. Raises UsageError."""
    _check_tasks(request)
    _check_items(request)
    _check_numbers(request)
    _check_backend(request)
    _check_cluster(request)
    _check_template(request)
    _check_fidelity(request)
    if request.label is not None:
        check_label(request.label)
    for each in request.model_args:
        parse_model_arg(each)


def _check_tasks(request: EvaluationRequest) -> None:
    if not request.task_names:
        raise UsageError("no task is named", hint="name one: fp8 eval --tasks fp8_stories, or lambada_openai, gsm8k, …")
    for path in request.include_paths:
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise UsageError(f"the folder of tasks `{path}` {what}", hint="--include-path takes a folder of YAML files")
    for name in request.task_names:
        if name.endswith((".yaml", ".yml")) and not Path(name).is_file():
            raise UsageError(f"the task file `{name}` does not exist", hint="give the path of a YAML file, or a name")


def _check_items(request: EvaluationRequest) -> None:
    limit, sample = request.limit, request.sample
    if limit is not None and sample is not None:
        hint = "--sample draws with a seed, the same items for every model; --limit takes the first ones"
        raise UsageError("--limit and --sample exclude each other", hint=hint)
    if limit is not None and not limit > 0:
        raise UsageError(f"--limit is {limit:g}, and must be above 0", hint="leave it out to take every item")
    if limit is not None and limit > 1 and limit != int(limit):
        raise UsageError(f"--limit is {limit:g}: a number of items, or a share below 1", hint=f"--limit {int(limit)}")
    if limit is not None and limit == float("inf"):
        raise UsageError("--limit is not a number of items", hint="leave it out to take every item")
    _at_least(1, "--sample", sample)
    _at_least(0, "--num-fewshot", request.num_fewshot)


def _check_numbers(request: EvaluationRequest) -> None:
    _at_least(1, "--batch-size", request.batch_size)
    _at_least(1, "--tensor-parallel", request.tensor_parallel)
    _at_least(1, "--pipeline-parallel", request.pipeline_parallel)
    _at_least(1, "--data-parallel", request.data_parallel)
    _at_least(8, "--max-length", request.max_length)
    _at_least(1, "--stall-timeout", request.stall_timeout)
    if not 0 < request.gpu_memory < 1:
        raise UsageError(
            f"--gpu-memory is {request.gpu_memory:g}, and must be between 0 and 1", hint="--gpu-memory 0.8"
        )
    if request.dtype not in DTYPES:
        raise UsageError(f"`{request.dtype}` is no dtype to evaluate in", hint=f"--dtype takes {', '.join(DTYPES)}")


def _check_backend(request: EvaluationRequest) -> None:
    if request.backend not in BACKENDS:
        raise UsageError(f"`{request.backend}` is no backend", hint=f"--backend takes {', '.join(BACKENDS)}")
    if request.server is not None and request.backend not in {"auto", "server"}:
        message = f"--server names a server, and --backend {request.backend} asks none"
        raise UsageError(message, hint="leave --backend out")
    if request.backend == "server" and request.server is None:
        raise UsageError("--backend server needs its address", hint="--server http://localhost:8000")
    if request.server is not None:
        if not request.server.startswith(("http://", "https://")):
            raise UsageError(f"`{request.server}` is no address of a server", hint="--server http://localhost:8000")
        if "@" in request.server:
            hint = "set OPENAI_API_KEY: lm-eval sends it, and no record keeps it"
            raise UsageError("--server holds a user or a password, which would be kept in the record", hint=hint)
        if max(request.tensor_parallel, request.pipeline_parallel, request.data_parallel) > 1:
            raise UsageError("a server decides by itself how it is spread", hint="leave the parallel options out")
    if request.backend == "hf" and max(request.tensor_parallel, request.pipeline_parallel) > 1:
        message = f"{'--tensor-parallel' if request.tensor_parallel > 1 else '--pipeline-parallel'} is for vLLM"
        raise UsageError(message, hint="on transformers, --model-arg parallelize=true spreads the layers over the GPUs")


def _check_cluster(request: EvaluationRequest) -> None:
    if parse_cluster(request.cluster, os.environ) is None:
        return
    if request.server is not None:
        raise UsageError("a server decides by itself how it is spread", hint="leave --cluster out")
    if request.backend == "hf" or request.simulate is not None:
        message = "--cluster is for vLLM: transformers runs on one machine"
        raise UsageError(message, hint="leave --cluster out, or use --backend vllm")
    if request.data_parallel > 1:
        message = f"--data-parallel {request.data_parallel} deals out the GPUs of one machine, and a cluster has many"
        raise UsageError(message, hint="use --tensor-parallel and --pipeline-parallel on a cluster")
    if EXECUTOR in {parse_model_arg(each)[0] for each in request.model_args}:
        raise UsageError(f"--model-arg {EXECUTOR} would contradict --cluster", hint="leave one of them out")


def _check_template(request: EvaluationRequest) -> None:
    if request.fewshot_as_multiturn and not request.chat_template:
        hint = "add --apply-chat-template: only a template has turns"
        raise UsageError("--fewshot-as-multiturn needs a chat template", hint=hint)


def _check_fidelity(request: EvaluationRequest) -> None:
    _at_least(1, "--fidelity-positions", request.fidelity_positions)
    if request.text is None:
        return
    if not request.fidelity:
        raise UsageError("--text and --no-fidelity exclude each other", hint="the texts are for fidelity alone")
    if not request.text.is_file():
        what = "is a folder" if request.text.is_dir() else "does not exist"
        raise UsageError(f"the file of texts `{request.text}` {what}", hint="one text a line; .jsonl: the key `text`")


def _at_least(least: int, option: str, value: float | None) -> None:
    if value is not None and not value >= least:
        raise UsageError(f"{option} is {value:g}, and must be {least} or more", hint=f"{option} {least} is the least")
