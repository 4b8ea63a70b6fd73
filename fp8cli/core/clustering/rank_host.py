"""What runs on a node for one rank of a program: its process is started, looked at, and ended with all that it started.

Ray makes this an actor, which is gone when the driver is, or when somebody ends it; the process sees its standard
input close then, and ends itself. What it tells goes to files in the shared folder, and is handed on from here, for a
network file system may show them half a minute late.
"""

import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import ray

from fp8cli.core.clustering.rank_messages import RankOrder, RankState
from fp8cli.core.processes.launching import launch
from fp8cli.core.processes.logbook import Logbook
from fp8cli.core.processes.masking import mask_file, secrets_of
from fp8cli.core.processes.process_group import end
from fp8cli.errors import Fp8Error

_SIOCGIFADDR: Final = 0x8915
"""Of Linux: the IPv4 address of a network interface."""
_NAME_BYTES: Final = 15
_GPU: Final = "CUDA_VISIBLE_DEVICES"


def open_port() -> tuple[str, int]:
    """Return this node's address among the others, and a port that is free there now."""
    address = str(ray.util.get_node_ip_address())
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return address, int(probe.getsockname()[1])


def interface_of(address: str) -> str | None:
    """Return the network interface that has an IPv4 address; None where there is none, or nobody can say."""
    if not sys.platform.startswith("linux"):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            # An interface without an address refuses to answer.
            with suppress(OSError):
                answer = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", name.encode()[:_NAME_BYTES]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


class RankHost:
    """A rank on its node."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Logbook | None = None
        self._order: RankOrder | None = None
        self._secrets: tuple[str, ...] = ()

    def open_port(self) -> tuple[str, int]:
        """See above."""
        return open_port()

    def start(self, order: RankOrder, meeting: tuple[str, int], world: int, local: tuple[int, int]) -> RankState:
        """Start the process.

        meeting: address and port of the first rank. local: its number among the ranks of this node, and threads for it.
        """
        self._order = order
        environ = environment_of(order, meeting, world, local)
        self._secrets = secrets_of(environ)
        try:
            (order.folder / order.events).unlink(missing_ok=True)
            self._process, self._log = launch(
                order.module,
                (order.rank,),
                title=order.title,
                python=order.python or Path(sys.executable),
                folder=order.folder,
                log=order.folder / order.log,
                environ=environ,
                secrets=self._secrets,
            )
        except Fp8Error as problem:
            return RankState(rank=order.rank, problem=problem.message)
        except OSError as problem:
            message = f"cannot write to `{order.folder}`: {problem.strerror or problem}"
            return RankState(rank=order.rank, problem=message)
        return RankState(rank=order.rank)

    def look(self, heard: int) -> RankState:
        """Return what is new. heard: bytes of its events that are known. To be asked again does no harm."""
        assert self._process is not None  # noqa: S101 - nobody looks before `start` went well
        assert self._log is not None  # noqa: S101 - likewise
        assert self._order is not None  # noqa: S101 - likewise
        # In this order: what the process said before it ended is heard with its end.
        code = self._process.poll()
        lines: tuple[bytes, ...] = ()
        with suppress(FileNotFoundError), (self._order.folder / self._order.events).open("rb") as stream:
            stream.seek(heard)
            news = stream.read()
            lines = tuple(news[: news.rfind(b"\n") + 1].splitlines(keepends=True))
        return RankState(rank=self._order.rank, code=code, lines=lines, log_bytes=self._log.bytes)

    def stop(self) -> None:
        """End the process, if it runs, with all that it started."""
        if self._process is not None:
            assert self._order is not None  # noqa: S101 - it was started with one
            end((self._process,), self._order.folder)
            with suppress(OSError):
                mask_file(self._order.folder / self._order.log, self._secrets)


def environment_of(order: RankOrder, meeting: tuple[str, int], world: int, local: tuple[int, int]) -> Mapping[str, str]:
    """Return a rank's whole environment: the node's, with torchrun's variables."""
    address = str(ray.util.get_node_ip_address())
    number, threads = local
    network = (
        {} if (name := interface_of(address)) is None else {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    )
    # Ray lets a task that claims GPUs see its own alone, and others all of them.
    hidden = {} if ray.get_gpu_ids() else {_GPU: ""}
    return {
        **network,
        **order.preset,
        **os.environ,
        # Ray's own value is the number of processors that were claimed, for what runs in its worker.
        "OMP_NUM_THREADS": str(threads),
        **order.forced,
        **hidden,
        "MASTER_ADDR": meeting[0],
        "MASTER_PORT": str(meeting[1]),
        "RANK": str(order.rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(number),
    }
