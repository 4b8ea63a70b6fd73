"""The cluster of a run, joined for as long as its nodes make, hash or send something; where there is none, nobody."""

from collections.abc import Iterator
from contextlib import contextmanager

from fp8cli.core.clustering.driving import ClusterLabour, ClusterWork, cluster_labour
from fp8cli.core.making.source import Source
from fp8cli.core.quantizing.resources import Resources
from fp8cli.formats.staging import Staging


@contextmanager
def joined(
    work: ClusterWork | None, source: Source, staging: Staging, resources: Resources, *, hashed: bool
) -> Iterator[ClusterLabour | None]:
    """Join the cluster of `work`, or begin it. hashed: whether what is streamed is hashed on its way.

    Raises CannotRun if there is none to be had.
    """
    if work is None:
        yield None
        return
    hashing = source.to_hash() if hashed else {}
    with cluster_labour(work, source.folder, source.streaming, staging, resources, hashing=hashing) as labour:
        yield labour
