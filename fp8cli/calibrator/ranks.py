"""Several processes for one calibration, as torchrun would start them: each takes its share of the samples.

llm-compressor joins what the processes saw at the end of every part of the model. On one machine the first process, the
one that the parent knows, starts the others and hears of their end; they end with it. On several, each is started by
whoever placed it there, with the address of the first in its environment.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn

from fp8cli.worker.bootstrap import BOOTSTRAP
from fp8cli.worker.failures import Failure
from fp8cli.worker.progress import Progress
from fp8cli.worker.protocol import events_file

MODULE: Final = "fp8cli.calibrator.main"
RENDEZVOUS: Final = "rendezvous"
"""A file in the folder of the job, by which the processes find each other."""

_PACKAGE: Final = Path(__file__).parents[1]
_SECONDS_TO_HEAR: Final = 5.0
"""When one process ends, the others fail too; the first reason is the one to tell."""


@contextmanager
def started(folder: Path, processes: int, progress: Progress) -> Iterator[None]:
    """Run the other processes of a job while the first does its part; at the end they have ended too.

    One that ends before its time ends this process, which then tells why. Raises what the body raises.
    """
    (folder / RENDEZVOUS).unlink(missing_ok=True)
    others = [_start(folder, rank) for rank in range(1, processes)]
    for rank, other in enumerate(others, 1):
        watch = threading.Thread(target=_end_with, args=(other, rank, folder, progress), daemon=True)
        watch.start()
    try:
        yield
        for other in others:
            other.wait()
    except Exception:
        # What a library says about a peer that is gone is not the reason; the watch of that peer knows it.
        if others:
            time.sleep(_SECONDS_TO_HEAR)
        raise
    finally:
        (folder / RENDEZVOUS).unlink(missing_ok=True)


def join(folder: Path, rank: int, processes: int, *, gpu: bool) -> None:
    """Make this process one of several: afterwards `torch.distributed` is at work. Raises Failure for too few GPUs."""
    import torch
    from torch import distributed

    # All of them are on this machine; a name that resolves to nothing would stop them.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    if gpu:
        found = torch.cuda.device_count()
        if found < processes:
            message = f"{processes} processes need a GPU each, and torch in `{sys.executable}` sees {found}"
            raise Failure(kind="other", message=message, hint="take fewer --calibration-processes, or --device cpu")
        torch.cuda.set_device(rank)
    else:
        # Each would take all processors.
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    distributed.init_process_group(
        backend="nccl" if gpu else "gloo",
        init_method=f"file://{(folder / RENDEZVOUS).absolute()}",
        rank=rank,
        world_size=processes,
        device_id=torch.device("cuda", rank) if gpu else None,
    )


def join_placed(rank: int, processes: int, *, gpu: bool) -> None:
    """Make this process one of several over several hosts, found by MASTER_ADDR and MASTER_PORT.

    Raises Failure where it was given a GPU and torch sees none: the others would wait for it in another language.
    """
    import torch
    from torch import distributed

    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if given and not gpu:
        message = f"the process was given GPU {given}, and torch in `{sys.executable}` sees none"
        raise Failure(kind="other", message=message, hint="fp8 doctor says why, or calibrate with --device cpu")
    if gpu:
        # Whoever placed it lets it see its own alone.
        torch.cuda.set_device(0)
    distributed.init_process_group(
        backend="nccl" if gpu else "gloo",
        init_method="env://",
        rank=rank,
        world_size=processes,
        device_id=torch.device("cuda", 0) if gpu else None,
    )


def place() -> tuple[int, int]:
    """Return which of how many processes this is: (0, 1) where it is alone."""
    from torch import distributed

    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def sum_of(number: int) -> int:
    """Return the sum of a number that each process has. Every process must ask."""
    from torch import distributed

    if not distributed.is_initialized():
        return number
    numbers: list[int] = [0] * distributed.get_world_size()
    distributed.all_gather_object(numbers, number)
    return sum(numbers)


def _start(folder: Path, rank: int) -> "subprocess.Popen[bytes]":
    (folder / events_file(rank)).unlink(missing_ok=True)
    words = [sys.executable, "-c", BOOTSTRAP, str(_PACKAGE), MODULE, str(folder), str(rank)]
    # The pipe closes with this process, and with it the other ends.
    return subprocess.Popen(words, stdin=subprocess.PIPE)


def _end_with(other: "subprocess.Popen[bytes]", rank: int, folder: Path, progress: Progress) -> None:
    code = other.wait()
    if code != 0:
        _tell_end(reason_of(folder, rank, code), progress)


def _tell_end(failure: Failure, progress: Progress) -> NoReturn:
    progress.tell("failed", kind=failure.kind, message=failure.message, hint=failure.hint)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def reason_of(folder: Path, rank: int, code: int) -> Failure:
    """Return what a process said before it ended, or what its exit code says."""
    with suppress(OSError, ValueError):
        lines = (folder / events_file(rank)).read_text(encoding="utf-8").splitlines()
        told = json.loads(lines[-1]) if lines else None
        if isinstance(told, dict) and told.get("event") == "failed":
            return Failure(kind=told["kind"], message=told["message"], hint=told["hint"])
    if code == -signal.SIGKILL:
        message = f"the system killed process {rank + 1} of the calibration, most often for memory (SIGKILL)"
        return Failure(kind="memory", message=message)
    ended = f"exit code {code}" if code > 0 else f"signal {-code}"
    return Failure(kind="other", message=f"process {rank + 1} of the calibration ended with {ended}, and said nothing")
