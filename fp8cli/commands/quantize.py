"""`fp8 quantize`: a checkpoint in, its FP8 form out, whole or not at all.

    choice, source → Checkpoint (headers) → Plan → orders, checks (→ budget → Plan) → production → report

Everything that can be refused is refused before anything is written: options, calibration data, checkpoint, plan,
machine. The making is core.making's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fp8cli.core.budgeting.assembling import say_why
from fp8cli.core.budgeting.budgets import BudgetOptions, read_budget
from fp8cli.core.budgeting.decision import BudgetEvent, BudgetRequest, check_budget, decide
from fp8cli.core.budgeting.ordering import order_budget
from fp8cli.core.calibrating.ordering import CalibrationOptions
from fp8cli.core.clustering.events import ClusterBegins
from fp8cli.core.compressing.outlook import copies_of
from fp8cli.core.converting.instead import Wanted, refuse_fp8
from fp8cli.core.delivering.ordering import DeliveryOptions, bytes_that_stay
from fp8cli.core.doctor import environment
from fp8cli.core.fetching.streaming import StreamOptions, StreamReport, foresee_streaming, order_streaming
from fp8cli.core.making.ordering import (
    Orders,
    cluster_work,
    foresee_cluster_work,
    foresee_orders,
    order,
    order_cluster,
    refuse_what_needs_files,
)
from fp8cli.core.making.outlook import check_later, fall_back, foresee_plan, foresee_result, refuse_unsplittable_whole
from fp8cli.core.making.placing import settle_output
from fp8cli.core.making.planning import check_place, plan_checkpoint, refuse_failed
from fp8cli.core.making.production import Production, ProductionEvent, Started, produce
from fp8cli.core.making.report import Foreseen, QuantizeReport, assemble
from fp8cli.core.making.request import (
    DEFAULT_TARGETS,
    QuantizeRequest,
    ignore_of,
    refuse_idle_resources,
    settle_choice,
    wish_of,
)
from fp8cli.core.making.source import open_files
from fp8cli.core.model.modeling import refuse_unknown
from fp8cli.core.model.multimodal import refuse_unless_text
from fp8cli.core.model.selection import Selection
from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.quantizing.modifiers import Modifiers, choose_modifiers
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import Resources, estimate_seconds, plan_resources
from fp8cli.core.serving.preflight import Preflight
from fp8cli.core.serving.requirement import Fallback, is_refused
from fp8cli.formats.addresses import mask
from fp8cli.formats.checkpoint import Checkpoint, LocalFolder, open_checkpoint
from fp8cli.formats.destinations import SendOptions
from fp8cli.formats.hub import HubRepo
from fp8cli.formats.sources import full_name_of, name_of, resolve_source
from fp8cli.schemes import FP8_DYNAMIC

__all__ = [
    "DEFAULT_TARGETS",
    "BudgetOptions",
    "CalibrationOptions",
    "DeliveryOptions",
    "Modifiers",
    "QuantizeReport",
    "QuantizeRequest",
    "SendOptions",
    "Started",
    "StreamOptions",
    "choose_modifiers",
    "run",
]

Notify = Callable[[ProductionEvent | BudgetEvent | ClusterBegins], None]


def run(request: QuantizeRequest, notify: Notify = lambda _: None) -> QuantizeReport:
    """Quantize a checkpoint. Raises Fp8Error with what is wrong; then nothing is published."""
    return _run(request, notify, fallback=None)


def _run(request: QuantizeRequest, notify: Notify, *, fallback: Fallback | None) -> QuantizeReport:
    """Quantize as asked, or with another scheme where the one that was asked for cannot be split as required."""
    begun = time.monotonic()
    recipe, choice, engine = settle_choice(request)
    refuse_idle_resources(request, engine)
    cluster = order_cluster(request, engine)
    budget = read_budget(request.budget, choice)
    place = resolve_source(request.model, request.revision)
    streaming = order_streaming(request.streaming, place)
    local = place.path if isinstance(place, LocalFolder) else None
    default, overwrite = f"{name_of(place)}-{choice.suffix}", request.overwrite or request.dry_run
    out, delivery = settle_output(request.delivery, request.out, place, default, overwrite=overwrite)
    limits = None if budget is None else order_budget(budget, request.calibration, choice, model=local)
    # A budget has a use for data whatever the scheme is.
    scales = CalibrationOptions() if limits is not None and not choice.needs_calibration else request.calibration
    orders = order(scales, choice, engine, recipe, local, on_cluster=cluster is not None)
    refuse_what_needs_files(place, streaming, orders, limits)
    checkpoint = open_checkpoint(place)
    refuse_fp8(place, checkpoint, _wanted(request, choice))
    planned = _plan(request, choice, checkpoint, orders, out, may_fall_back=request.tp_fallback)
    if planned.serving is not None and is_refused(planned.serving):
        return _run(replace(request, scheme=FP8_DYNAMIC.name), notify, fallback=fall_back(planned.serving, choice))
    resources = plan_resources(
        planned.plan,
        device=request.device,
        workers=request.workers,
        max_memory=request.max_memory,
        cpus=environment.usable_cpus(),
        piece_bytes=request.piece_bytes,
    )
    streaming, streamed = foresee_streaming(streaming, planned.plan, place, request.piece_bytes)
    # On a cluster the window lies on the nodes.
    window = None if cluster is not None else streamed
    stays = bytes_that_stay(delivery, planned.plan, out.parent, workers=resources.workers)
    checks = _check_place(planned, out, resources, stays, window)
    if limits is not None:
        checks = (*checks, *check_budget(limits, planned.plan))
    checks = (*checks, *check_later(choice, request.tp))
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
            plan=planned.plan,
            state=source.state(),
            resources=resources,
            out=out,
            restart=request.restart,
            dry_run=request.dry_run,
        )
        decided = decide(wish, notify)
        request = replace(request, ignore=(*request.ignore, *decided.ignore))
        planned = _plan(request, choice, checkpoint, orders, out, may_fall_back=False)
        planned = replace(planned, plan=say_why(planned.plan, decided))
        stays = bytes_that_stay(delivery, planned.plan, out.parent, workers=resources.workers)
    plan, serving, seconds = planned.plan, planned.serving, estimate_seconds(planned.plan)
    foreseen = replace(planned.foreseen, cluster=foresee_cluster_work(request, cluster, plan, resources, seconds))
    if not request.dry_run:
        production = Production(
            model=mask(request.model),
            name=full_name_of(place),
            source=source,
            choice=choice,
            plan=plan,
            selection=planned.selection,
            calibration=planned.orders.calibration,
            compression=planned.orders.compression,
            out=out,
            resources=resources,
            targets=request.targets,
            ignore=ignore_of(request),
            overwrite=request.overwrite,
            restart=request.restart,
            budget=decided,
            fallback=fallback,
            hashed=request.hashed,
            delivery=delivery,
            cluster=cluster_work(request, cluster, foreseen.cluster, notify, stays),
            judge=partial(refuse_unsplittable_whole, checkpoint=checkpoint, out=out, required=request.tp),
        )
        done = produce(production, notify)
        serving = foresee_result(done, checkpoint, out, serving, required=request.tp)
        seconds = time.monotonic() - begun
    return assemble(
        plan,
        choice,
        model=mask(request.model),
        commit=place.commit if isinstance(place, HubRepo) else None,
        out=out if delivery is None or delivery.keep else delivery.address.text,
        foreseen=foreseen,
        budget=decided,
        serving=serving,
        fallback=fallback,
        streamed=streamed,
        resources=resources,
        checks=checks,
        left_behind=checkpoint.left_behind,
        seconds=seconds,
        done=done,
    )


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A plan, and what it means for whoever carries it out and for whoever serves its result."""

    plan: Plan
    selection: Selection
    orders: Orders
    foreseen: Foreseen
    checks: tuple[environment.Check, ...]
    serving: Preflight | None


def _plan(
    request: QuantizeRequest, choice: Choice, checkpoint: Checkpoint, orders: Orders, out: Path, *, may_fall_back: bool
) -> _Planned:
    plan, selection = plan_checkpoint(checkpoint, wish_of(request, choice))
    if orders.compression is not None:
        refuse_unless_text(selection.rules, "given to llm-compressor")
        refuse_unknown(selection.rules, "given to llm-compressor")
    serving = foresee_plan(plan, checkpoint, choice, out, required=request.tp, fallback=may_fall_back)
    orders, foreseen, checks = foresee_orders(orders, plan, checkpoint)
    return _Planned(plan=plan, selection=selection, orders=orders, foreseen=foreseen, checks=checks, serving=serving)


def _check_place(
    planned: _Planned, out: Path, resources: Resources, stays_bytes: int | None, streamed: StreamReport | None
) -> tuple[environment.Check, ...]:
    calibration, compression = planned.foreseen.calibration, planned.orders.compression
    copies = 1 if compression is None else copies_of(compression)
    place_checks = check_place(
        out,
        planned.plan,
        copies=copies,
        before_bytes=0 if calibration is None else calibration.offload_files_bytes,
        memory_bytes=resources.memory_bytes,
        stays_bytes=None if copies > 1 else stays_bytes,
        window_bytes=0 if streamed is None else streamed.window_bytes,
    )
    return (*place_checks, *planned.checks)


def _wanted(request: QuantizeRequest, choice: Choice) -> Wanted:
    """Return what was wanted of a checkpoint that may turn out to be in FP8 already."""
    chooses_modules = request.targets != DEFAULT_TARGETS or request.ignore or not request.default_ignore
    is_plain = not (choice.needs_calibration or chooses_modules or request.budget != BudgetOptions())
    return Wanted(model=request.model, out=request.out, revision=request.revision, choice=choice, is_plain=is_plain)
