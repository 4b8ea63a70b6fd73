"""Which GPUs each of several workers may see, and how many threads it may use where there are none."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fp8cli.core.machine.amd import find_amd_gpus
from fp8cli.core.machine.gpus import Gpus, find_gpus
from fp8cli.core.machine.probes import ROOT, usable_cpus
from fp8cli.errors import CannotRun
from fp8cli.worker.protocol import Job

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
THREADS: Final = "OMP_NUM_THREADS"


def shares(
    job: Job, environ: Mapping[str, str], gpus: Gpus | None = None, root: Path = ROOT
) -> tuple[Mapping[str, str], ...]:
    """Return what stands in the environment of each worker of a job beside what all share.

    GPUs are dealt out evenly, in their order, whatever is left over unused; without GPUs, processors are. A worker
    that is alone, or asks a server, gets the machine as it is. Raises CannotRun where there are too few GPUs, or where
    it cannot be told which there are.
    """
    if job.world == 1 or job.backend == "server":
        return ({},) * job.world
    names = () if job.device == "cpu" else _names(environ, find_gpus(environ=environ) if gpus is None else gpus, root)
    if not names:
        threads = {} if THREADS in environ else {THREADS: str(max(1, usable_cpus(root) // job.world))}
        return (threads,) * job.world
    parts = (job.model_args.get(f"{way}_parallel_size", 1) for way in ("tensor", "pipeline"))
    wanted = math.prod(size for size in parts if isinstance(size, int))
    each = len(names) // job.world
    if each < wanted:
        message = (
            f"{job.world} workers with {wanted} GPU{'s' if wanted > 1 else ''} each take {job.world * wanted} GPUs, "
            f"and {len(names)} {'is' if len(names) == 1 else 'are'} visible"
        )
        raise CannotRun(message, hint=f"choose --data-parallel {max(1, len(names) // wanted)}")
    return tuple({VISIBLE: ",".join(names[each * rank : each * (rank + 1)])} for rank in range(job.world))


def _names(environ: Mapping[str, str], gpus: Gpus, root: Path) -> tuple[str, ...]:
    """Return the names of the GPUs as CUDA_VISIBLE_DEVICES takes them; none on a machine without GPUs."""
    if gpus.unknown is not None:
        message = f"it cannot be told which GPUs there are to deal out: {gpus.unknown}"
        raise CannotRun(message, hint="leave --data-parallel out, or see: fp8 doctor")
    if not gpus.visible and find_amd_gpus(root):
        message = "dealing out AMD GPUs among workers is not known to work"
        raise CannotRun(message, hint="leave --data-parallel out; --tensor-parallel N shares one model among GPUs")
    if VISIBLE in environ:
        # The words the user chose, as far as they name GPUs: CUDA counts unlike GPUs in an order of its own.
        return tuple(word.strip() for word in environ[VISIBLE].split(","))[: len(gpus.visible)]
    return tuple(str(number) for number in range(len(gpus.visible)))
