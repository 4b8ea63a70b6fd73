"""What others are told to do for a run of `fp8 quantize`: processes, a cluster, whoever takes the output.

Each order is settled from options and headers, with what it needs of this machine; nothing is begun.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fp8cli.core.budgeting.ordering import BudgetOrder
from fp8cli.core.calibrating.ordering import CalibrationOptions, CalibrationOrder, order_calibration
from fp8cli.core.calibrating.outlook import check_calibration, estimate_memory, foresee, settle
from fp8cli.core.clustering.choice import ClusterChoice, read_cluster, refuse_device
from fp8cli.core.clustering.driving import ClusterWork
from fp8cli.core.clustering.events import ClusterBegins
from fp8cli.core.clustering.outlook import ClusterOutlook, foresee_cluster
from fp8cli.core.compressing.engines import Engine
from fp8cli.core.compressing.ordering import CompressionOrder, order_compression
from fp8cli.core.compressing.outlook import (
    check_compression,
    estimate_compression,
    foresee_compression,
    settle_place,
)
from fp8cli.core.doctor import environment
from fp8cli.core.fetching.streaming import Streaming, refuse_without_files
from fp8cli.core.making.report import Foreseen
from fp8cli.core.making.request import QuantizeRequest
from fp8cli.core.quantizing.choices import Choice
from fp8cli.core.quantizing.plan import Plan
from fp8cli.core.quantizing.resources import Resources
from fp8cli.errors import UsageError
from fp8cli.formats.checkpoint import Checkpoint, LocalFolder
from fp8cli.formats.recipe_file import RecipeFile
from fp8cli.formats.sources import Elsewhere


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What processes are to do; None: nothing."""

    calibration: CalibrationOrder | None
    compression: CompressionOrder | None


def order(
    options: CalibrationOptions,
    choice: Choice,
    engine: Engine,
    recipe: RecipeFile | None,
    local: Path | None,
    *,
    on_cluster: bool = False,
) -> Orders:
    """Settle what processes are to do. Raises UsageError, BadInput for data that will not do.

    on_cluster: whether several of a calibration go to the nodes of a cluster.
    """
    if engine == "streaming":
        calibration = order_calibration(options, choice, model=local, on_cluster=on_cluster)
        return Orders(calibration=calibration, compression=None)
    compression = order_compression(options, choice, recipe=recipe, model=local)
    return Orders(calibration=None, compression=compression)


def foresee_orders(
    orders: Orders, plan: Plan, checkpoint: Checkpoint
) -> tuple[Orders, Foreseen, tuple[environment.Check, ...]]:
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


def refuse_what_needs_files(
    place: LocalFolder | Elsewhere, streaming: Streaming | None, orders: Orders, limits: BudgetOrder | None
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


def order_cluster(request: QuantizeRequest, engine: Engine) -> ClusterChoice | None:
    """Return the cluster that was asked for. Raises UsageError where it would have no effect."""
    choice = read_cluster(request.cluster)
    if choice is None:
        return None
    if engine == "llmcompressor":
        message = "--cluster would have no effect: llm-compressor's engine makes the weights in one process"
        hint = "leave it out, or use what --engine streaming can do; --calibration-processes shares samples over GPUs"
        raise UsageError(message, hint=hint)
    refuse_device(request.device)
    return replace(choice, batch_bytes=request.batch_bytes)


def foresee_cluster_work(
    request: QuantizeRequest, choice: ClusterChoice | None, plan: Plan, resources: Resources, local_seconds: float
) -> ClusterOutlook | None:
    """Say what the cluster would take for a plan; None without one."""
    if choice is None:
        return None
    cpus = environment.usable_cpus()
    return foresee_cluster(plan, choice, resources, workers=request.workers, cpus=cpus, local_seconds=local_seconds)


def cluster_work(
    request: QuantizeRequest,
    choice: ClusterChoice | None,
    outlook: ClusterOutlook | None,
    notify: Callable[[ClusterBegins], None],
    stays_bytes: int | None,
) -> ClusterWork | None:
    """Return what the cluster is to do, and who is told when it begins."""
    if choice is None:
        return None
    event = ClusterBegins(address=choice.address, warning=None if outlook is None else outlook.warning)
    return ClusterWork(choice=choice, workers=request.workers, begins=lambda: notify(event), stays_bytes=stays_bytes)
