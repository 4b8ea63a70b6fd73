"""What Ray is asked to run, and what comes of it: batches, bundles of them, and errands.

A driver needs half a millisecond of its processor for every task that it hands out, which keeps a thousand nodes
waiting for more than the work takes. So on a large cluster it hands out bundles: a relay on some node hands out the
batches of one, waits for them, and answers for all. Ray does a relay that is lost again, like any task.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import ray

from fp8cli.core.clustering import errand_labour, labour
from fp8cli.core.clustering.messages import Lost

RETRIES: Final = 5
"""Times that Ray does again what was lost with its worker or node."""


def relay(orders: tuple[bytes, ...], cpus: int, gpus: int, left_out: tuple[str, ...]) -> list[object]:
    """Hand batches out from a node; return their answers, in the same order."""
    task = batch_task(cpus, gpus, left_out)
    return answers([task.remote(order) for order in orders])


def answers(references: Sequence[Any]) -> list[object]:
    """Return what was answered; what was raised instead as `Lost`."""
    try:
        return list(ray.get(list(references)))
    except Exception:  # noqa: BLE001 - of one of them: which one is found out below
        return [_answer(reference) for reference in references]


def last_line(problem: object) -> str:
    """Return the last line of what an error says: Ray's begin with where it happened."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1] if lines else type(problem).__name__


@cache
def batch_task(cpus: int, gpus: int, left_out: tuple[str, ...]) -> Any:
    """Return the task, made once: Ray sends a new one to the cluster before it is used."""
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES, **_without(left_out)}
    return ray.remote(labour.carry_out).options(**options)


@cache
def relay_task(left_out: tuple[str, ...]) -> Any:
    """Return the task; it waits for others, and so takes nobody's place."""
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": RETRIES, **_without(left_out)}
    return ray.remote(relay).options(scheduling_strategy="SPREAD", **options)


@cache
def hashing_task(left_out: tuple[str, ...]) -> Any:
    """Return the task; on a node that has few of them, because each reads as fast as its node can."""
    options: dict[str, Any] = {"num_cpus": 1, "max_retries": RETRIES, **_without(left_out)}
    return ray.remote(errand_labour.run).options(scheduling_strategy="SPREAD", **options)


@cache
def sending_task(able: tuple[str, ...]) -> Any:
    """Return the task; it waits for a network for most of the time, and so takes nobody's place."""
    where = {"label_selector": {"ray.io/node-id": f"in({','.join(able)})"}}
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": RETRIES, "scheduling_strategy": "SPREAD", **where}
    return ray.remote(errand_labour.run).options(**options)


def _without(left_out: tuple[str, ...]) -> dict[str, Any]:
    return {"label_selector": {"ray.io/node-id": f"!in({','.join(left_out)})"}} if left_out else {}


def _answer(reference: Any) -> object:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as problem:
        return Lost(message=last_line(problem), raised=True)
    except Exception as problem:  # noqa: BLE001 - Ray has half a dozen kinds for a worker or node that is gone
        return Lost(message=last_line(problem), raised=False)
