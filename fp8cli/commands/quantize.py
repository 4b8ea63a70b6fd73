"""`fp8 quantize`: a checkpoint in, its FP8 form out, whole or not at all.

    choice, source → Checkpoint (headers) → Plan → orders, checks (→ budget → Plan) → production → report

Everything that can be refused is refused before anything is written: options, calibration data, checkpoint, plan,
machine. The making is core.making's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fp8cli.core.budgeting.assembling import say_why
from fp8cli.core.budgeting.budgets import BudgetOptions, read_budget
from fp8cli.core.budgeting.decision import BudgetEvent, BudgetRequest, check_budget, decide
from fp8cli.core.budgeting.ordering import order_budget
from fp8cli.core.calibrating.ordering import CalibrationOptions, CalibrationOrder, order_calibration
from fp8cli.core.calibrating.outlook import check_calibration, estimate_memory, foresee, settle
from fp8cli.core.clustering.choice import ClusterChoice, read_cluster, refuse_device
from fp8cli.core.clustering.driving import ClusterWork
from fp8cli.core.clustering.events import ClusterBegins
from fp8cli.core.clustering.outlook import ClusterOutlook, foresee_cluster
from fp8cli.core.compressing.engines import AUTO, Engine, choose_engine
from fp8cli.core.compressing.ordering import CompressionOrder, order_compression
from fp8cli.core.compressing.outlook import (
    check_compression,
    copies_of,
    estimate_compression,
    foresee_compression,
    settle_place,
)
from fp8cli.core.converting.instead import Wanted, refuse_fp8
from fp8cli.core.delivering.ordering import (
    DeliveryOptions,
    DeliveryOrder,
    bytes_that_stay,
    check_destination,
    order_delivery,
)
from fp8cli.core.doctor import environment
from fp8cli.core.inspection.gate import refuse_broken_files
from fp8cli.core.making.outlook import fall_back, foresee_plan, foresee_result
from fp8cli.core.making.planning import Wish, check_place, plan_checkpoint, refuse_failed
from fp8cli.core.making.production import Production, ProductionEvent, Source, Started, produce
from fp8cli.core.making.report import Foreseen, QuantizeReport, assemble
from fp8cli.core.model.modeling import refuse_unknown
from fp8cli.core.model.multimodal import refuse_unless_text
from fp8cli.core.quantizing.choices import Choice, choose
from fp8cli.core.quantizing.modifiers import Modifiers, choose_modifiers
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import (
    DEFAULT_MAX_MEMORY,
    PIECE_BYTES,
    Resources,
    estimate_seconds,
    plan_resources,
)
from fp8cli.core.serving.requirement import Fallback, check_requirement, is_refused
from fp8cli.errors import UsageError
from fp8cli.formats import hub
from fp8cli.formats.addresses import HUB
from fp8cli.formats.checkpoint import Checkpoint, LocalFolder, open_checkpoint
from fp8cli.formats.destinations import SendOptions
from fp8cli.formats.recipe_file import RecipeFile, read_recipe
from fp8cli.formats.sources import resolve_source, short_name
from fp8cli.formats.staging import check_output
from fp8cli.schemes import DEFAULT_SCHEME, FP8_DYNAMIC

__all__ = [
    "BudgetOptions",
    "CalibrationOptions",
    "DeliveryOptions",
    "Modifiers",
    "QuantizeReport",
    "QuantizeRequest",
    "SendOptions",
    "Started",
    "choose_modifiers",
    "run",
]

DEFAULT_IGNORE: Final = ("lm_head",)
"""What the recipe names as ignored by default, as llm-compressor's own examples do."""

DEFAULT_TARGETS: Final = ("Linear",)


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    """What the user asked for."""

    model: str
    out: Path | None = None
    """A folder; None: that of `delivery`."""
    delivery: DeliveryOptions = field(default_factory=DeliveryOptions)
    scheme: str | None = None
    """None: the default."""
    kv_cache: str | None = None
    engine: str = AUTO
    modifiers: Modifiers = field(default_factory=Modifiers)
    recipe: Path | None = None
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    revision: str | None = None
    dtype: str = "auto"
    targets: tuple[str, ...] = DEFAULT_TARGETS
    ignore: tuple[str, ...] = ()
    default_ignore: bool = True
    device: str = "auto"
    workers: int | None = None
    max_memory: str = DEFAULT_MAX_MEMORY
    tp: int | None = None
    """How many GPUs must be able to share the result; None: any number will do."""
    tp_fallback: bool = False
    """Whether FP8_DYNAMIC may take the place of blocks that cannot be split over so many."""
    cluster: str | None = None
    """As --cluster has it."""
    dry_run: bool = False
    overwrite: bool = False
    restart: bool = False
    hashed: bool = True
    """Whether fp8.json has the SHA-256 of every file."""
    download_bars: bool = True
    piece_bytes: int = PIECE_BYTES
    batch_bytes: int | None = None
    """Read plus written by what a node is given at once; None: what is best."""


Notify = Callable[[ProductionEvent | BudgetEvent | ClusterBegins], None]


def run(request: QuantizeRequest, notify: Notify = lambda _: None) -> QuantizeReport:
    """Quantize a checkpoint. Raises Fp8Error with what is wrong; then nothing is published."""
    return _run(request, notify, fallback=None)


def _run(request: QuantizeRequest, notify: Notify, *, fallback: Fallback | None) -> QuantizeReport:
    """Quantize as asked, or with another scheme where the one that was asked for cannot be split as required."""
    begun = time.monotonic()
    recipe, choice, engine = _choose(request)
    _refuse_idle_resources(request, engine)
    cluster = _read_cluster(request, engine)
    budget = read_budget(request.budget, choice)
    place = resolve_source(request.model, request.revision)
    local = place.path if isinstance(place, LocalFolder) else None
    out, delivery = _settle_output(request, place, f"{short_name(request.model)}-{choice.suffix}")
    limits = None if budget is None else order_budget(budget, request.calibration, choice, model=local)
    # A budget has a use for data whatever the scheme is.
    scales = CalibrationOptions() if limits is not None and not choice.needs_calibration else request.calibration
    orders = _order(scales, choice, engine, recipe, local)
    checkpoint = open_checkpoint(place)
    refuse_fp8(place, checkpoint, _wanted(request, choice))
    plan, selection = plan_checkpoint(checkpoint, _wish(request, choice))
    if engine == "llmcompressor":
        refuse_unless_text(selection.rules, "given to llm-compressor")
        refuse_unknown(selection.rules, "given to llm-compressor")
    serving = foresee_plan(plan, checkpoint, choice, out, required=request.tp, fallback=request.tp_fallback)
    if serving is not None and is_refused(serving):
        return _run(replace(request, scheme=FP8_DYNAMIC.name), notify, fallback=fall_back(serving, choice))
    resources = plan_resources(
        plan,
        device=request.device,
        workers=request.workers,
        max_memory=request.max_memory,
        cpus=environment.usable_cpus(),
        piece_bytes=request.piece_bytes,
    )
    orders, foreseen, checks = _foresee(orders, plan, checkpoint)
    copies = 1 if orders.compression is None else copies_of(orders.compression)
    before = 0 if foreseen.calibration is None else foreseen.calibration.offload_files_bytes
    stays = None if copies > 1 else bytes_that_stay(delivery, plan, out.parent, workers=resources.workers)
    place_checks = check_place(
        out, plan, copies=copies, before_bytes=before, memory_bytes=resources.memory_bytes, stays_bytes=stays
    )
    checks = (*place_checks, *checks)
    if limits is not None:
        checks = (*checks, *check_budget(limits, plan))
    if not request.dry_run:
        refuse_failed(checks)
    commit = None if isinstance(place, LocalFolder) else place.commit
    done = decided = None
    if not request.dry_run or limits is not None:
        if not isinstance(place, LocalFolder):
            place = hub.download(place, progress=request.download_bars)
            checkpoint = open_checkpoint(place)
        refuse_broken_files(place, checkpoint.side_files)
        source = Source(folder=place, checkpoint=checkpoint, commit=commit)
    if limits is not None:
        wish = BudgetRequest(
            order=limits,
            checkpoint=checkpoint,
            folder=source.folder,
            plan=plan,
            state=source.state(),
            resources=resources,
            out=out,
            restart=request.restart,
            dry_run=request.dry_run,
        )
        decided = decide(wish, notify)
        request = replace(request, ignore=(*request.ignore, *decided.ignore))
        plan, selection = plan_checkpoint(checkpoint, _wish(request, choice))
        plan = say_why(plan, decided)
        orders, foreseen, _ = _foresee(orders, plan, checkpoint)
        serving = foresee_plan(plan, checkpoint, choice, out, required=request.tp)
    seconds = estimate_seconds(plan)
    foreseen = replace(foreseen, cluster=_foresee_cluster(request, cluster, plan, resources, seconds))
    if not request.dry_run:
        production = Production(
            model=request.model,
            name=short_name(request.model) if commit is None else request.model,
            source=source,
            choice=choice,
            plan=plan,
            selection=selection,
            calibration=orders.calibration,
            compression=orders.compression,
            out=out,
            resources=resources,
            targets=request.targets,
            ignore=_ignore(request),
            overwrite=request.overwrite,
            restart=request.restart,
            budget=decided,
            fallback=fallback,
            hashed=request.hashed,
            delivery=delivery,
            cluster=_cluster_work(request, cluster, foreseen.cluster, notify),
        )
        done = produce(production, notify)
        serving = foresee_result(done, checkpoint, out, serving, required=request.tp)
        seconds = time.monotonic() - begun
    return assemble(
        plan,
        choice,
        model=request.model,
        commit=commit,
        out=out if delivery is None or delivery.keep else delivery.address.text,
        foreseen=foreseen,
        budget=decided,
        serving=serving,
        fallback=fallback,
        resources=resources,
        checks=checks,
        left_behind=checkpoint.left_behind,
        seconds=seconds,
        done=done,
    )


def _choose(request: QuantizeRequest) -> tuple[RecipeFile | None, Choice, Engine]:
    """Settle what is wanted, and who does it. Raises UsageError for words that do not go together."""
    check_requirement(request.tp, fallback=request.tp_fallback)
    if request.recipe is None:
        choice = choose(request.scheme or DEFAULT_SCHEME, request.kv_cache, request.modifiers)
        idle = request.targets != DEFAULT_TARGETS or request.ignore or not request.default_ignore
        if choice.scheme is None and idle:
            message = "no weight is quantized, so --targets, --ignore and --no-default-ignore would have no effect"
            raise UsageError(message, hint="leave them out, or choose a scheme")
        return None, choice, choose_engine(request.engine, choice)
    said = {
        "--scheme": request.scheme is not None,
        "--kv-cache": request.kv_cache is not None,
        "--targets": request.targets != DEFAULT_TARGETS,
        "--ignore": bool(request.ignore),
        "--no-default-ignore": not request.default_ignore,
        **dict.fromkeys(request.modifiers.words, True),
    }
    words = [word for word, is_said in said.items() if is_said]
    if words:
        message = f"a recipe says itself what {' and '.join(words)} would say"
        raise UsageError(message, hint="leave them out, or write them into the recipe")
    if request.tp is not None:
        message = "what a recipe makes is not known before it has run, so --tp cannot be required of it"
        raise UsageError(message, hint="leave --tp out; fp8 inspect OUT --tp N judges the result")
    recipe = read_recipe(request.recipe)
    choice = Choice(scheme=None, kv_cache=None, recipe=recipe.name)
    return recipe, choice, choose_engine(request.engine, choice)


def _settle_output(
    request: QuantizeRequest, place: LocalFolder | hub.HubRepo, default: str
) -> tuple[Path, DeliveryOrder | None]:
    """Return where the output grows, and where it is sent. Raises UsageError for a place that holds something."""
    options = request.delivery if request.out is None else replace(request.delivery, out=str(request.out))
    out, delivery = order_delivery(options, default)
    overwrite = request.overwrite or request.dry_run
    if delivery is None or delivery.keep:
        check_output(out, overwrite=overwrite, source=place.path if isinstance(place, LocalFolder) else None)
    if delivery is not None:
        address = delivery.address
        if isinstance(place, hub.HubRepo) and (address.scheme, address.path) == (HUB, place.repo_id):
            message = f"the output `{address.text}` would replace its own source"
            raise UsageError(message, hint="choose another name for it")
        check_destination(delivery, out=out, overwrite=overwrite)
    return out, delivery


def _refuse_idle_resources(request: QuantizeRequest, engine: Engine) -> None:
    said = {"--workers": request.workers is not None, "--max-memory": request.max_memory != DEFAULT_MAX_MEMORY}
    words = [word for word, is_said in said.items() if is_said]
    if engine == "llmcompressor" and words:
        message = f"{' and '.join(words)} would have no effect: llm-compressor's engine holds the whole model"
        raise UsageError(message, hint="leave them out, or use what --engine streaming can do")


def _read_cluster(request: QuantizeRequest, engine: Engine) -> ClusterChoice | None:
    choice = read_cluster(request.cluster)
    if choice is None:
        return None
    if engine == "llmcompressor":
        message = "--cluster would have no effect: llm-compressor's engine makes the weights in one process"
        hint = "leave it out, or use what --engine streaming can do; --calibration-processes shares samples over GPUs"
        raise UsageError(message, hint=hint)
    refuse_device(request.device)
    return replace(choice, batch_bytes=request.batch_bytes)


def _foresee_cluster(
    request: QuantizeRequest, choice: ClusterChoice | None, plan: Plan, resources: Resources, local_seconds: float
) -> ClusterOutlook | None:
    if choice is None:
        return None
    cpus = environment.usable_cpus()
    return foresee_cluster(plan, choice, resources, workers=request.workers, cpus=cpus, local_seconds=local_seconds)


def _cluster_work(
    request: QuantizeRequest, choice: ClusterChoice | None, outlook: ClusterOutlook | None, notify: Notify
) -> ClusterWork | None:
    if choice is None:
        return None
    event = ClusterBegins(address=choice.address, warning=None if outlook is None else outlook.warning)
    return ClusterWork(choice=choice, workers=request.workers, begins=lambda: notify(event))


@dataclass(frozen=True, kw_only=True)
class _Orders:
    """What processes are to do; None: nothing."""

    calibration: CalibrationOrder | None
    compression: CompressionOrder | None


def _order(
    options: CalibrationOptions, choice: Choice, engine: Engine, recipe: RecipeFile | None, local: Path | None
) -> _Orders:
    if engine == "streaming":
        return _Orders(calibration=order_calibration(options, choice, model=local), compression=None)
    compression = order_compression(options, choice, recipe=recipe, model=local)
    return _Orders(calibration=None, compression=compression)


def _foresee(
    orders: _Orders, plan: Plan, checkpoint: Checkpoint
) -> tuple[_Orders, Foreseen, tuple[environment.Check, ...]]:
    """Say what the orders need of this machine, and judge it; with the place of the weights decided."""
    if orders.compression is not None:
        order = settle_place(orders.compression, plan, checkpoint)
        memory = estimate_compression(order, plan, checkpoint)
        foreseen = Foreseen(calibration=None, compression=foresee_compression(order, plan, checkpoint))
        return replace(orders, compression=order), foreseen, check_compression(order, memory)
    if orders.calibration is None:
        return orders, Foreseen(calibration=None, compression=None), ()
    settled = settle(orders.calibration, plan, checkpoint)
    report = foresee(settled, plan, checkpoint)
    checks = check_calibration(settled, estimate_memory(settled, plan, checkpoint))
    return replace(orders, calibration=settled), Foreseen(calibration=report, compression=None), checks


def _wish(request: QuantizeRequest, choice: Choice) -> Wish:
    return Wish(
        model=request.model,
        choice=choice,
        dtype=request.dtype,
        targets=request.targets,
        ignore=request.ignore,
        default_ignore=request.default_ignore,
    )


def _wanted(request: QuantizeRequest, choice: Choice) -> Wanted:
    chooses_modules = request.targets != DEFAULT_TARGETS or request.ignore or not request.default_ignore
    is_plain = not (choice.needs_calibration or chooses_modules or request.budget != BudgetOptions())
    return Wanted(model=request.model, out=request.out, revision=request.revision, choice=choice, is_plain=is_plain)


def _ignore(request: QuantizeRequest) -> tuple[str, ...]:
    return (*DEFAULT_IGNORE, *request.ignore) if request.default_ignore else request.ignore
