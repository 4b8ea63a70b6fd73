"""Every node asked before it gets work, and judged: what it has, and whether it sees the very folders meant."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fp8cli import __version__
from fp8cli.core.clustering.code import code_digest
from fp8cli.core.clustering.fitness import why_unfit
from fp8cli.core.clustering.foreman_process import Foreman
from fp8cli.core.clustering.messages import ANSWER_PREFIX, SIGN_FILE, NodeFacts, Place, Question
from fp8cli.errors import CannotRun


def judge_nodes(
    foreman: Foreman, *, source: Place, sizes: Mapping[str, int], shared: Path, token: str, needed_bytes: int
) -> list[tuple[NodeFacts, str | None]]:
    """Ask every node; return its facts, and why it may not work. Raises OSError where `shared` cannot be written to.

    sizes: bytes of each file of the source that is needed. shared: a folder that every node must see. needed_bytes: of
    disk, where that folder is.
    """
    for stale in shared.glob(f"{ANSWER_PREFIX}*"):
        stale.unlink(missing_ok=True)
    (shared / SIGN_FILE).write_text(token, encoding="utf-8")
    question = Question(source=source, sizes=sizes, folder=shared.absolute(), token=token)
    judged = []
    for facts in foreman.survey(question):
        wrote = _wrote(shared, facts.node, token)
        reason = why_unfit(facts, version=__version__, code=code_digest(), wrote=wrote, needed_bytes=needed_bytes)
        judged.append((facts, reason))
    return judged


def nobody_can(judged: list[tuple[NodeFacts, str | None]]) -> CannotRun:
    """Return the error that no node may work."""
    said = "; ".join(f"`{facts.name}` {reason}" for facts, reason in judged) or "it has none"
    message = f"no node of the cluster can do the work: {said}"
    return CannotRun(message, hint="fp8 doctor --cluster ray shows all nodes; without --cluster it is done here")


def _wrote(folder: Path, node: str, token: str) -> bool:
    with suppress(OSError):
        return (folder / f"{ANSWER_PREFIX}{node}").read_text(encoding="utf-8") == token
    return False
