"""Every node of a cluster asked what it has, with no work to give: for `fp8 doctor --cluster`."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fp8cli import __version__
from fp8cli.core.clustering.choice import ClusterChoice
from fp8cli.core.clustering.code import code_digest
from fp8cli.core.clustering.fitness import KNOWN_SLOW, odd_ones, why_unfit
from fp8cli.core.clustering.foreman_process import foreman_of
from fp8cli.core.clustering.messages import ANSWER_PREFIX, SIGN_FILE, NodeFacts, Question
from fp8cli.core.findings import Status
from fp8cli.errors import BadInput
from fp8cli.formats.checkpoint import LocalFolder


@dataclass(frozen=True, kw_only=True)
class ExaminedNode:
    """One node, judged."""

    facts: NodeFacts
    status: Status
    says: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Examined:
    """All of them."""

    nodes: tuple[ExaminedNode, ...]
    folder_status: Status
    """`not checked`: there is none, or it cannot be written to, so that nodes were asked for its files alone."""


def examine(choice: ClusterChoice, folder: Path | None) -> Examined:
    """Join the cluster, or begin one, and ask its nodes. Raises BadInput for a folder that is none, CannotRun as well.

    folder: what all nodes must see: the source, or the place of the output.
    """
    if folder is not None and not folder.is_dir():
        message = f"`{folder}` is no folder of this machine"
        raise BadInput(message, hint="name the folder of a checkpoint, or the one that outputs are written to")
    token = secrets.token_hex(16)
    log = Path(tempfile.mkdtemp(prefix="fp8-doctor-"))
    try:
        with foreman_of(choice, log) as foreman, _shared(folder, token) as shared:
            question = Question(
                source=None if folder is None else folder.absolute(),
                sizes={} if folder is None else _files(folder),
                folder=shared,
                token=None if shared is None else token,
            )
            answers = foreman.survey(question)
            wrote = {facts.node: shared is None or _wrote(shared, facts.node, token) for facts in answers}
    finally:
        shutil.rmtree(log, ignore_errors=True)
    odd = odd_ones({facts.name: facts for facts in answers})
    nodes = tuple(_judge(facts, odd.get(facts.name, ()), wrote=wrote[facts.node]) for facts in answers)
    return Examined(nodes=nodes, folder_status=_folder_status(nodes, shared))


def _judge(facts: NodeFacts, odd: tuple[str, ...], *, wrote: bool) -> ExaminedNode:
    reason = why_unfit(facts, version=__version__, code=code_digest(), wrote=wrote, needed_bytes=0)
    if reason is not None:
        return ExaminedNode(facts=facts, status="failed", says=(reason, *odd))
    says = (*odd, *((KNOWN_SLOW,) if facts.kernel is None else ()))
    return ExaminedNode(facts=facts, status="warning" if says else "passed", says=says)


def _folder_status(nodes: tuple[ExaminedNode, ...], shared: Path | None) -> Status:
    if any(node.facts.source_problem is not None or node.facts.folder_problem is not None for node in nodes):
        return "failed"
    return "not checked" if shared is None or not nodes else "passed"


@contextmanager
def _shared(folder: Path | None, token: str) -> Iterator[Path | None]:
    """Make a hidden folder that nodes find a sign in, for the time; None where nothing can be written."""
    try:
        place = None if folder is None else Path(tempfile.mkdtemp(prefix=".fp8-doctor-", dir=folder.absolute()))
        if place is not None:
            # Nodes may work under another user.
            place.chmod(0o777)
            (place / SIGN_FILE).write_text(token, encoding="utf-8")
    except OSError:
        place = None
    try:
        yield place
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


def _wrote(folder: Path, node: str, token: str) -> bool:
    try:
        return (folder / f"{ANSWER_PREFIX}{node}").read_text(encoding="utf-8") == token
    except OSError:
        return False


def _files(folder: Path) -> dict[str, int]:
    """Return the files that lie right in a folder: those of a checkpoint do."""
    return {name: size for name, size in LocalFolder(folder).files().items() if "/" not in name}
