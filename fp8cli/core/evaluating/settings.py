"""Every setting of an evaluation, made explicit. What the user leaves open gets the safe value, with its reason.

A default of a backend is not safe where it differs between backends (BOS), rounds more than FP8 does (bfloat16 in the
softmax of `hf`), makes an answer depend on its neighbours (prefix caching, automatic batches), or on the machine
(the longest context). The reasons are measured ones, see README. Whatever `--model-arg` says replaces the safe value
and is kept as such.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fp8cli.core.evaluating.backends import Workplace
from fp8cli.core.evaluating.bos import decide_bos
from fp8cli.core.evaluating.environment import environment_of
from fp8cli.core.evaluating.model_args import parse_model_arg
from fp8cli.core.evaluating.request import EvaluationRequest
from fp8cli.core.evaluating.servers import ServedModel
from fp8cli.core.evaluating.simulation import SimulationOrder
from fp8cli.core.evaluating.splitting import split_args
from fp8cli.core.evaluating.subject import Subject
from fp8cli.core.serving.command_line import DEPRECATED
from fp8cli.core.serving.modes import BF16_CAPABILITY
from fp8cli.errors import UsageError
from fp8cli.formats.run_record import Settings

SEEDS: Final = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""lm-eval's own, which the figures of others were made with."""

VLLM_SEED: Final = 1234
LONGEST: Final = 4096
"""Tokens of prompt and answer. Longer contexts cost memory, and hardly a task needs them."""
SHORTEST_KNOWN: Final = 2048
"""The context where neither config nor user names one; lm-eval's own guess."""
BATCH: Final = {"hf": 16, "vllm": 256, "server": 16}
GPU_BATCH: Final = 32
CONCURRENT: Final = 8
"""Requests on their way to a server at a time."""

_ELSEWHERE: Final = {"tokenizer", "pretrained"}
"""Arguments that say where a checkpoint lies, which is no setting."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The settings, and what the worker needs beside them."""

    settings: Settings
    place: Mapping[str, object]
    """Arguments of the model class that say where the checkpoint lies."""
    device: str | None
    overridden: tuple[str, ...]
    """Sentences about safe settings that the user replaced."""
    fidelity_key: str = ""
    """Of the log-probabilities to keep; empty: none."""
    simulation: SimulationOrder | None = None
    """None: the checkpoint is run as it is."""


@dataclass(frozen=True, kw_only=True)
class _Safe:
    """An argument of the model class that was chosen for the user."""

    value: object
    reason: str


def choose_settings(
    request: EvaluationRequest, subject: Subject, workplace: Workplace, served: ServedModel | None
) -> Chosen:
    """Make every setting explicit. Raises UsageError for one that this checkpoint cannot have."""
    dtype, dtype_reason = _dtype(request, subject, workplace)
    length, length_reason = _max_length(request, subject, served)
    bos = decide_bos(subject.place)
    batch, batch_reason = _batch_size(request, workplace)
    safe = {"add_bos_token": _Safe(value=bos.wanted, reason=bos.reason)}
    fixed: dict[str, object]
    place: dict[str, object] = {"pretrained": str(subject.path)}
    match workplace.backend:
        case "hf":
            fixed = {"dtype": dtype, "max_length": length}
            safe["softmax_dtype"] = _Safe(
                value="float32", reason="rounding log-probabilities to bfloat16 moves them more than FP8 does"
            )
        case "vllm":
            fixed = {"dtype": dtype, "max_model_len": length, "gpu_memory_utilization": request.gpu_memory}
            fixed |= split_args(request)
            safe |= _safe_for_vllm(on_gpu=workplace.on_gpu)
            method = None if subject.declaration is None else subject.declaration.method
            if method in DEPRECATED:
                reason = f"vLLM refuses {method} as deprecated unless it is told to load it"
                safe["allow_deprecated_quantization"] = _Safe(value=True, reason=reason)
        case "server":
            fixed = {"base_url": request.server if served is None else served.completions, "max_length": length}
            place = {"tokenizer": subject.tokenizer}
            if subject.commit is not None:
                place["revision"] = subject.commit
            safe |= _safe_for_server(served)
    given = dict(parse_model_arg(each) for each in request.model_args)
    args = {**fixed, **{name: each.value for name, each in safe.items()}, **given}
    place |= {name: args.pop(name) for name in _ELSEWHERE if name in args}
    reasons = {name: f"{_shown(each.value)}: {each.reason}" for name, each in safe.items() if name not in given}
    reasons |= {"dtype": dtype_reason} if dtype_reason else {}
    reasons |= {"max_length": length_reason} if length_reason else {}
    reasons |= {"batch_size": batch_reason} if batch_reason else {}
    reasons["seeds"] = ", ".join(f"{name} {seed}" for name, seed in SEEDS.items()) + ": lm-eval's own, always the same"
    environment, chosen_environment = environment_of(request, workplace)
    reasons |= chosen_environment
    settings = Settings(
        backend=workplace.backend,
        dtype=dtype,
        batch_size=batch,
        max_length=length,
        bos=bool(args["add_bos_token"]),
        num_fewshot=request.num_fewshot,
        limit=None if request.limit is None else float(request.limit),
        sample=request.sample,
        sample_seed=request.seed,
        chat_template=request.chat_template,
        system_instruction=request.system_instruction,
        fewshot_as_multiturn=_multiturn(request),
        gen_kwargs=request.gen_kwargs,
        seeds=SEEDS,
        model_args=args,
        environment=environment,
        versions=workplace.versions(),
        safe=reasons,
        python=str(workplace.worker.python.absolute()),
        world=request.data_parallel,
    )
    replaced = tuple(
        f"{name} is {_shown(given[name])} as asked for, and not the safe {_shown(each.value)}: {each.reason}"
        for name, each in safe.items()
        if name in given and given[name] != each.value
    )
    return Chosen(settings=settings, place=place, device=_device(request, workplace), overridden=replaced)


def _safe_for_vllm(*, on_gpu: bool) -> dict[str, _Safe]:
    safe = {
        "enable_prefix_caching": _Safe(
            value=False, reason="with it the log-probabilities of a prompt depend on the order of requests"
        ),
        "seed": _Safe(value=VLLM_SEED, reason="the same for every model"),
    }
    if not on_gpu:
        safe["enforce_eager"] = _Safe(value=True, reason="compiling takes longer than it saves on a processor")
    return safe


def _safe_for_server(served: ServedModel | None) -> dict[str, _Safe]:
    safe = {
        "tokenizer_backend": _Safe(value="huggingface", reason="prompts are cut by the checkpoint's own tokenizer"),
        "num_concurrent": _Safe(value=CONCURRENT, reason="so many requests are on their way at a time"),
        "seed": _Safe(value=VLLM_SEED, reason="the same for every model"),
    }
    if served is not None:
        safe["model"] = _Safe(value=served.name, reason="the model that the server names")
    return safe


def _dtype(request: EvaluationRequest, subject: Subject, workplace: Workplace) -> tuple[str | None, str | None]:
    """Return the dtype to compute in, and why it was chosen; None for a server, which decides by itself."""
    if workplace.backend == "server":
        if request.dtype != "auto":
            raise UsageError("a server computes in a dtype of its own", hint="leave --dtype out")
        return None, None
    if request.dtype != "auto":
        return request.dtype, None
    said = subject.attention.dtype
    dtype = said if said in {"bfloat16", "float16", "float32"} else "bfloat16"
    reason = f"{dtype}: what config.json says" if said == dtype else f"{dtype}: config.json names none to compute in"
    old = next((gpu for gpu in workplace.gpus.visible if gpu.capability < BF16_CAPABILITY), None)
    if dtype == "bfloat16" and workplace.backend == "vllm" and old is not None:
        return "float16", f"float16: {old.name} has no bfloat16"
    return dtype, reason


def _max_length(request: EvaluationRequest, subject: Subject, served: ServedModel | None) -> tuple[int, str | None]:
    """Return the longest prompt with its answer, in tokens, and why."""
    limits = {"config.json": subject.attention.longest, "the server": None if served is None else served.max_length}
    known = {who: tokens for who, tokens in limits.items() if tokens is not None}
    who = min(known, key=lambda each: known[each], default=None)
    if request.max_length is not None:
        if who is not None and request.max_length > known[who]:
            message = f"--max-length is {request.max_length:,}, and {who} allows {known[who]:,}"
            raise UsageError(message, hint=f"--max-length {known[who]} is the most")
        return request.max_length, None
    if who is None:
        return SHORTEST_KNOWN, f"{SHORTEST_KNOWN}: config.json does not say how long its context is"
    if known[who] <= LONGEST:
        return known[who], f"{known[who]}: as long as {who} allows"
    return (
        LONGEST,
        f"{LONGEST}: enough for most tasks, of {known[who]} that {who} allows; longer prompts lose their start",
    )


def _batch_size(request: EvaluationRequest, workplace: Workplace) -> tuple[int, str | None]:
    if request.batch_size is not None:
        return request.batch_size, None
    size = GPU_BATCH if workplace.backend == "hf" and workplace.on_gpu else BATCH[workplace.backend]
    return size, f"{size}: a fixed number, because automatic batches differ from run to run, and results with them"


def _device(request: EvaluationRequest, workplace: Workplace) -> str | None:
    """Return the device of the hf backend; vLLM and servers choose by themselves."""
    if workplace.backend != "hf":
        if request.device is not None:
            hint = "vLLM takes the GPUs that CUDA_VISIBLE_DEVICES names"
            raise UsageError(f"--device is for --backend hf, and this is {workplace.backend}", hint=hint)
        return None
    return request.device or ("cuda" if workplace.on_gpu else "cpu")


def _multiturn(request: EvaluationRequest) -> bool:
    if request.fewshot_as_multiturn is None:
        return bool(request.chat_template)
    return request.fewshot_as_multiturn


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
