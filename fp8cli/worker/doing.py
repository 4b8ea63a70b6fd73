"""How every program of this tool's own does its job: begun with an eye on the parent, left with a last word.

What the parent is told goes into files; standard output and error are a log.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from fp8cli.samples.rows import UnfitData
from fp8cli.worker.failures import Failure, describe
from fp8cli.worker.parent_watch import watch_parent
from fp8cli.worker.progress import Progress


def run_job(folder: Path, work: Callable[[Path, Progress], Mapping[str, Any] | None], *, rank: int = 0) -> NoReturn:
    """Do the job of a folder, and leave: 0 after `finished`, 1 after `failed`.

    work: what it returns is told with the last word. rank: of one of several processes.
    """
    watch_parent()
    progress = Progress(folder, rank)
    code = 0
    try:
        progress.tell("finished", **(work(folder, progress) or {}))
    except BaseException as error:  # noqa: BLE001 - the parent is told, whatever it is
        traceback.print_exc()
        failure = _describe(error)
        progress.tell("failed", kind=failure.kind, message=failure.message, hint=failure.hint)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written. What libraries do on their way out takes seconds, and some of them hang there.
    os._exit(code)


def write_whole(path: Path, value: Mapping[str, Any]) -> None:
    """Write a result as JSON, whole or not at all: it is there only when all is done."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _describe(error: BaseException) -> Failure:
    if isinstance(error, UnfitData):
        return Failure(kind="data", message=error.message, hint=error.hint)
    return describe(error)
