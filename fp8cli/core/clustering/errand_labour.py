"""What a node does when it is sent for one file: reads it for its SHA-256, or sends it to where it belongs.

Ray calls `run` by name, as it does the functions of `labour`. A node that is killed leaves nothing but its notes
(`sending_notes`), and whoever does the same errand after it reads them.
"""

import threading
import time

from fp8cli import __version__
from fp8cli.core.clustering.code import code_digest
from fp8cli.core.clustering.errand_messages import (
    ErrandDone,
    ErrandFailed,
    HashDone,
    HashOrder,
    Order,
    SendDone,
    SendOrder,
)
from fp8cli.core.clustering.labour import node_id, node_name, sight_problem, source_problem
from fp8cli.core.clustering.sending_notes import NodeNotes, read_notes, with_notes
from fp8cli.core.hashing import pieces_of, sha256_of
from fp8cli.errors import CannotRun, Fp8Error
from fp8cli.formats.checkpoint import LocalFolder
from fp8cli.formats.destinations import open_destination


def run(order: Order) -> ErrandDone | ErrandFailed:
    """Do an errand. Never raises what fp8 itself may raise, nor what a disk may."""
    node = node_id()
    name = node_name(node)
    try:
        if code_digest() != order.sight.code:
            message = f"fp8 {__version__} there is not the fp8 that asks"
            raise CannotRun(message)
        problem = sight_problem(order.sight.shared, order.sight.token)
        problem = problem or source_problem(order.folder, {order.file: order.bytes})
        if problem is not None:
            raise CannotRun(problem)
        return _hash(order, node, name) if isinstance(order, HashOrder) else _send(order, node, name)
    except Fp8Error as problem_there:
        return ErrandFailed(number=order.number, node=node, name=name, message=problem_there.message)
    except OSError as problem_of_disk:
        message = f"`{order.file}` cannot be read: {problem_of_disk.strerror or problem_of_disk}"
        return ErrandFailed(number=order.number, node=node, name=name, message=message)


def _hash(order: HashOrder, node: str, name: str) -> HashDone:
    begun = time.monotonic()
    path = LocalFolder(order.folder).resolve(order.file)
    digest = sha256_of(pieces_of(path), lambda _: None, threading.Event())
    return HashDone(
        number=order.number,
        node=node,
        name=name,
        bytes=order.bytes,
        sha256=digest,
        seconds=time.monotonic() - begun,
    )


def _send(order: SendOrder, node: str, name: str) -> SendDone:
    """Send a file with this node's own credentials, but for the parts that another attempt has noted."""
    begun = time.monotonic()
    before = with_notes(order.before, read_notes(order.notes, order.file))
    notes = NodeNotes(order.notes, order.file, before)
    destination = open_destination(order.address, order.options)
    upload, sha256 = destination.send(order.file, LocalFolder(order.folder).resolve(order.file), before, notes)
    return SendDone(
        number=order.number,
        node=node,
        name=name,
        bytes=order.bytes,
        upload=upload,
        sha256=sha256,
        seconds=time.monotonic() - begun,
    )
