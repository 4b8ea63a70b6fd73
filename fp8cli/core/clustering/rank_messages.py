"""What travels where one program runs as several ranks on the nodes of a cluster, as torchrun would start them.

this process ──Muster, Dismissal──▶ foreman ──RankOrder──▶ node
this process ◀──RanksSeen, then Ended── foreman ◀──RankState── node
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RankOrder:
    """One process of the program, with all that its node needs to start it."""

    rank: int
    module: str
    """Its `main` gets the folder and the rank."""
    title: str
    """Its name in the log."""
    folder: Path
    """Of the job; every node sees it."""
    events: str
    """Name of this rank's file of events."""
    log: str
    """Name of this rank's log."""
    python: Path | None
    """The interpreter; None: the one that Ray has on the node."""
    preset: Mapping[str, str]
    """Its environment, unless the node has set it."""
    forced: Mapping[str, str]
    """Its environment, whatever the node has set."""


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """Where a rank goes, and what it claims of its node."""

    node: str
    """Ray's id."""
    name: str
    cpus: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Muster:
    """Every rank of a program: its order and its place, by number."""

    orders: tuple[RankOrder, ...]
    places: tuple[RankPlace, ...]


@dataclass(frozen=True, kw_only=True)
class Dismissal:
    """Nobody waits for the ranks any more."""


@dataclass(frozen=True, kw_only=True)
class RankState:
    """What a rank did since it was last looked at."""

    rank: int
    code: int | None = None
    """Of its exit, as `subprocess` has it; None: it is at work."""
    lines: tuple[bytes, ...] = ()
    """New lines of its events."""
    log_bytes: int = 0
    problem: str | None = None
    """Why it could not be started, as the rest of a sentence about its node."""
    is_lost: bool = False
    """Whether its node, or Ray's worker there, is gone, and it with them."""


@dataclass(frozen=True, kw_only=True)
class RanksSeen:
    """A look at the ranks that answered; told every second or so, whether or not there is news."""

    states: tuple[RankState, ...]
