"""Starting a process of this tool's own, under any interpreter."""

import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fp8cli.core.processes.logbook import Logbook
from fp8cli.core.processes.process_group import start
from fp8cli.errors import CannotRun
from fp8cli.worker.bootstrap import BOOTSTRAP

PACKAGE: Final = Path(__file__).parents[2]
"""The folder of this package: all that a process of another interpreter sees of it."""

ENVIRONMENT: Final[Mapping[str, str]] = {
    # The last words of a process that is killed would be lost in a buffer, and its log would not grow.
    "PYTHONUNBUFFERED": "1",
    # A crash inside a kernel leaves its place in the log.
    "PYTHONFAULTHANDLER": "1",
    # A file `datasets.py` where the user happens to stand is not the library of that name, in no child either.
    "PYTHONSAFEPATH": "1",
}
"""What a process gets unless the user has set it."""


def launch(
    module: str,
    arguments: tuple[int, ...],
    *,
    title: str,
    python: Path,
    folder: Path,
    log: Path,
    environ: Mapping[str, str],
    secrets: tuple[str, ...],
) -> tuple[subprocess.Popen[bytes], Logbook]:
    """Start `module.main(folder, *arguments)` in a session of its own; what it prints is appended to `log`.

    title: its name in the log. environ: all of its environment but `ENVIRONMENT`. Raises CannotRun where the
    interpreter cannot be started.
    """
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"----- {title}, {datetime.now(UTC).isoformat(timespec='seconds')} -----\n")
    logbook = Logbook(path=log, start=log.stat().st_size, python=python, secrets=secrets)
    words = [str(python), "-c", BOOTSTRAP, str(PACKAGE), module, str(folder.absolute()), *map(str, arguments)]
    try:
        return start(words, environ={**ENVIRONMENT, **environ}, folder=folder, log=log), logbook
    except OSError as refusal:
        message = f"`{python}` cannot be run: {refusal.strerror or refusal}"
        raise CannotRun(message, hint="name another interpreter with --python") from refusal
