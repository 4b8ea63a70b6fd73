"""Where the calibration of a run is done: on this machine, or as ranks on the nodes of the run's cluster."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from fp8cli.core.calibrating.calibration import Calibrated, CalibrationEvent, CalibrationRequest, calibrate
from fp8cli.core.calibrating.ordering import CalibrationOrder
from fp8cli.core.clustering.driving import ClusterWork
from fp8cli.core.clustering.events import ClusterBegins
from fp8cli.core.clustering.ranks import RanksOnCluster


def find_scales(
    request: CalibrationRequest,
    order: CalibrationOrder,
    cluster: ClusterWork | None,
    notify: Callable[[CalibrationEvent | ClusterBegins], None],
    *,
    environ: Mapping[str, str],
) -> Calibrated:
    """Calibrate where the order says. Raises what `calibrate` does, and CannotRun where no node may work."""
    if cluster is None or not order.placed:
        return calibrate(request, notify, environ=environ)
    # Whether it is worth it is a question of the weights, and said when they are begun.
    begins = ClusterBegins(address=cluster.choice.address, warning=None)
    nodes: list[str] = []
    run = RanksOnCluster(
        choice=cluster.choice,
        ranks=request.processes,
        source=request.model,
        device=request.device,
        memory_bytes=order.process_bytes,
        begins=lambda: notify(begins),
        placed=nodes.extend,
    )
    return replace(calibrate(request, notify, environ=environ, run=run), nodes=tuple(nodes))
