"""From a plan that quantizes everything and a budget to the groups that stay in 16 bits.

With data the measurer measures and chooses, in a process of its own; without, the compiled kernel looks at the
weights. What was found is kept in the folder of the work, under a key of everything it depends on, so that a run that
was cut off later need not measure again.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from fp8cli import __version__
from fp8cli.core.budgeting.assembling import UNMEASURED, assemble
from fp8cli.core.budgeting.groups import Group, find_groups
from fp8cli.core.budgeting.ordering import POSITIONS, REFERENCE_BYTES, BudgetOrder
from fp8cli.core.budgeting.report import BudgetReport
from fp8cli.core.budgeting.weight_choice import choose_by_weights, decibels, worst_ratio
from fp8cli.core.budgeting.weight_noise import measure_weights
from fp8cli.core.budgeting.work_place import WorkPlace, open_work_place
from fp8cli.core.calibrating.ordering import environment_of
from fp8cli.core.doctor.environment import Check, guard
from fp8cli.core.inspection.reading import BytesRead, ReadingBegins
from fp8cli.core.measuring.measurement import measure
from fp8cli.core.measuring.measuring_events import MeasuringEvent
from fp8cli.core.measuring.outlook import check_memory, estimate_memory
from fp8cli.core.model.modeling import refuse_unknown
from fp8cli.core.model.multimodal import refuse_unless_it_predicts
from fp8cli.core.model.roster import Roster
from fp8cli.core.model.selection import rules_for
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import Resources
from fp8cli.core.simulating.words import modified
from fp8cli.errors import CannotRun, Interrupted
from fp8cli.formats.checkpoint import Checkpoint, LocalFolder
from fp8cli.formats.safetensors import DTYPES
from fp8cli.formats.staging import disk_errors
from fp8cli.measurer.budget_protocol import BudgetGroup, BudgetWork, Goal
from fp8cli.measurer.protocol import MeasureJob
from fp8cli.simulator.scheme import SIMULATED, SimulatedScheme, with_kv_cache

MOST_BESIDES: Final = 66
"""Sets that may be measured besides two for every group: the ends, the curve, the bisection, neighbours."""

BudgetEvent = MeasuringEvent | ReadingBegins | BytesRead
Notify = Callable[[BudgetEvent], None]

Found = Mapping[str, Any]
"""As `measurer.budget_protocol` has it."""


@dataclass(frozen=True, kw_only=True)
class BudgetRequest:
    """What to decide, and with what."""

    order: BudgetOrder
    checkpoint: Checkpoint
    folder: LocalFolder
    """Of the checkpoint."""
    plan: Plan
    """That quantizes all that may be."""
    state: Mapping[str, object]
    """Of the checkpoint's files: another one was measured otherwise."""
    resources: Resources
    out: Path
    """What becomes of the plan; the work is done beside it."""
    restart: bool
    """Whether what an unfinished run found is thrown away."""
    dry_run: bool
    """Whether nothing is to be kept."""


def decide(request: BudgetRequest, notify: Notify) -> BudgetReport:
    """Choose what stays in 16 bits.

    Raises CannotRun where no choice meets the budget, or all of it would stay as it is; what `core.measuring` raises
    where nothing can be measured; Interrupted on Ctrl-C, which leaves nothing behind.
    """
    with open_work_place(request.out, restart=request.restart, dry_run=request.dry_run) as place:
        return _decide(request, place, notify)


def check_budget(order: BudgetOrder, plan: Plan) -> tuple[Check, ...]:
    """Judge whether the choice can be made here. Never raises."""
    if order.data is None:
        return ()
    memory = estimate_memory(plan, order.max_seq_length)
    if order.modifiers.names:
        # One copy is prepared for everything, and one for a single set. Where scales are moved, both keep the weights
        # in 16 bits too, which are no longer the model's.
        moved = bool(replace(order.modifiers, gptq=False).names)
        memory = estimate_memory(plan, order.max_seq_length, copies=2, rounded=2 if moved else 0)
    return (guard("memory", lambda: check_memory(memory)),)


def _decide(request: BudgetRequest, place: WorkPlace, notify: Notify) -> BudgetReport:
    begun = time.monotonic()
    roster = _roster(request.checkpoint)
    if request.order.data is not None:
        refuse_unless_it_predicts(roster.rules, "measured on texts")
        refuse_unknown(roster.rules, "measured on texts")
    fixed, groups = _split(request, roster)
    goal = _goal(request, fixed, groups)
    key = _key(request, groups, goal)
    found = place.known(key)
    known = found is not None
    if found is None:
        found = _find(request, place, groups, goal, notify)
        with disk_errors(request.out):
            place.keep(key, found)
    report = assemble(
        request.order,
        request.plan,
        sorted(roster.modules),
        (*fixed, *groups),
        found,
        fixed=len(fixed),
        known=known,
        seconds=time.monotonic() - begun,
    )
    if report is None or all(group.kept for group in report.groups):
        place.leave_nothing()
        raise (_unmet if report is None else _all_kept)(request, found, groups)
    return report


def _roster(checkpoint: Checkpoint) -> Roster:
    tensors = {info.name: (info.dtype, info.shape) for info in checkpoint.tensors.values()}
    return Roster(config=checkpoint.config, tensors=tensors, rules=rules_for(checkpoint.config, tensors))


def _split(request: BudgetRequest, roster: Roster) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Return the groups that stay without asking, for they save nothing, and those that are to be decided."""
    groups = find_groups(request.plan, request.checkpoint, roster)
    fixed = tuple(group for group in groups if group.saved_bytes <= 0)
    free = tuple(group for group in groups if group.saved_bytes > 0)
    if not free:
        message = "quantizing saves no bytes of any Linear of this model"
        raise CannotRun(message, hint="fp8 quantize MODEL --dry-run --details shows what each takes")
    return fixed, free


def _goal(request: BudgetRequest, fixed: Sequence[Group], groups: Sequence[Group]) -> Goal:
    """Return the goal of a search: for a size, the bytes that what is kept may cost. Raises CannotRun for none."""
    budget, plan = request.order.budget, request.plan
    if budget.kind != "size":
        return Goal(kind=budget.kind, value=budget.value)
    # Both offsets of a tensor in a header may gain a digit where more lies before it, and each header is padded to 8.
    headers = sum(2 * len(shard.header.tensors) + 8 for shard in plan.shards)
    least = plan.bytes_written + sum(group.saved_bytes for group in fixed) + headers
    room = int(budget.value) - least
    if room < 0:
        message = f"{budget.said} is {int(budget.value):,} bytes, and with every Linear in FP8 the files take {least:,}"
        raise CannotRun(message, hint=f"ask for --target-size {least} or more, or for a smaller model")
    if room >= sum(group.saved_bytes for group in groups):
        message = f"{budget.said} is {int(budget.value):,} bytes, which the model takes with every Linear in 16 bits"
        raise CannotRun(message, hint="it needs no quantization for that; ask for less, or for --max-kl")
    return Goal(kind="size", value=room)


def _key(request: BudgetRequest, groups: Sequence[Group], goal: Goal) -> str:
    order, plan = request.order, request.plan
    data = None if order.data is None else (order.data.fingerprint, order.samples, order.max_seq_length, order.seed)
    parts = [
        __version__,
        dict(request.state),
        plan.fingerprint(),
        asdict(_scheme(request)),
        [group.name for group in groups],
        asdict(goal),
        data,
        POSITIONS,
        request.resources.device,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _find(request: BudgetRequest, place: WorkPlace, groups: Sequence[Group], goal: Goal, notify: Notify) -> Found:
    try:
        with disk_errors(request.out):
            if request.order.data is None:
                return _look_at_weights(request, groups, goal, notify)
            return _measure(request, place.folder, groups, goal, notify)
    except KeyboardInterrupt:
        message = "interrupted while weights were measured, of which nothing is kept"
        raise Interrupted(message, hint="begin again with") from None
    except Interrupted:
        message = "interrupted while sensitivities were measured, of which nothing is kept"
        raise Interrupted(message, hint="fewer or shorter texts take less time; begin again with") from None


def _measure(request: BudgetRequest, work: Path, groups: Sequence[Group], goal: Goal, notify: Notify) -> Found:
    order, plan, device = request.order, request.plan, request.resources.device
    assert order.data is not None  # noqa: S101 - see `_find`
    job = MeasureJob(
        model=str(request.folder.path.absolute()),
        dtype=str(DTYPES[plan.dtype].torch_name),
        device=device.partition(":")[0],
        samples=order.data.request(
            samples=order.samples, max_seq_length=order.max_seq_length, seed=order.seed, chat_template=None
        ),
        positions=POSITIONS,
        budget_bytes=REFERENCE_BYTES,
        work=BudgetWork(
            scheme=_scheme(request),
            groups=tuple(
                BudgetGroup(name=group.name, weights=group.tensors, saved_bytes=group.saved_bytes) for group in groups
            ),
            goal=goal,
            most=2 * len(groups) + MOST_BESIDES,
        ),
    )
    environ = environment_of(device)
    return measure(job, order.data, work, python=order.python, notify=notify, environ=environ)


def _scheme(request: BudgetRequest) -> SimulatedScheme:
    plan = request.plan
    assert plan.scheme is not None  # noqa: S101 - `read_budget` refuses a budget without one
    return modified(with_kv_cache(SIMULATED[plan.scheme.name], plan.kv_cache), request.order.modifiers)


def _look_at_weights(request: BudgetRequest, groups: Sequence[Group], goal: Goal, notify: Notify) -> Found:
    """Return what the weights say, in the words of the measurer."""
    noise = measure_weights(request.plan, request.folder.resolve, workers=request.resources.workers, notify=notify)
    choice = choose_by_weights(groups, noise, goal)
    weights = [[list(noise[name]) for name in group.tensors] for group in groups]
    return {
        "groups": [{"weights": each, "outputs": None, "alone": None, "cost": None} for each in weights],
        "sets": [{"kept": sorted(kept), **UNMEASURED} for kept in choice.path],
        "kept": sorted(choice.kept),
        "exhausted": False,
        "positions": None,
    }


def _unmet(request: BudgetRequest, found: Found, groups: Sequence[Group]) -> CannotRun:
    budget, modifiers = request.order.budget, request.order.modifiers
    runs = [each for each in found["sets"] if each["own_run"]]
    if runs:
        names = " and ".join(modifiers.names)
        sets = "the one set" if len(runs) == 1 else f"any of {len(runs)} sets"
        message = f"{budget.said} was not met by {sets} that {names} ran for, of those that promised to meet it"
        if budget.kind == "sqnr":
            return CannotRun(message, hint="ask for less, or keep more as it is with --ignore")
        least = min(each["kl"] for each in runs)
        return CannotRun(f"{message}: the least KL was {least:.3g} nats", hint="allow a higher --max-kl")
    floor = next(each["kl"] for each in found["sets"] if len(each["kept"]) == len(groups))
    moving = replace(modifiers, gptq=False)
    cached = request.plan.kv_cache is not None
    causes = " and ".join((*(("the FP8 KV cache",) if cached else ()), *moving.names))
    words = " and ".join((*(("--kv-cache",) if cached else ()), *moving.words))
    message = f"{budget.said} cannot be met: with every Linear in 16 bits the KL of {causes} alone is {floor:.3g} nats"
    return CannotRun(message, hint=f"leave out {words}, or allow a higher --max-kl")


def _all_kept(request: BudgetRequest, found: Found, groups: Sequence[Group]) -> CannotRun:
    said = request.order.budget.said
    message = f"{said} leaves every Linear in 16 bits, so nothing would be quantized"
    if request.order.budget.kind == "kl":
        # Where modifiers ran for single sets, what was seen before is no promise.
        runs = [each for each in found["sets"] if each["own_run"]]
        least = min(each["kl"] for each in runs or found["sets"] if len(each["kept"]) < len(groups))
        return CannotRun(message, hint=f"allow more: the least KL with anything in FP8 was {least:.3g} nats")
    sums = [each["outputs"] or each["weights"] for each in found["groups"]]
    best = decibels(min(map(worst_ratio, sums)))
    return CannotRun(message, hint=f"ask for less: the least noisy group of Linears has {best:.1f} dB")
