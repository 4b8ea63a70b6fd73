"""What travels between this process, the foreman that speaks Ray, and the nodes: plain data, all of it picklable.

this process ──Summons, Question, Work──▶ foreman ──Question, BatchOrder──▶ node
this process ◀──Joined, Survey, BatchesDone, NodeLeftOut, NodeLost, Ended, GaveUp── foreman
foreman ◀──NodeFacts, BatchDone, BatchFailed── node

What ranks of one program say and are told is in `rank_messages`, and what nodes do with single files in
`errand_messages`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fp8cli.core.clustering.errand_messages import CannotSend, ErrandDone, ErrandFailed, Sight
from fp8cli.core.clustering.rank_messages import RanksSeen
from fp8cli.core.fetching.streaming import Streaming
from fp8cli.core.fetching.window_hashing import ShardToHash
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.sources import Elsewhere
from fp8cli.formats.staging import Harm, Piece

Place = Path | Elsewhere
"""A folder under the same path on every node, or what every node can ask for bytes."""

SIGN_FILE: Final = "sign"
"""Written by this process beside the output in the making; a node that reads the same in it sees the same folder."""

ANSWER_PREFIX: Final = "node-"
"""What a node writes there, so that this process sees that it can: this and its id."""


@dataclass(frozen=True, kw_only=True)
class Summons:
    """Where the cluster is."""

    address: str | None
    """None: one of this machine alone, which ends with the foreman."""
    cpus: int
    """For that one."""
    temporary: Path
    """For that one's logs and sockets."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What every node is asked before it gets work."""

    source: Place | None
    sizes: Mapping[str, int]
    """Bytes of each file in it that is needed."""
    folder: Path | None
    """The shared folder that is written to; there is a token in it."""
    token: str | None


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """One node's answer. None: it is not there, or the node could not find out."""

    node: str
    """Ray's id."""
    name: str
    problem: str | None
    """Why it did not answer; then nothing below says anything."""
    python: str | None = None
    fp8: str | None = None
    code: str | None = None
    """Digest of the code that makes the weights."""
    ray: str | None = None
    torch: str | None = None
    kernel: str | None = None
    """Instruction set of the compiled kernel."""
    gpus: tuple[str, ...] = ()
    cpus: int = 0
    """As Ray counts them."""
    gpu_slots: int = 0
    """GPUs, as Ray counts them."""
    memory_bytes: int | None = None
    available_bytes: int | None = None
    disk_free_bytes: int | None = None
    """Where the shared folder is."""
    source_problem: str | None = None
    """Why the source cannot be read there, or is another."""
    folder_problem: str | None = None
    """The same for the shared folder."""


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """A batch, with all that a node needs for it."""

    number: int
    sight: Sight
    plan: Plan
    """Of the batch's own tensors; see `batches.excerpt`."""
    pieces: tuple[Piece, ...]
    source: Place
    streaming: Streaming | None
    """How a source is read that is in no folder: a window for every task."""
    sizes: Mapping[str, int]
    """Bytes of each file of the source that it reads."""
    hashing: Mapping[str, ShardToHash]
    """Shards of a source in no folder that are to be hashed on their way: those that it reads as a whole."""
    checkpoint: Path
    """The output in the making."""
    out: Path
    """What messages call the output."""
    workers: int
    memory_bytes: int
    device: str
    piece_bytes: int


@dataclass(frozen=True, kw_only=True)
class BatchDone:
    """Every piece of a batch is on the disk."""

    number: int
    node: str
    name: str
    harms: tuple[Harm, ...]
    """In the order of the pieces."""
    sha256: Mapping[str, str]
    """Of the shards that were hashed on their way."""
    bytes_read: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BatchesDone:
    """Those of which the foreman has heard at once."""

    done: tuple[BatchDone, ...]


@dataclass(frozen=True, kw_only=True)
class BatchFailed:
    """It is not."""

    number: int
    node: str
    name: str
    fault: Literal["source", "node"]
    """`source`: it would fail on any node."""
    message: str
    hint: str | None


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What came of a task instead of an answer."""

    message: str
    raised: bool
    """Whether the task itself ended so; else its worker or its node was lost, again and again."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """All batches, in the order in which they are to be begun."""

    orders: tuple[bytes, ...]
    """Of `BatchOrder`, packed: the foreman has no use for what is in them."""
    cpus: int
    """That a task claims of its node."""
    gpus: int
    slots: int
    """Tasks that run at once."""
    bundle: int
    """Batches that are handed out together."""
    left_out: tuple[str, ...]
    """Ids of nodes that get none."""


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The foreman is part of the cluster."""

    address: str


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the nodes answered."""

    nodes: tuple[NodeFacts, ...]


@dataclass(frozen=True, kw_only=True)
class NodeLeftOut:
    """A node gets no more work."""

    node: str
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NodeLost:
    """A node is gone; Ray gives its work to others."""

    node: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """All batches are done."""


@dataclass(frozen=True, kw_only=True)
class GaveUp:
    """The foreman cannot go on."""

    fault: Literal["source", "cluster"]
    message: str
    hint: str | None


OfNodes = NodeLeftOut | NodeLost | CannotSend
"""What may be told at any time."""

Heard = Joined | Survey | BatchesDone | ErrandDone | ErrandFailed | OfNodes | RanksSeen | Ended | GaveUp
