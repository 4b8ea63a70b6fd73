"""An evaluation of a checkpoint as it would be under a scheme: what is asked for, refused, planned and put on record.

Only transformers can do it: between its layers stands Python, where values can be rounded. Nothing that is simulated
ever answers for a checkpoint that exists, because the simulation is a part of every key.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

from fp8cli.core.calibrating.llm_compressor import forced_environment
from fp8cli.core.calibrating.ordering import (
    CalibrationOptions,
    CalibrationOrder,
    kind_of_device,
    order_calibration,
)
from fp8cli.core.calibrating.outlook import check_package
from fp8cli.core.evaluating.request import EvaluationRequest
from fp8cli.core.evaluating.subject import Subject
from fp8cli.core.machine.interpreters import Interpreter
from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.simulating.modules import EVERY_LINEAR, ModuleOptions, check_modules
from fp8cli.core.simulating.planning import SimulationPlan, plan_simulation
from fp8cli.core.simulating.words import modifiers_of, simulated_scheme
from fp8cli.errors import BadInput, CannotRun, UsageError
from fp8cli.formats.run_record import SimulationFacts
from fp8cli.schemes import FP8
from fp8cli.simulator.job import SimulationJob
from fp8cli.simulator.scheme import SimulatedScheme

SIMULATION_VERSION: Final = 1
"""Raised when the simulator changes what it rounds to."""

_WORDS: Final[Mapping[str, str]] = {
    "data": "--calibration-data",
    "column": "--text-column",
    "samples": "--num-calibration-samples",
    "max_seq_length": "--max-seq-length",
    "seed": "--calibration-seed",
}


@dataclass(frozen=True, kw_only=True)
class SimulationOrder:
    """A simulation that nothing speaks against, as far as headers and data go."""

    plan: SimulationPlan
    data: CalibrationOrder | None
    """None: the scheme needs none."""
    llm_compressor: str | None = None
    """Its version, which decides a result with modifiers; None without them, and until `settle` has looked."""

    @property
    def job(self) -> SimulationJob:
        """What the worker is told."""
        samples = None
        if self.data is not None:
            samples = self.data.seen.request(
                samples=self.data.samples,
                max_seq_length=self.data.max_seq_length,
                seed=self.data.seed,
                chat_template=None,
            )
        return SimulationJob(
            scheme=self.plan.scheme.name, weights=self.plan.weights, dtype=self.plan.dtype, samples=samples
        )

    @property
    def deciding(self) -> Mapping[str, object]:
        """Everything about it that decides a result, for the key."""
        data = None if self.data is None else [self.data.seen.fingerprint, self.data.seen.kind]
        deciding = {"version": SIMULATION_VERSION, "job": asdict(self.job), "data": data}
        # Not among those of a plain simulation, so that its records answer as ever.
        return deciding if self.llm_compressor is None else {**deciding, "llmcompressor": self.llm_compressor}

    def environment(self, device: str | None) -> Mapping[str, str]:
        """Return what the worker's environment must hold for it. device: as --device has it; None: any."""
        return forced_environment(kind_of_device(device or "auto")) if self.plan.scheme.modified else {}

    def facts(self, outcome: Mapping[str, object] | None) -> SimulationFacts:
        """Return what the record says of it. outcome: what the worker says of the data."""
        tokens, shown = (None if outcome is None else outcome.get(name) for name in ("tokens", "token_ids_sha256"))
        modules = self.plan.modules
        plain = SimulationFacts(
            scheme=self.plan.scheme.name,
            predicted_bytes=self.plan.predicted_bytes,
            targets=modules.targets,
            ignore=modules.ignore,
            default_ignore=modules.default_ignore,
            weights=len(self.plan.weights),
            llm_compressor=self.llm_compressor,
        )
        if self.data is None:
            return plain
        return replace(
            plain,
            data=self.data.data,
            source=self.data.seen.source,
            data_fingerprint=self.data.seen.fingerprint,
            column=self.data.column,
            samples=self.data.samples,
            max_seq_length=self.data.max_seq_length,
            seed=self.data.seed,
            tokens=tokens if isinstance(tokens, int) else None,
            token_ids_sha256=shown if isinstance(shown, str) else None,
        )


def check_simulation(request: EvaluationRequest) -> SimulatedScheme | None:
    """Return the scheme that is to be simulated, None for an evaluation of what is there.

    Raises UsageError for a word that stands for nothing, a backend that cannot, and options that nothing needs.
    """
    named = [word for field, word in _WORDS.items() if getattr(request.calibration, field) is not None]
    if request.simulate is None:
        idle = (*named, *request.modifiers.words, *request.modules.given)
        if idle:
            message = f"{' and '.join(idle)} would have no effect: nothing is simulated"
            raise UsageError(message, hint="leave it out, or simulate a scheme: --simulate fp8")
        return None
    scheme = simulated_scheme(request.simulate, request.modifiers)
    check_modules(request.modules, scheme)
    if request.server is not None or request.backend in {"vllm", "server"}:
        where = "vLLM computes" if request.backend == "vllm" else "a server computes"
        message = f"{scheme.name} can be simulated on transformers alone: what {where} cannot be reached"
        hint = "use --backend hf, or write the checkpoint with fp8 quantize and evaluate that"
        raise UsageError(message, hint=hint)
    if named and not scheme.needs_data:
        message = f"{' and '.join(named)} would have no effect: {scheme.name} needs no data"
        raise UsageError(message, hint="leave it out, or simulate what needs data: --simulate fp8, or +kv")
    return scheme


def order_simulation(request: EvaluationRequest, subject: Subject) -> SimulationOrder | None:
    """Plan the simulation of a checkpoint and look at its data; None where nothing is simulated.

    Raises BadInput for a checkpoint that is quantized already, and what plans and data are refused with.
    """
    scheme = check_simulation(request)
    if scheme is None:
        return None
    if subject.quantization is not None:
        message = (
            f"`{subject.name}` is quantized already ({subject.quantization}), so {scheme.name} cannot be simulated"
        )
        raise BadInput(message, hint="simulate from the original checkpoint; fp8 eval without --simulate runs this one")
    plan = plan_simulation(subject.checkpoint, scheme, request.modules)
    return SimulationOrder(plan=plan, data=_order_data(request.calibration, scheme, subject))


def settle(order: SimulationOrder, worker: Interpreter, dtype: str | None) -> SimulationOrder:
    """Return the order with what decides it in the interpreter that will do it. dtype: to evaluate in, torch's name.

    Raises CannotRun where that has no llm-compressor and the scheme asks for it, UsageError for a dtype in which no
    checkpoint is written.
    """
    scheme = order.plan.scheme
    if not scheme.modified:
        return order
    check = check_package(None, worker)
    if check.status == "failed":
        raise CannotRun(f"{check.name}: {check.found}, wanted {check.wanted}", hint=check.fix)
    if dtype != order.plan.dtype:
        message = f"{scheme.name} is what llm-compressor makes of the model in {order.plan.dtype}, not in {dtype}"
        raise UsageError(message, hint="leave --dtype out, or write the checkpoint and evaluate that: fp8 quantize")
    return replace(order, llm_compressor=worker.version_of(check.name))


def modules_of(facts: SimulationFacts | None) -> ModuleOptions:
    """Return the options of modules with which a recorded simulation is made again."""
    if facts is None:
        return EVERY_LINEAR
    return ModuleOptions(targets=facts.targets, ignore=facts.ignore, default_ignore=facts.default_ignore)


def options_of(facts: SimulationFacts | None) -> CalibrationOptions:
    """Return the options of data with which a recorded simulation is made again."""
    if facts is None or facts.source is None:
        return CalibrationOptions()
    return CalibrationOptions(
        data=facts.data,
        column=facts.column,
        samples=facts.samples,
        max_seq_length=facts.max_seq_length,
        seed=facts.seed,
    )


def _order_data(options: CalibrationOptions, scheme: SimulatedScheme, subject: Subject) -> CalibrationOrder | None:
    if not scheme.needs_data:
        return None
    # As `fp8 quantize` would take the same data for the same scales.
    static = scheme.activations is not None and not scheme.activations.dynamic
    needs = Choice(scheme=FP8 if static else None, kv_cache=scheme.kv_cache, modifiers=modifiers_of(scheme))
    return order_calibration(options, needs, model=subject.path)
