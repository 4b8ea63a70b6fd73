"""What runs on the nodes: a look around, and a batch of pieces, with the same crew as on a single machine.

Ray calls these two functions by name, so a node has them from its own installation. One that has other code than the
machine that asks is found out by a digest of it. A node decides nothing: it answers with what it found, or with what
it did, and a batch that is done twice leaves the same bytes.
"""

import os
import pickle
import platform
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Literal, TypeVar

import ray

from fp8cli import __version__
from fp8cli.core import kernel
from fp8cli.core.clustering.code import code_digest
from fp8cli.core.clustering.messages import (
    ANSWER_PREFIX,
    SIGN_FILE,
    BatchDone,
    BatchFailed,
    BatchOrder,
    NodeFacts,
    Place,
    Question,
)
from fp8cli.core.fetching.window_supply import WindowSupply
from fp8cli.core.machine.gpus import find_gpus
from fp8cli.core.machine.probes import read_disk, read_memory, read_torch_build
from fp8cli.core.quantizing.crew import Crew
from fp8cli.core.quantizing.engine import flush_shards
from fp8cli.core.quantizing.pieces import source_bytes
from fp8cli.core.quantizing.resources import Resources
from fp8cli.core.quantizing.supply import LocalSupply, Supply
from fp8cli.errors import BadInput, CannotRun, Fp8Error
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.sources import Elsewhere
from fp8cli.formats.staging import Harm, Piece, disk_errors, scratch_errors

T = TypeVar("T")

_ID_SHOWN: Final = 6


def look_around(question: Question) -> NodeFacts:
    """Answer a question about this node. Never raises; leaves a file in the shared folder that says it was here."""
    node, memory = node_id(), _known(read_memory)
    build, loaded, gpus = _known(read_torch_build), kernel.load(), _known(find_gpus)
    folder = question.folder
    disk = None if folder is None else _known(lambda: read_disk(folder / SIGN_FILE))
    return NodeFacts(
        node=node,
        name=node_name(node),
        problem=None,
        python=platform.python_version(),
        fp8=__version__,
        code=code_digest(),
        ray=str(ray.__version__),
        torch=None if build is None else build.version,
        kernel=None if loaded is None else loaded.instruction_set,
        gpus=() if gpus is None else tuple(gpu.name for gpu in gpus.visible),
        memory_bytes=None if memory is None else memory.total_bytes,
        available_bytes=None if memory is None else memory.available_bytes,
        disk_free_bytes=None if disk is None else disk.free_bytes,
        source_problem=None if question.source is None else source_problem(question.source, question.sizes),
        folder_problem=_folder_problem(question, node),
    )


def carry_out(packed: bytes) -> BatchDone | BatchFailed:
    """Do a batch, and wait until its bytes have reached the disk. Never raises what fp8 itself may raise.

    packed: the `BatchOrder`.
    """
    begun, node = time.monotonic(), node_id()
    order: BatchOrder = pickle.loads(packed)  # noqa: S301 - from who may run any code here, by way of Ray
    name = node_name(node)
    try:
        harms, sha256 = _do(order)
    except Fp8Error as problem:
        fault: Literal["source", "node"] = "source" if isinstance(problem, BadInput) else "node"
        return BatchFailed(
            number=order.number, node=node, name=name, fault=fault, message=problem.message, hint=problem.hint
        )
    return BatchDone(
        number=order.number,
        node=node,
        name=name,
        harms=tuple(harms[piece] for piece in order.pieces),
        sha256=sha256,
        bytes_read=sum(source_bytes(order.plan.tensors[piece[0]], piece) for piece in order.pieces),
        seconds=time.monotonic() - begun,
    )


def _do(order: BatchOrder) -> tuple[Mapping[Piece, Harm], Mapping[str, str]]:
    """Do the pieces; return what each has to report, and the SHA-256 of what was hashed on its way."""
    # Asked for every batch: a node may have joined late, or lost its disk, and the output may be another's by now.
    if code_digest() != order.sight.code:
        message = f"fp8 {__version__} there is not the fp8 that asks"
        raise CannotRun(message, hint="install the same version on every node")
    problem = sight_problem(order.sight.shared, order.sight.token) or source_problem(order.source, order.sizes)
    if problem is not None:
        raise CannotRun(problem, hint="every node must see the source and the output under the same paths")
    harms: dict[Piece, Harm] = {}
    with _part(), _supply(order) as supply:
        crew = Crew(
            plan=order.plan,
            supply=supply,
            folder=order.checkpoint,
            out=order.out,
            resources=Resources(
                device=order.device,
                workers=order.workers,
                memory_bytes=order.memory_bytes,
                piece_bytes=order.piece_bytes,
            ),
            finished=harms.__setitem__,
        )
        crew.carry_out(order.pieces)
        sha256 = supply.hashes() if isinstance(supply, WindowSupply) else {}
    with _part(), disk_errors(order.out):
        flush_shards(order.checkpoint, {order.plan.tensors[number].shard for number, _, _ in order.pieces})
    return harms, sha256


@contextmanager
def _part() -> Iterator[None]:
    """Let an error of the node's own say what came of it; one of the source (BadInput) is the same everywhere."""
    try:
        yield
    except CannotRun as problem:
        message = f"could not do its part: {problem.message}"
        raise CannotRun(message, hint=problem.hint) from problem


@contextmanager
def _supply(order: BatchOrder) -> Iterator[Supply]:
    """Open the source of a batch. A window lies in the node's own folder for temporary files."""
    if isinstance(order.source, Path):
        yield LocalSupply(LocalFolder(order.source).resolve)
        return
    assert order.streaming is not None  # noqa: S101 - what is in no folder is streamed
    try:
        scratch = Path(tempfile.gettempdir())
    except FileNotFoundError as problem:
        message = "no folder for temporary files can be written to"
        raise CannotRun(message, hint="make room in one, or let TMPDIR name one") from problem
    with ExitStack() as stack:
        with scratch_errors(scratch):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fp8-window-"))
        window = WindowSupply(
            place=order.source,
            folder=Path(folder) / "window",
            out=order.out,
            scratch=scratch,
            connections=order.streaming.connections,
            window_bytes=order.streaming.window_bytes,
            hashing=order.hashing,
        )
        try:
            yield window
        finally:
            window.close()


def node_id() -> str:
    """Return Ray's name for this node."""
    return str(ray.get_runtime_context().get_node_id())


def node_name(node: str) -> str:
    """Return what messages call this node."""
    return name_on(socket.gethostname(), node)


def name_on(host: str, node: str) -> str:
    """Return what messages call a node: its host, and as much of Ray's id as tells two on one host apart."""
    return f"{host}/{node[:_ID_SHOWN]}"


def source_problem(source: Place, sizes: Mapping[str, int]) -> str | None:
    """Say what is wrong with the source as this node sees it; None: its files are there, of the right length."""
    if not isinstance(source, Path):
        return _problem_elsewhere(source, sizes)
    folder = LocalFolder(source)
    for name, size in sizes.items():
        try:
            found = folder.resolve(name).stat().st_size
        except (OSError, Fp8Error):
            return f"cannot see `{name}` in `{source}`"
        if found != size:
            return f"sees another `{name}` in `{source}`: {found:,} bytes, not {size:,}"
    return None


def _problem_elsewhere(place: Elsewhere, sizes: Mapping[str, int]) -> str | None:
    try:
        files = place.files()
    except Fp8Error as problem:
        return f"cannot read `{place.label}`: {problem.message}"
    for name, size in sizes.items():
        if files.get(name) != size:
            return f"sees another `{name}` in `{place.label}`, or none"
    return None


def _folder_problem(question: Question, node: str) -> str | None:
    if question.folder is None or question.token is None:
        return None
    problem = sight_problem(question.folder, question.token)
    if problem is not None:
        return problem
    try:
        (question.folder / f"{ANSWER_PREFIX}{node}").write_text(question.token, encoding="utf-8")
    except OSError as refusal:
        return f"cannot write to `{question.folder}`: {os.strerror(refusal.errno or 0)}"
    return None


def sight_problem(folder: Path, token: str) -> str | None:
    """Say why this is not the shared folder with this token; None: it is."""
    try:
        found = (folder / SIGN_FILE).read_text(encoding="utf-8")
    except OSError:
        return f"cannot see `{folder}`"
    return None if found == token else f"sees another `{folder}`"


def _known(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except Exception:  # noqa: BLE001 - a fact that cannot be found out is not known, and no reason to stop
        return None
