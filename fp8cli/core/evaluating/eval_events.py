"""What an evaluation tells whoever waits for it: what it is about to do, notes, and all that its workers say."""

from dataclasses import dataclass

from fp8cli.core.evaluating.worker_events import WorkerEvent
from fp8cli.worker.protocol import Backend


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Said once something has to be run, before the worker starts."""

    checkpoint: str
    label: str
    backend: Backend
    why: str
    """Why this backend, as the end of a sentence."""
    tasks: tuple[str, ...]
    """Names that are run."""
    known: tuple[str, ...]
    """Names that records answer."""
    simulated: str | None = None
    """The scheme that is simulated."""


@dataclass(frozen=True, kw_only=True)
class Noted:
    """Something the user should know in passing."""

    text: str


EvalEvent = Prepared | Noted | WorkerEvent
