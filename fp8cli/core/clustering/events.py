"""What a run tells of its cluster before there is one."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClusterBegins:
    """The cluster is about to be joined, or begun."""

    address: str | None
    """None: of this machine alone."""
    warning: str | None
    """Why it is not worth it, where it is not."""
