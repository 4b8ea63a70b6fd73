"""A measurement: a model and its work in, what a process of its own (`measurer`) found out.

The process loads the model once, whatever the work asks of it. Nothing is kept but its log, and its result.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from fp8cli.core.calibrating.llm_compressor import forced_environment
from fp8cli.core.measuring.measuring_events import MeasuringEvent, measuring_event
from fp8cli.core.processes.supervision import Program, run_program
from fp8cli.core.sampling.data import CalibrationData
from fp8cli.errors import CannotRun
from fp8cli.measurer.protocol import EVENTS, LOG, REFERENCE, RESULT, MeasureJob, write_job

__all__ = ["measure"]

STALL_SECONDS: Final = 3600.0
"""One pass of a large model over the texts takes minutes on a processor, and tells of itself only at its end."""

MEASURER: Final[Program[MeasuringEvent]] = Program(
    name="measurement",
    module="fp8cli.measurer.main",
    events=EVENTS,
    event_of=measuring_event,
    log=LOG,
    results=(RESULT, REFERENCE),
    memory_hint="take shorter texts, --max-seq-length 512, or measure where there is more memory",
    # Threads of torch that wait by spinning keep each other from work where others are at work too: of a model of small
    # layers an exploration took seven times as long.
    environment={"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"},
)


def measure(
    job: MeasureJob,
    data: CalibrationData | None,
    folder: Path,
    *,
    python: Path | None,
    notify: Callable[[MeasuringEvent], None],
    stall_seconds: float = STALL_SECONDS,
    environ: Mapping[str, str] = os.environ,
) -> Mapping[str, Any]:
    """Measure what the work of a job asks for, and return its result, as `measurer.main` writes it.

    data: whose rows `job.samples` asks for. folder: to work in, the caller's alone; the log and the result stay there.
    python: an interpreter with torch and transformers; None: this one.

    Raises BadInput for a checkpoint or data that nothing can be measured with; CannotRun where this machine does not
    allow it; Interrupted on Ctrl-C. However it ends, no process is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if data is not None:
        data.hand_over(folder)
    write_job(job, folder)
    try:
        run_program(
            MEASURER,
            folder,
            python=Path(sys.executable) if python is None else python,
            notify=notify,
            stall_seconds=stall_seconds,
            forced=forced_environment("cpu" if job.device == "cpu" else "auto"),
            environ=environ,
        )
    finally:
        # Gigabytes that are of no use to anyone else.
        (folder / REFERENCE).unlink(missing_ok=True)
    try:
        found = json.loads((folder / RESULT).read_bytes())
    except (OSError, ValueError) as problem:
        message = "the measurer's result cannot be read"
        raise CannotRun(message, hint=f"the whole log: {folder / LOG}") from problem
    result: Mapping[str, Any] = found
    return result
