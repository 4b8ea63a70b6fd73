"""What `--cluster` says, and what goes with it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from fp8cli.errors import CannotRun, UsageError

ADDRESS_VARIABLE = "RAY_ADDRESS"


@dataclass(frozen=True, kw_only=True)
class ClusterChoice:
    """A cluster of Ray's."""

    address: str | None
    """None: one of this machine alone, begun for this run and ended with it."""
    batch_bytes: int | None = None
    """Read plus written by a batch; None: as `batches.cut_batches` finds best."""

    @property
    def label(self) -> str:
        """What reports call it."""
        return "a cluster of this machine alone" if self.address is None else self.address


def read_cluster(text: str | None, environ: Mapping[str, str] = os.environ) -> ClusterChoice | None:
    """Return what `--cluster TEXT` means; None where nobody wants one. Raises UsageError, CannotRun without Ray."""
    choice = parse_cluster(text, environ)
    if choice is not None and find_spec("ray") is None:
        message = "Ray is not installed"
        raise CannotRun(message, hint="uv pip install 'fp8cli[ray]'")
    return choice


def parse_cluster(text: str | None, environ: Mapping[str, str]) -> ClusterChoice | None:
    """Return the same, whether or not this interpreter has Ray. Raises UsageError.

    `ray` alone means the cluster that RAY_ADDRESS names, as everywhere in Ray, else one of this machine.
    """
    if text is None:
        return None
    kind, equals, address = text.partition("=")
    if kind != "ray" or (equals and not address):
        message = f"--cluster `{text}` is no cluster"
        raise UsageError(message, hint="write --cluster ray, or --cluster ray=HOST:PORT for one that runs already")
    address = address or environ.get(ADDRESS_VARIABLE, "")
    if address == "local":
        address = ""
    if "://" in address:
        message = f"`{address}` is an address for Ray's client, whose machine is no part of the cluster"
        raise UsageError(message, hint="run fp8 on a node of the cluster, with --cluster ray=auto")
    return ClusterChoice(address=address or None)


def refuse_device(device: str) -> None:
    """Raise UsageError for a GPU by number: which one a task gets is Ray's to say."""
    if device.startswith("cuda:"):
        message = f"--device {device} names a GPU of one machine, and a cluster has many"
        raise UsageError(message, hint="use --device cuda, and Ray gives each task a GPU of its own")
