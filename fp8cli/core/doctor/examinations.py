"""The doctor's table: every check, what it asks, and which tasks cannot do without it.

The checks that `fp8 quantize` makes before it starts are among them, and are the same functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from fp8cli.core.doctor import checkpoint_checks, gpu_checks, machine_checks, reader_checks, stack_checks
from fp8cli.core.doctor.environment import (
    SPARE_BYTES,
    Check,
    check_disk,
    check_folder,
    check_gpus,
    check_memory,
    check_torch,
    gb,
)
from fp8cli.core.doctor.surroundings import Surroundings
from fp8cli.core.findings import Status
from fp8cli.core.machine.amd import hiding
from fp8cli.core.machine.probes import has_amx, read_memory
from fp8cli.core.quantizing.resources import DEFAULT_MAX_MEMORY, parse_size
from fp8cli.errors import CannotRun, Fp8Error, UsageError

Task = Literal["quantize", "inspect", "eval on transformers", "eval on vLLM", "serve"]
Category = Literal["machine", "packages", "vLLM", "GPU", "hub", "checkpoint"]

TASKS: Final[tuple[Task, ...]] = ("quantize", "inspect", "eval on transformers", "eval on vLLM", "serve")
ON_VLLM: Final[tuple[Task, ...]] = ("eval on vLLM", "serve")


@dataclass(frozen=True, kw_only=True)
class Examination:
    """One check before it is made."""

    name: str
    category: Category
    asks: str
    """What it asks, for the list of checks."""
    tasks: tuple[Task, ...]
    """Those that need it to pass."""
    make: Callable[[Surroundings], Check]
    of_checkpoint: bool = False
    """Whether there must be a checkpoint to look at."""


def _memory(seen: Surroundings) -> Check:
    return check_memory(parse_size(DEFAULT_MAX_MEMORY, option="--max-memory"), seen.root)


def _disk(seen: Surroundings) -> Check:
    if seen.checkpoint is not None:
        return checkpoint_checks.check_room(seen.candidate, seen.out)
    wanted = f"{gb(SPARE_BYTES)}; with a checkpoint, room for its output"
    return replace(check_disk(seen.out, 0), wanted=wanted)


def _whole(seen: Surroundings) -> Check:
    try:
        return checkpoint_checks.check_whole(seen.candidate)
    except Fp8Error as problem:
        # Out of reach is not known to be bad; what is not there at all, or no checkpoint, is.
        status: Status = "not checked" if isinstance(problem, CannotRun) else "failed"
        wanted = "a checkpoint: a folder, a file or a Hub id"
        return Check(name="checkpoint", status=status, found=problem.message, wanted=wanted, fix=problem.hint)


def _lm_eval(seen: Surroundings) -> Check:
    return stack_checks.check_package(seen.here, "lm_eval")


EXAMINATIONS: Final = (
    Examination(
        name="processors",
        category="machine",
        asks="how many processors may be used, by affinity and control groups",
        tasks=(),
        make=lambda seen: machine_checks.check_processors(seen.root),
    ),
    Examination(
        name="memory",
        category="machine",
        asks=f"main memory for quantizing with --max-memory {DEFAULT_MAX_MEMORY}, control groups counted",
        tasks=("quantize",),
        make=_memory,
    ),
    Examination(
        name="shared memory",
        category="machine",
        asks="what vLLM needs on more than one GPU (/dev/shm)",
        tasks=ON_VLLM,
        make=lambda seen: machine_checks.check_shared_memory(len(seen.gpus.visible) + len(seen.amd), seen.root),
    ),
    Examination(
        name="output folder",
        category="machine",
        asks="whether an output can be written here, and renamed into its place",
        tasks=("quantize",),
        make=lambda seen: check_folder(seen.out),
    ),
    Examination(
        name="disk space",
        category="machine",
        asks="room for the output",
        tasks=("quantize",),
        make=_disk,
    ),
    Examination(
        name="cache",
        category="machine",
        asks="the folder that models from the Hub are kept in",
        tasks=(),
        make=lambda seen: machine_checks.check_cache(seen.hub),
    ),
    Examination(
        name="temporary files",
        category="machine",
        asks="the folder for temporary files",
        tasks=ON_VLLM,
        make=lambda seen: machine_checks.check_temporary(seen.environ),
    ),
    Examination(
        name="packages",
        category="packages",
        asks="every version this tool asks for",
        tasks=TASKS,
        make=lambda seen: stack_checks.check_packages(seen.here),
    ),
    Examination(
        name="torch",
        category="packages",
        asks="torch, and whether its build can use the GPU",
        tasks=("quantize", "eval on transformers"),
        make=lambda seen: check_torch(seen.here.torch, seen.gpus),
    ),
    Examination(
        name="stack",
        category="packages",
        asks="every version that transformers, llm-compressor, lm-eval and their like ask for",
        tasks=("eval on transformers",),
        make=lambda seen: stack_checks.check_stack(seen.here),
    ),
    Examination(
        name="transformers",
        category="packages",
        asks="whether transformers is installed",
        tasks=("eval on transformers",),
        make=lambda seen: stack_checks.check_package(seen.here, "transformers"),
    ),
    Examination(
        name="compressed-tensors",
        category="packages",
        asks="whether transformers can read what this tool writes",
        tasks=("eval on transformers",),
        make=lambda seen: stack_checks.check_package(seen.here, "compressed-tensors"),
    ),
    Examination(
        name="lm_eval",
        category="packages",
        asks="whether lm-evaluation-harness is installed",
        tasks=("eval on transformers", "eval on vLLM"),
        make=_lm_eval,
    ),
    Examination(
        name="vllm",
        category="vLLM",
        asks="where vLLM lives: this interpreter, the one that is named, or the one on PATH",
        tasks=ON_VLLM,
        make=lambda seen: stack_checks.check_vllm(seen.vllm, seen.here, seen.gpus, seen.amd),
    ),
    Examination(
        name="vllm packages",
        category="vLLM",
        asks="every version vLLM asks for, in its own interpreter",
        tasks=ON_VLLM,
        make=lambda seen: stack_checks.check_vllm_packages(seen.vllm, seen.here, seen.gpus, seen.amd),
    ),
    Examination(
        name="vllm torch",
        category="vLLM",
        asks="whether vLLM's torch can use the GPU",
        tasks=ON_VLLM,
        make=lambda seen: stack_checks.check_vllm_torch(seen.vllm, seen.here, seen.gpus, seen.amd),
    ),
    Examination(
        name="GPU",
        category="GPU",
        asks="the GPUs a process sees, with memory and driver",
        tasks=(),
        make=lambda seen: check_gpus(seen.gpus, seen.amd, hiding(seen.environ)),
    ),
    Examination(
        name="fp8",
        category="GPU",
        asks="what each kind of FP8 does on them under vLLM",
        tasks=ON_VLLM,
        make=lambda seen: gpu_checks.check_fp8(seen.gpus, seen.amd, seen.vllm, seen.root),
    ),
    Examination(
        name="checkpoint",
        category="checkpoint",
        asks="whether files, index and headers of the checkpoint agree",
        tasks=("quantize", "eval on transformers", *ON_VLLM),
        make=_whole,
        of_checkpoint=True,
    ),
    Examination(
        name="serving",
        category="checkpoint",
        asks="in which mode vLLM runs its kind of FP8 here",
        tasks=ON_VLLM,
        make=lambda seen: checkpoint_checks.check_mode(
            seen.candidate, seen.gpus, seen.amd, amx=lambda: has_amx(seen.root)
        ),
        of_checkpoint=True,
    ),
    Examination(
        name="fit",
        category="checkpoint",
        asks="on how many of the GPUs here it fits, and with which context",
        tasks=ON_VLLM,
        make=lambda seen: checkpoint_checks.check_fit(seen.candidate, seen.gpus, seen.amd),
        of_checkpoint=True,
    ),
    Examination(
        name="dialect",
        category="checkpoint",
        asks="whether transformers reads its dialect of FP8 here",
        tasks=("eval on transformers",),
        make=lambda seen: reader_checks.check_reader(seen.candidate, seen.gpus, seen.amd),
        of_checkpoint=True,
    ),
    Examination(
        name="unpacked",
        category="checkpoint",
        asks="memory for transformers, which unpacks FP8 to 16 bits",
        tasks=("eval on transformers",),
        make=lambda seen: checkpoint_checks.check_unpacked(seen.candidate, read_memory(seen.root), seen.gpus),
        of_checkpoint=True,
    ),
    Examination(
        name="hub",
        category="hub",
        asks="the Hub's address, and whether the network is forbidden",
        tasks=(),
        make=lambda seen: machine_checks.check_hub(seen.hub),
    ),
    Examination(
        name="token",
        category="hub",
        asks="whether there is an access token; it is never shown",
        tasks=(),
        make=lambda seen: machine_checks.check_token(seen.hub),
    ),
)
"""Every check, in the order of the report."""


def choose(names: Sequence[str], *, with_checkpoint: bool) -> tuple[Examination, ...]:
    """Return the examinations of these names, in the order of the table; without names, all that can be made.

    `output-folder` is as good as `output folder`, in any case. Raises UsageError for a name that no check has, or
    one that needs a checkpoint when there is none.
    """
    wanted = {_plain(name): name for name in names}
    known = {_plain(examination.name): examination for examination in EXAMINATIONS}
    for plain, name in wanted.items():
        if plain not in known:
            message = f"`{name}` is no check"
            raise UsageError(message, hint="fp8 doctor --list-checks lists them")
        if known[plain].of_checkpoint and not with_checkpoint:
            message = f"the check `{known[plain].name}` looks at a checkpoint"
            raise UsageError(message, hint=f"name one: fp8 doctor CKPT --check {plain}")
    if wanted:
        return tuple(examination for plain, examination in known.items() if plain in wanted)
    return tuple(each for each in EXAMINATIONS if with_checkpoint or not each.of_checkpoint)


def _plain(name: str) -> str:
    return "-".join(name.lower().replace("-", " ").replace("_", " ").split())
