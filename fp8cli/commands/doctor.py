"""`fp8 doctor`: what this machine can do with FP8, task by task, and the command that mends each thing that is amiss.

Request → surroundings, looked at one check after the other → verdicts → report. Nothing is installed, written,
downloaded or loaded; another interpreter is asked what it holds if vLLM lives in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fp8cli.core.doctor.diagnosis import Diagnosed, Prospect, diagnose, judge_tasks
from fp8cli.core.doctor.examinations import Category, Examination, Task, choose
from fp8cli.core.doctor.gpu_checks import ProcessorModes, list_modes
from fp8cli.core.doctor.stack_checks import all_broken_pins, own_environment, vllm_environment
from fp8cli.core.doctor.surroundings import Surroundings
from fp8cli.core.findings import Status
from fp8cli.core.machine.interpreters import Interpreter
from fp8cli.core.machine.pins import BrokenPin
from fp8cli.core.machine.probes import STACK
from fp8cli.errors import ExitCode

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """What to look at."""

    checkpoint: str | None = None
    """A folder or a Hub id; the question is then whether it runs here."""
    checks: tuple[str, ...] = ()
    """Names of the only checks to make; none means all."""
    python: Path | None = None
    """The interpreter vLLM lives in."""


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One verdict."""

    category: Category
    name: str
    status: Status
    found: str
    """What is there; for "not checked", why that is not known."""
    wanted: str
    fix: str | None
    """The command, or the step, that mends it."""
    tasks: tuple[Task, ...]
    """Those that need it to pass."""


@dataclass(frozen=True, kw_only=True)
class InterpreterRow:
    """One interpreter and what it holds of the packages a result depends on."""

    python: Path
    named_by: str
    version: str | None
    packages: Mapping[str, str | None]
    """None: not installed."""
    broken: tuple[BrokenPin, ...]
    problem: str | None
    """Why nothing is known about it."""


@dataclass(frozen=True, kw_only=True)
class DoctorReport:
    """All verdicts. The last four are empty when only named checks were made."""

    checkpoint: str | None
    checks: tuple[CheckRow, ...]
    tasks: tuple[Prospect, ...]
    modes: tuple[ProcessorModes, ...]
    interpreters: tuple[InterpreterRow, ...]
    environments: tuple[str, ...]
    """Commands that make an environment for this tool, and one for vLLM."""

    @property
    def exit_code(self) -> ExitCode:
        """Negative when something failed; a warning is none."""
        failed = any(check.status == "failed" for check in self.checks)
        return ExitCode.NEGATIVE if failed else ExitCode.DONE


@dataclass(frozen=True, kw_only=True)
class CheckListing:
    """One check that could be made."""

    name: str
    category: Category
    asks: str
    tasks: tuple[Task, ...]
    of_checkpoint: bool


@dataclass(frozen=True, kw_only=True)
class ChecksReport:
    """Every check there is."""

    checks: tuple[CheckListing, ...]


def list_checks() -> ChecksReport:
    """Return every check there is, without making any."""
    return ChecksReport(checks=tuple(map(_listing, choose((), with_checkpoint=True))))


def run(request: DoctorRequest, seen: Surroundings | None = None) -> DoctorReport:
    """Make the checks. Raises UsageError for a check there is none of; nothing on the machine makes it raise.

    seen: another machine than this one, for tests.
    """
    if seen is None:
        seen = Surroundings(checkpoint=request.checkpoint, python=request.python)
    chosen = choose(request.checks, with_checkpoint=seen.checkpoint is not None)
    diagnosed = diagnose(seen, chosen)
    everything = not request.checks
    return DoctorReport(
        checkpoint=seen.checkpoint,
        checks=tuple(map(_row, diagnosed)),
        tasks=judge_tasks(diagnosed) if everything else (),
        modes=_known(lambda: list_modes(seen.gpus, seen.amd, seen.root)) if everything else (),
        interpreters=tuple(map(_interpreter, _interpreters(seen))) if everything else (),
        environments=_known(lambda: (own_environment(seen.here), vllm_environment(seen.here, seen.gpus, seen.amd)))
        if everything
        else (),
    )


def _listing(examination: Examination) -> CheckListing:
    return CheckListing(
        name=examination.name,
        category=examination.category,
        asks=examination.asks,
        tasks=examination.tasks,
        of_checkpoint=examination.of_checkpoint,
    )


def _row(diagnosed: Diagnosed) -> CheckRow:
    check = diagnosed.check
    return CheckRow(
        category=diagnosed.category,
        name=check.name,
        status=check.status,
        found=check.found,
        wanted=check.wanted,
        fix=check.fix,
        tasks=diagnosed.tasks,
    )


def _known(ask: Callable[[], tuple[T, ...]]) -> tuple[T, ...]:
    """Return what is found out, or nothing where a check has already said that it cannot be."""
    try:
        return ask()
    except Exception:  # noqa: BLE001 - as in `environment.guard`: a fact about the machine, not a reason to stop
        return ()


def _interpreters(seen: Surroundings) -> tuple[Interpreter, ...]:
    return (seen.here,) if seen.vllm is None or seen.vllm is seen.here else (seen.here, seen.vllm)


def _interpreter(interpreter: Interpreter) -> InterpreterRow:
    return InterpreterRow(
        python=interpreter.python,
        named_by=interpreter.named_by,
        version=interpreter.version,
        packages={
            name: next(filter(None, map(interpreter.version_of, distributions)), None)
            for name, distributions in (("fp8cli", ("fp8cli",)), *STACK.items())
        },
        broken=_known(lambda: all_broken_pins(interpreter)),
        problem=interpreter.problem,
    )
