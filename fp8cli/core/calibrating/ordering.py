"""From what the user said of a calibration to the order for one: data looked at, defaults filled in, patterns resolved.

Whatever can be refused without a model is refused here.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from fp8cli.core.calibrating.calibration import LENGTH_DEFAULT, CalibrationRequest
from fp8cli.core.model.multimodal import TOWERS
from fp8cli.core.model.patterns import LINEAR, matches
from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.sampling.data import SAMPLES_DEFAULT, SEED_DEFAULT, CalibrationData, read_calibration
from fp8cli.errors import BadInput, UsageError

_WORDS: Final[Mapping[str, str]] = {
    "data": "--calibration-data",
    "column": "--text-column",
    "samples": "--num-calibration-samples",
    "max_seq_length": "--max-seq-length",
    "seed": "--calibration-seed",
    "python": "--python",
    "offload": "--offload",
    "processes": "--calibration-processes",
}
Offload = Literal["auto", "disk", "none"]
OFFLOADS: Final[tuple[Offload, ...]] = get_args(Offload)

_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_WEIGHT: Final = ".weight"


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """What the user said; None: nothing."""

    data: str | None = None
    """A file, or a data set of the Hub; see `data.read_calibration`."""
    column: str | None = None
    samples: int | None = None
    max_seq_length: int | None = None
    """Tokens of a sample."""
    seed: int | None = None
    python: Path | None = None
    """An interpreter with llm-compressor."""
    offload: str | None = None
    """Where the weights lie meanwhile: `disk`, `none` (in memory), or `auto`."""
    processes: int | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrationOrder:
    """A calibration that nothing speaks against, as far as data and options go."""

    data: str | None
    column: str | None
    samples: int
    max_seq_length: int
    seed: int
    python: Path | None
    offload: Offload
    """`auto` until it is known how much memory there is; see `outlook.settle`."""
    offload_why: str | None
    """The reason for a place that the user did not choose, as the end of a sentence."""
    processes: int
    seen: CalibrationData
    placed: bool = False
    """Whether the processes go to the nodes of a cluster."""
    process_bytes: int = 0
    """Of main memory, that one process takes at the least; 0 until `outlook.settle`."""

    def request(
        self,
        plan: Plan,
        *,
        model: Path,
        folder: Path,
        targets: Sequence[str],
        ignore: Sequence[str],
        device: str,
    ) -> CalibrationRequest:
        """Return the request for the scales of a plan. model: its folder. device: as --device has it."""
        modules = [tensor.name.removesuffix(_WEIGHT) for tensor in plan.tensors if tensor.name.endswith(_WEIGHT)]
        if any(tensor.role in TOWERS for tensor in plan.tensors):
            # transformers has other names for the modules than the disk; what it finds too much is not `wanted`.
            targets, ignore = (LINEAR,), (*ignore, *(each for each in plan.ignored_modules if each.startswith("re:")))
        return CalibrationRequest(
            model=model,
            dtype=plan.dtype,
            scheme=plan.scheme,
            kv_cache=plan.kv_cache,
            folder=folder,
            targets=resolve_patterns(targets, modules),
            ignore=resolve_patterns(ignore, modules),
            data=self.data,
            column=self.column,
            samples=self.samples,
            seed=self.seed,
            max_seq_length=self.max_seq_length,
            device=kind_of_device(device),
            offload=self.offload == "disk",
            processes=self.processes,
            placed=self.placed,
            python=self.python,
            wanted=tuple(scale.name for scale in plan.calibrated),
        )


def order_calibration(
    options: CalibrationOptions, choice: Choice, *, model: Path | None, on_cluster: bool = False
) -> CalibrationOrder | None:
    """Fill in the defaults and look at the data; None where nothing needs calibration.

    model: the folder of the checkpoint, if it is one, for its own data. on_cluster: whether several processes go to the
    nodes of a cluster. Raises UsageError for options that make no sense and where data is wanting, BadInput for data
    that is of no use.
    """
    if not choice.needs_calibration:
        named = [word for field, word in _WORDS.items() if getattr(options, field) is not None]
        if named:
            message = f"{' and '.join(named)} would have no effect: `{choice.name}` needs no data"
            raise UsageError(message, hint="leave it out, or ask for what needs data: --scheme FP8, --kv-cache fp8")
        return None
    length = LENGTH_DEFAULT if options.max_seq_length is None else options.max_seq_length
    if length < 1:
        message = f"--max-seq-length {length:,} leaves nothing of a sample"
        raise UsageError(message, hint="give a number of tokens, such as --max-seq-length 2048")
    samples = SAMPLES_DEFAULT if options.samples is None else options.samples
    seed = SEED_DEFAULT if options.seed is None else options.seed
    processes = 1 if options.processes is None else options.processes
    if not 1 <= processes <= max(samples, 1):
        message = f"--calibration-processes {processes:,} cannot share {samples:,} samples"
        raise UsageError(message, hint="give each a sample at least, such as --calibration-processes 2")
    try:
        seen = read_calibration(options.data, model=model, column=options.column, samples=samples, seed=seed)
    except (OSError, RuntimeError) as problem:
        # No name of a file at all: thousands of characters, or the home of nobody (`~nobody/texts.jsonl`).
        message = f"`{options.data}` is no data: {(isinstance(problem, OSError) and problem.strerror) or problem}"
        raise BadInput(message, hint="fp8 quantize --help says what --calibration-data takes") from problem
    return CalibrationOrder(
        data=options.data,
        column=options.column,
        samples=samples,
        max_seq_length=length,
        seed=seed,
        python=None if options.python is None else interpreter_at(options.python),
        offload=_offload(options.offload, processes),
        offload_why=None if processes == 1 else f"{processes:,} processes share them",
        processes=processes,
        seen=seen,
        placed=on_cluster and processes > 1,
    )


def _offload(word: str | None, processes: int) -> Offload:
    chosen: Offload | None = next((each for each in OFFLOADS if each == (word or "auto").lower()), None)
    if chosen is None:
        raise UsageError(f"`{word}` is no place for weights", hint=f"--offload takes {', '.join(OFFLOADS)}")
    if processes == 1:
        return chosen
    if chosen == "none":
        message = f"{processes:,} processes would each load the model, which --offload none asks for"
        raise UsageError(message, hint="leave --offload out: they share the checkpoint's shards on disk")
    return "disk"


def environment_of(device: str, environ: Mapping[str, str] = os.environ) -> Mapping[str, str]:
    """Return the environment in which a calibrator's first GPU is the one that `--device cuda:N` names."""
    _, _, number = device.partition(":")
    if not number:
        return environ
    visible = [name.strip() for name in environ.get(_VISIBLE, "").split(",") if name.strip()]
    place = int(number)
    return {**environ, _VISIBLE: visible[place] if place < len(visible) else number}


def kind_of_device(device: str) -> Literal["auto", "cpu", "cuda"]:
    """Return what --device says without the number of a GPU."""
    match device.partition(":")[0]:
        case "cpu":
            return "cpu"
        case "cuda":
            return "cuda"
        case _:
            return "auto"


def resolve_patterns(patterns: Sequence[str], modules: Sequence[str]) -> tuple[str, ...]:
    """Return patterns as llm-compressor takes them: it knows names and `re:`, but no globs."""
    resolved: dict[str, None] = {}
    for pattern in patterns:
        if pattern == LINEAR or pattern.startswith("re:"):
            resolved[pattern] = None
        elif any(sign in pattern for sign in "*?["):
            resolved.update(dict.fromkeys(module for module in modules if matches(pattern, module)))
        else:
            resolved[pattern.removesuffix(_WEIGHT)] = None
    return tuple(resolved)


def interpreter_at(python: Path) -> Path:
    """Accept the folder of an environment for the interpreter in it."""
    path = python.expanduser()
    return path / "bin" / "python" if path.is_dir() else path
