"""Kill a command again and again at random moments, and say how each attempt ended.

Run as a program: python -m tests.kill_driver COMMAND SOURCE OUT SEED KILLS [overwrite], the command one of COMMANDS.
It imports everything once and forks a child for each attempt, so that the moments fall into the work and not into the
start of Python. Every kill is a real SIGKILL of a real run. Writes one JSON object.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import fp8cli.core.quantizing.tiles  # noqa: F401 - torch must be there before the first fork
from fp8cli.commands import convert, dequantize, quantize
from fp8cli.formats.staging import partial_folder

_ROW_BYTES = 256

Start = Callable[[], int]
"""Runs the command to its end; returns how many bytes it found done by an earlier one."""


def _quantize(source: str, out: Path, *, overwrite: bool) -> int:
    request = quantize.QuantizeRequest(model=source, out=out, workers=2, piece_bytes=_ROW_BYTES, overwrite=overwrite)
    return quantize.run(request).bytes_resumed


def _options(source: str, out: Path, *, overwrite: bool) -> convert.Options:
    return convert.Options(model=source, out=out, workers=2, piece_bytes=_ROW_BYTES, overwrite=overwrite)


def _convert(source: str, out: Path, *, overwrite: bool) -> int:
    options = _options(source, out, overwrite=overwrite)
    return convert.run(convert.ConvertRequest(options=options, to="modelopt")).bytes_resumed


def _requantize(source: str, out: Path, *, overwrite: bool) -> int:
    options = _options(source, out, overwrite=overwrite)
    return convert.run(convert.ConvertRequest(options=options, to="deepseek", requantize=True)).bytes_resumed


def _dequantize(source: str, out: Path, *, overwrite: bool) -> int:
    options = _options(source, out, overwrite=overwrite)
    return dequantize.run(dequantize.DequantizeRequest(options=options)).bytes_resumed


COMMANDS: Mapping[str, Callable[..., int]] = {
    "quantize": _quantize,
    "convert": _convert,
    "requantize": _requantize,
    "dequantize": _dequantize,
}


def digest(folder: Path) -> dict[str, str]:
    """Return name → digest of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def attempt(start: Start, kill_after: float | None) -> tuple[bool, int]:
    """Run once in a child. Return whether it was killed, and how many bytes it found done by an earlier one."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(write_end, str(start()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write_end)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    resumed = os.read(read_end, 100)
    os.close(read_end)
    if os.WIFSIGNALED(status):
        return True, 0
    if os.WEXITSTATUS(status) != 0:
        message = "the child failed"
        raise RuntimeError(message)
    return False, int(resumed)


def main(command: str, source: str, out: str, seed: int, kills: int, *, overwrite: bool) -> dict[str, object]:
    """Kill `kills` runs; after each check that nothing half-made is visible, and that runs go on to the same end."""
    choose = random.Random(seed)
    target = Path(out)
    start = partial(COMMANDS[command], source, target, overwrite=overwrite)
    old = {"config.json": "", "old": ""}
    begun = time.monotonic()
    attempt(start, None)
    whole_run = time.monotonic() - begun
    wanted = digest(target)
    killed = finished = resumed_bytes = resumed_runs = swapped = 0
    # On a busy machine few of a few kills fall between two pieces: until a run has gone on, nothing has been tested.
    while killed < kills or (not resumed_runs and killed < 10 * kills):
        if not partial_folder(target).exists():
            shutil.rmtree(target, ignore_errors=True)
            if overwrite:
                target.mkdir()
                for name in old:
                    (target / name).write_text("")
        was_killed, resumed = attempt(start, choose.uniform(0, 1.1 * whole_run))
        if was_killed:
            killed += 1
            if target.exists():
                visible = digest(target)
                assert visible == wanted or (overwrite and sorted(visible) == sorted(old)), sorted(visible)
                swapped += visible == wanted
                if visible == wanted and not overwrite:
                    shutil.rmtree(partial_folder(target), ignore_errors=True)
            else:
                assert not overwrite
            continue
        finished += 1
        resumed_bytes += resumed
        resumed_runs += resumed > 0
        assert digest(target) == wanted
        assert not partial_folder(target).exists()
    return {
        "killed": killed,
        "finished": finished,
        "resumed_runs": resumed_runs,
        "resumed_bytes": resumed_bytes,
        "killed_after_the_swap": swapped,
        "seconds_of_a_whole_run": round(whole_run, 3),
    }


if __name__ == "__main__":
    arguments = sys.argv[1:]
    outcome = main(*arguments[:3], int(arguments[3]), int(arguments[4]), overwrite="overwrite" in arguments)
    sys.stdout.write(json.dumps(outcome))
