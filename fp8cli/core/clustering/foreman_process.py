"""The foreman from outside: started, spoken to through a pipe, ended with all that it started.

Its streams, and so Ray's, go to a log. On Linux nothing of a cluster of this machine outlives it: every process has
its mark (core.processes.process_group). Tasks on the nodes of a cluster that others run end because Ray ends what a
driver that is gone had asked for.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from fp8cli.core.clustering.choice import ADDRESS_VARIABLE, ClusterChoice
from fp8cli.core.clustering.errand_messages import Errand
from fp8cli.core.clustering.messages import Ended, GaveUp, Heard, Joined, NodeFacts, Question, Summons, Survey, Work
from fp8cli.core.clustering.rank_messages import Dismissal, Muster
from fp8cli.core.machine.probes import usable_cpus
from fp8cli.core.processes.process_group import end, end_leftovers, start
from fp8cli.errors import BadInput, CannotRun

LOG: Final = "ray.log"

_PROGRAM: Final = """\
import sys
sys.path[:] = [entry for entry in sys.path if entry]
sys.path.append(sys.argv[1])
from fp8cli.core.clustering.foreman import main
main(int(sys.argv[2]))
"""
_PACKAGES: Final = Path(__file__).parents[3]
"""The folder that holds this package; last on the foreman's path, as an installation in development has it nowhere."""

_ENVIRONMENT: Final = {
    "PYTHONUNBUFFERED": "1",
    # A folder `ray` where the user happens to stand is not the library, on a node neither.
    "PYTHONSAFEPATH": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray hides GPUs from tasks that claim none, as later releases will not; nothing here minds either way.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TQDM_PATCH_PRINT": "0",
}
_PREFIX: Final = "fp8-ray-"
_NOTE: Final = "temporary"
"""Where the name of that folder is kept."""
_JOIN_SECONDS: Final = 180.0
_DISMISSED_SECONDS: Final = 30.0
_LONGEST_TEMPORARY: Final = 30
"""Ray's sockets lie 60 characters below, and a socket's path may have 107."""


@dataclass(frozen=True, kw_only=True)
class Foreman:
    """The process, once it is part of the cluster."""

    address: str
    log: Path
    _process: subprocess.Popen[bytes]
    _pipe: Connection
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def survey(self, question: Question) -> tuple[NodeFacts, ...]:
        """Return what every node answers."""
        self._say(question)
        match self.hear():
            case Survey(nodes=nodes):
                return nodes
            case other:
                message = f"the answer to a survey was {type(other).__name__}"
                raise TypeError(message)

    def begin(self, work: Work | Muster | Errand) -> None:
        """Let it hand out batches or an errand, or place ranks; what it says about them is heard one by one.

        Any thread may call it.
        """
        self._say(work)

    def dismiss(self) -> None:
        """Let it end the ranks that it placed, and wait until it has, but not for ever. Raises nothing."""
        with suppress(CannotRun, BadInput):
            self._say(Dismissal())
            while self._pipe.poll(_DISMISSED_SECONDS) and not isinstance(self.hear(), Ended):
                pass

    def has_spoken(self, seconds: float) -> bool:
        """Wait for so long at most; return whether there is something to hear."""
        return self._pipe.poll(seconds)

    def hear(self) -> Heard:
        """Wait for what it says next. Raises BadInput or CannotRun when it gave up, or is gone."""
        try:
            said: Heard = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._gone() from None
        if isinstance(said, GaveUp):
            kind = BadInput if said.fault == "source" else CannotRun
            raise kind(said.message, hint=said.hint)
        return said

    def _say(self, what: Question | Work | Muster | Errand | Dismissal | Summons) -> None:
        try:
            with self._lock:
                self._pipe.send(what)
        except (BrokenPipeError, ConnectionResetError):
            raise self._gone() from None

    def _gone(self) -> CannotRun:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        message = f"Ray's driver on this machine ended before the work was done (exit code {self._process.returncode})"
        return CannotRun(message, hint=f"`{self.log}` has its last words; run the same command again to go on")


@contextmanager
def foreman_of(choice: ClusterChoice, folder: Path) -> Iterator[Foreman]:
    """Join a cluster, or begin one; leave it, or end it, at the end. `folder` takes the log, and is the mark.

    Raises CannotRun if there is none to be had.
    """
    end_leftovers(folder)
    log = folder / LOG
    environ = {key: value for key, value in os.environ.items() if key != ADDRESS_VARIABLE} | _ENVIRONMENT
    ours, theirs = Pipe()
    temporary = _temporary_folder(folder)
    process = None
    try:
        words = [sys.executable, "-c", _PROGRAM, str(_PACKAGES), str(theirs.fileno())]
        process = start(words, environ=environ, folder=folder, log=log, pass_fds=(theirs.fileno(),))
        theirs.close()
        foreman = Foreman(address="", log=log, _process=process, _pipe=ours)
        foreman._say(Summons(address=choice.address, cpus=usable_cpus(), temporary=temporary))  # noqa: SLF001 - its maker
        if not ours.poll(_JOIN_SECONDS):
            where = "a cluster of this machine" if choice.address is None else f"the cluster at `{choice.address}`"
            message = f"{where} was not there after {_JOIN_SECONDS:.0f} seconds"
            raise CannotRun(message, hint=f"`{log}` has what Ray says; ray status says whether a cluster runs")
        match foreman.hear():
            case Joined(address=address):
                yield Foreman(address=address, log=log, _process=process, _pipe=ours)
            case other:
                message = f"the answer to a summons was {type(other).__name__}"
                raise TypeError(message)
    finally:
        ours.close()
        if process is not None:
            end((process,), folder)
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_folder(folder: Path) -> Path:
    """Make a folder for Ray's sockets and logs; that of an earlier run in `folder`, which was killed, goes."""
    note = folder / _NOTE
    with suppress(OSError):
        left = Path(note.read_text(encoding="utf-8"))
        if left.name.startswith(_PREFIX):
            shutil.rmtree(left, ignore_errors=True)
    usual = Path(tempfile.gettempdir())
    place = usual if len(str(usual)) <= _LONGEST_TEMPORARY else Path("/tmp")  # noqa: S108 - made by mkdtemp, for us alone
    made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    note.write_text(str(made), encoding="utf-8")
    return made
