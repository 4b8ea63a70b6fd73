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
from fp8cli.core.budgeting.ordering import BudgetOrder, order_budget
from fp8cli.core.calibrating.ordering import CalibrationOptions, CalibrationOrder, order_calibration
from fp8cli.core.calibrating.outlook import check_calibration, estimate_memory, foresee, settle
from fp8cli.core.compressing.engines import AUTO, Engine, choose_engine
from fp8cli.core.compressing.ordering import CompressionOrder, order_compression
from fp8cli.core.compressing.outlook import (
    check_compression,
    copies_of,
    estimate_compression,
    foresee_compression,
    settle_place,
)
from fp8cli.core.doctor import environment
from fp8cli.core.fetching.streaming import (
    Streaming,
    StreamOptions,
    foresee_streaming,
    order_streaming,
    refuse_without_files,
)
from fp8cli.core.making.planning import Wish, check_place, plan_checkpoint, refuse_failed
from fp8cli.core.making.production import Production, ProductionEvent, Started, produce
from fp8cli.core.making.report import Foreseen, QuantizeReport, assemble
from fp8cli.core.making.source import open_files
from fp8cli.core.model.multimodal import refuse_unless_text
from fp8cli.core.quantizing.choices import Choice, choose
from fp8cli.core.quantizing.modifiers import Modifiers, choose_modifiers
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import DEFAULT_MAX_MEMORY, PIECE_BYTES, plan_resources
from fp8cli.errors import UsageError
from fp8cli.formats.addresses import mask
from fp8cli.formats.checkpoint import Checkpoint, LocalFolder, open_checkpoint
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.recipe_file import RecipeFile, read_recipe
from fp8cli.formats.sources import Elsewhere, full_name_of, name_of, resolve_source
from fp8cli.formats.staging import check_output
from fp8cli.schemes import DEFAULT_SCHEME

__all__ = [
    "BudgetOptions",
    "CalibrationOptions",
    "Modifiers",
    "QuantizeReport",
    "QuantizeRequest",
    "Started",
    "StreamOptions",
    "choose_modifiers",
    "run",
]

ASSUMED_BYTES_PER_SECOND: Final = 1_000_000_000
"""For the estimate of a dry run: bytes read plus bytes written, on two cores and a page cache (see README)."""

DEFAULT_IGNORE: Final = ("lm_head",)
"""What the recipe names as ignored by default, as llm-compressor's own examples do."""

DEFAULT_TARGETS: Final = ("Linear",)


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    """What the user asked for."""

    model: str
    out: Path | None = None
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
    dry_run: bool = False
    overwrite: bool = False
    restart: bool = False
    download_bars: bool = True
    streaming: StreamOptions = field(default_factory=StreamOptions)
    piece_bytes: int = PIECE_BYTES


Notify = Callable[[ProductionEvent | BudgetEvent], None]


def run(request: QuantizeRequest, notify: Notify = lambda _: None) -> QuantizeReport:
    """Quantize a checkpoint. Raises Fp8Error with what is wrong; then nothing is published."""
    begun = time.monotonic()
    recipe, choice, engine = _choose(request)
    _refuse_idle_resources(request, engine)
    budget = read_budget(request.budget, choice)
    place = resolve_source(request.model, request.revision)
    streaming = order_streaming(request.streaming, place)
    out = request.out or Path(f"{name_of(place)}-{choice.suffix}")
    local = place.path if isinstance(place, LocalFolder) else None
    check_output(out, overwrite=request.overwrite or request.dry_run, source=local)
    limits = None if budget is None else order_budget(budget, request.calibration, choice, model=local)
    # A budget has a use for data whatever the scheme is.
    scales = CalibrationOptions() if limits is not None and not choice.needs_calibration else request.calibration
    orders = _order(scales, choice, engine, recipe, local)
    _refuse_what_needs_files(place, streaming, orders, limits)
    checkpoint = open_checkpoint(place)
    plan, selection = plan_checkpoint(checkpoint, _wish(request, choice))
    if engine == "llmcompressor":
        refuse_unless_text(selection.rules, "given to llm-compressor")
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
    streaming, streamed = foresee_streaming(streaming, plan, place, request.piece_bytes)
    place_checks = check_place(
        out,
        plan,
        copies=copies,
        before_bytes=before,
        window_bytes=0 if streamed is None else streamed.window_bytes,
        memory_bytes=resources.memory_bytes,
    )
    checks = (*place_checks, *checks)
    if limits is not None:
        checks = (*checks, *check_budget(limits, plan))
    if not request.dry_run:
        refuse_failed(checks)
    done = decided = None
    if not request.dry_run or limits is not None:
        source = open_files(place, checkpoint, streaming, progress=request.download_bars)
        checkpoint = source.checkpoint
    if limits is not None:
        wish = BudgetRequest(
            order=limits,
            checkpoint=checkpoint,
            folder=source.local,
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
    seconds = (plan.bytes_read + plan.bytes_written) / ASSUMED_BYTES_PER_SECOND
    if not request.dry_run:
        production = Production(
            model=mask(request.model),
            name=full_name_of(place),
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
        )
        done = produce(production, notify)
        seconds = time.monotonic() - begun
    return assemble(
        plan,
        choice,
        model=mask(request.model),
        commit=place.commit if isinstance(place, HubRepo) else None,
        out=out,
        foreseen=foreseen,
        budget=decided,
        streamed=streamed,
        resources=resources,
        checks=checks,
        left_behind=checkpoint.left_behind,
        seconds=seconds,
        done=done,
    )


def _choose(request: QuantizeRequest) -> tuple[RecipeFile | None, Choice, Engine]:
    """Settle what is wanted, and who does it. Raises UsageError for words that do not go together."""
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
    recipe = read_recipe(request.recipe)
    choice = Choice(scheme=None, kv_cache=None, recipe=recipe.name)
    return recipe, choice, choose_engine(request.engine, choice)


def _refuse_what_needs_files(
    place: LocalFolder | Elsewhere, streaming: Streaming | None, orders: "_Orders", limits: BudgetOrder | None
) -> None:
    """Refuse work on a streamed source that loads the model."""
    if streaming is None:
        return
    if limits is not None:
        refuse_without_files(place, "measuring what FP8 costs")
    if orders.compression is not None:
        refuse_without_files(place, "llm-compressor's engine")
    if orders.calibration is not None:
        refuse_without_files(place, "calibrating")


def _refuse_idle_resources(request: QuantizeRequest, engine: Engine) -> None:
    said = {"--workers": request.workers is not None, "--max-memory": request.max_memory != DEFAULT_MAX_MEMORY}
    words = [word for word, is_said in said.items() if is_said]
    if engine == "llmcompressor" and words:
        message = f"{' and '.join(words)} would have no effect: llm-compressor's engine holds the whole model"
        raise UsageError(message, hint="leave them out, or use what --engine streaming can do")


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
        model=mask(request.model),
        choice=choice,
        dtype=request.dtype,
        targets=request.targets,
        ignore=request.ignore,
        default_ignore=request.default_ignore,
    )


def _ignore(request: QuantizeRequest) -> tuple[str, ...]:
    return (*DEFAULT_IGNORE, *request.ignore) if request.default_ignore else request.ignore
