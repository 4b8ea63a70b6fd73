"""What the user asked `fp8 explore` for, and what is refused of it before any model is looked at."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fp8cli.core.exploring.evaluation_job import TaskOptions
from fp8cli.core.quantizing.modifiers import NO_MODIFIERS, Modifiers
from fp8cli.core.sampling.data import BUNDLED_MODEL, SEED_DEFAULT, CalibrationData, read_calibration
from fp8cli.core.simulating.modules import EVERY_LINEAR, ModuleOptions
from fp8cli.errors import BadInput, UsageError

SAMPLES_DEFAULT: Final = 256
LENGTH_DEFAULT: Final = 512
POSITIONS_DEFAULT: Final = 8192

_DEVICE: Final = re.compile(r"auto|cpu|cuda(?::\d{1,3})?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ExploreRequest:
    """What the user asked for."""

    model: str
    revision: str | None = None
    schemes: tuple[str, ...] = ()
    """Words for forms, see `core.simulating.words`; nothing: all of them."""
    modifiers: Modifiers = NO_MODIFIERS
    """What further forms have, one for each that can be written and has none yet."""
    modules: ModuleOptions = EVERY_LINEAR
    """What is rounded."""
    data: str | None = None
    """See `read_calibration`; so for `column`, `samples` and `seed`."""
    column: str | None = None
    samples: int = SAMPLES_DEFAULT
    seed: int = SEED_DEFAULT
    max_seq_length: int = LENGTH_DEFAULT
    """Tokens of a text; what is longer is cut."""
    positions: int = POSITIONS_DEFAULT
    """At most so many next-token distributions are compared."""
    tasks: TaskOptions = field(default_factory=TaskOptions)
    python: Path | None = None
    """An interpreter with transformers, and with lm-eval for tasks; None: this one."""
    device: str = "auto"
    download_bars: bool = True


def check_request(request: ExploreRequest) -> None:
    """Refuse numbers and devices that make no sense. Raises UsageError."""
    if not _DEVICE.fullmatch(request.device):
        raise UsageError(f"`{request.device}` is no device", hint="--device takes auto, cpu, cuda or cuda:N")
    numbers = (
        ("--num-calibration-samples", request.samples, 2, "half of the texts give scales, half are measured on"),
        ("--max-seq-length", request.max_seq_length, 2, "a text of 1 token has nothing to predict"),
        ("--positions", request.positions, 1, "leave it out to compare 8,192"),
    )
    for option, value, least, hint in numbers:
        if value < least:
            raise UsageError(f"{option} is {value:,}, and must be {least} or more", hint=hint)


def read_texts(request: ExploreRequest, local: Path | None) -> CalibrationData:
    """Return the texts. Raises UsageError where there are none, BadInput for such as are of no use."""
    if request.data is None and (local is None or local.resolve() != BUNDLED_MODEL.resolve()):
        message = f"there are no texts to measure `{request.model}` on"
        raise UsageError(message, hint="name some that are like what it will read: --calibration-data texts.jsonl")
    try:
        return read_calibration(
            request.data, model=local, column=request.column, samples=request.samples, seed=request.seed
        )
    except (OSError, RuntimeError) as problem:
        # No name of a file at all: thousands of characters, or the home of nobody (`~nobody/texts.jsonl`).
        message = f"`{request.data}` is no data: {(isinstance(problem, OSError) and problem.strerror) or problem}"
        raise BadInput(message, hint="fp8 explore --help says what --calibration-data takes") from problem
