"""Which of lm-eval's backends evaluates, and in which interpreter.

`auto` is the same for every checkpoint on a machine, because results of different backends cannot be compared:
a server if one is named; vLLM if there is a GPU that takes FP8 and an interpreter that has vLLM and lm-eval; else
transformers (`hf`). Without a GPU vLLM starts slower than small models are evaluated, and large ones are for GPUs.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from fp8cli.core.doctor.diagnosis import diagnose
from fp8cli.core.doctor.environment import Check, check_torch, guard
from fp8cli.core.doctor.examinations import Task, choose
from fp8cli.core.doctor.stack_checks import check_package
from fp8cli.core.doctor.surroundings import Surroundings
from fp8cli.core.evaluating.request import EvaluationRequest
from fp8cli.core.evaluating.subject import Subject
from fp8cli.core.machine.interpreters import Interpreter, find_vllm
from fp8cli.core.machine.probes import STACK
from fp8cli.core.serving.modes import WEIGHT_ONLY_CAPABILITY
from fp8cli.errors import CannotRun
from fp8cli.worker.protocol import Backend

VERSIONS: Final = ("lm_eval", "transformers", "torch", "vllm", "compressed-tensors", "datasets")
"""Packages that a result depends on."""

_TASK: Final[dict[Backend, Task]] = {"hf": "eval on transformers", "vllm": "eval on vLLM"}
_OF_LM_EVAL: Final = "lm_eval"
_OF_TORCH: Final = "torch"
_OF_MODE: Final = "serving"
_OF_FORMAT: Final = "compressed-tensors"
_WORTH_SAYING: Final = frozenset({"checkpoint", "dialect", "fit", "torch", "unpacked", "vllm torch"})
"""Checks whose warnings are about this evaluation; the rest, such as pins that work all the same, is for fp8 doctor."""


@dataclass(frozen=True, kw_only=True)
class Workplace(Surroundings):
    """The machine as the worker meets it."""

    backend: Backend
    why: str
    """Why this backend, as the end of a sentence."""

    @cached_property
    def here(self) -> Interpreter:
        """The interpreter that transformers is to be looked for in: the one that --python names, else this one."""
        own = super().here
        if self.backend == "vllm" or self.python is None:
            return own
        # `find_vllm` takes whatever is named, with vLLM or without.
        return find_vllm(self.python, own, self.environ, seconds=self.probe_seconds) or own

    @property
    def worker(self) -> Interpreter:
        """The interpreter the worker runs in. Raises CannotRun if there is no such one."""
        found = self.vllm if self.backend == "vllm" else self.here
        if found is None:
            check = next(each for each in diagnose_backend(self) if each.name == "vllm")
            raise _refusal(check)
        if found.problem is not None:
            raise CannotRun(f"`{found.python}` ({found.named_by}): {found.problem}", hint="fp8 doctor says more")
        return found

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU takes part, as far as the worker's torch can use one."""
        build = self.worker.torch
        nvidia = bool(self.gpus.visible) and build is not None and build.cuda is not None
        return nvidia or (bool(self.amd) and build is not None and build.hip is not None)

    def versions(self) -> dict[str, str | None]:
        """Return the versions of the worker's packages that a result depends on, without importing any."""
        found: dict[str, str | None] = {}
        for name in VERSIONS:
            names = STACK.get(name, (name,))
            found[name] = next(filter(None, map(self.worker.version_of, names)), None)
        return found


def choose_workplace(request: EvaluationRequest, subject: Subject) -> Workplace:
    """Choose backend and interpreter. Raises CannotRun if the one that is asked for is not there."""
    checkpoint = None if subject.path is None else str(subject.path)
    python = None if request.python is None else Path(request.python)

    def place(backend: Backend, why: str) -> Workplace:
        return Workplace(checkpoint=checkpoint, python=python, backend=backend, why=why)

    if request.server is not None:
        return place("server", "a server is named")
    if request.simulate is not None:
        return place("hf", "a simulation rounds inside it")
    if request.backend in {"hf", "vllm"}:
        return place("vllm" if request.backend == "vllm" else "hf", "the command, or the run of the base, says so")
    return place(*_automatic(place("vllm", "")))


def _automatic(seen: Workplace) -> tuple[Backend, str]:
    if not seen.gpus.visible and not seen.amd:
        return "hf", seen.gpus.unknown or "there is no GPU"
    old = next((gpu for gpu in seen.gpus.visible if gpu.capability < WEIGHT_ONLY_CAPABILITY), None)
    if old is not None:
        return "hf", f"vLLM takes no FP8 on {old.name}"
    found = seen.vllm
    if found is None or found.vllm is None:
        return "hf", "no interpreter with vLLM was found"
    if found.version_of(_OF_LM_EVAL) is None:
        return "hf", f"lm_eval is not installed beside vLLM in `{found.python}`"
    return "vllm", f"there is a GPU, and vLLM in `{found.python}`"


def diagnose_backend(place: Workplace) -> tuple[Check, ...]:
    """Make the doctor's checks for the backend. Never raises."""
    if place.backend == "server":
        return (check_package(place.here, _OF_LM_EVAL),)
    task = _TASK[place.backend]
    chosen = choose((), with_checkpoint=place.checkpoint is not None)
    ours = {_OF_LM_EVAL, *([_OF_TORCH] if place.backend == "hf" else [])}
    made = diagnose(place, [each for each in chosen if task in each.tasks and each.name not in ours])
    return (*(each.check for each in made), *_of_worker(place, ours))


def _of_worker(place: Workplace, names: Collection[str]) -> Iterator[Check]:
    """Make those checks that the doctor makes of its own interpreter, of the worker's."""
    worker = place.vllm if place.backend == "vllm" else place.here
    if worker is None:
        return
    if _OF_TORCH in names:
        python = None if place.python is None else worker.python
        yield guard(_OF_TORCH, lambda: check_torch(worker.torch, place.gpus, python=python))
    yield guard(_OF_LM_EVAL, lambda: check_package(worker, _OF_LM_EVAL))


def examine(place: Workplace, subject: Subject) -> tuple[str, ...]:
    """Refuse what cannot work, by the doctor's checks, and return what else they have to say.

    Raises CannotRun with the first check that failed and what mends it.
    """
    said: list[str] = []
    for check in diagnose_backend(place):
        # Without it transformers reads everything but what it wrote.
        needless = check.name == _OF_FORMAT and (
            subject.declaration is None or subject.declaration.method != _OF_FORMAT
        )
        if check.status == "failed" and not needless:
            raise _refusal(check)
        if check.name == _OF_MODE and subject.is_fp8:
            said.append(f"FP8 here: {check.found}")
        elif check.status == "warning" and check.name in _WORTH_SAYING:
            said.append(f"{check.name}: {check.found}, wanted {check.wanted}")
    return tuple(said)


def _refusal(check: Check) -> CannotRun:
    return CannotRun(f"{check.name}: {check.found}, wanted {check.wanted}", hint=check.fix)
