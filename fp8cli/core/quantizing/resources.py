"""How much of the machine a run may use: workers and memory. None of it changes a byte of the result."""

import re
from dataclasses import dataclass
from typing import Final

from fp8cli.core.quantizing.plan import Plan
from fp8cli.errors import UsageError

DEFAULT_MAX_MEMORY: Final = "1GiB"

SCRATCH_BYTES_PER_ELEMENT: Final = 24
"""Upper bound on host memory per element of a tile: source, model dtype, magnitudes, float32, codes."""

PIECE_BYTES: Final = 64 * 2**20
"""Source bytes per piece of work: what an interrupted run may have to do again, per worker."""

ASSUMED_BYTES_PER_SECOND: Final = 1_000_000_000
"""Bytes read plus bytes written, on two cores and a page cache (see README)."""

_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)
_POWER: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the engine may use."""

    device: str
    """`auto`, `cpu`, `cuda` or `cuda:N`; checked when torch is there."""
    workers: int
    memory_bytes: int
    """For all tiles of all workers together, on top of the interpreter."""
    piece_bytes: int = PIECE_BYTES

    @property
    def memory_per_worker(self) -> int:
        """Bytes one worker's tile and its intermediate results may take."""
        return self.memory_bytes // self.workers


def parse_size(text: str, *, option: str) -> int:
    """Return the bytes that `text` names: `2GB` is 2·10⁹, `2GiB` is 2·2³⁰. Raises UsageError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        message = f"{option} `{text}` is no size"
        raise UsageError(message, hint=f"write it as {option} 2GiB, 500MB or a number of bytes")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWER[prefix.lower()])


def estimate_seconds(plan: Plan) -> float:
    """Say how long the streaming engine takes for a plan, for a dry run."""
    return (plan.bytes_read + plan.bytes_written) / ASSUMED_BYTES_PER_SECOND


def plan_resources(
    plan: Plan,
    *,
    device: str,
    workers: int | None,
    max_memory: str,
    cpus: int,
    piece_bytes: int = PIECE_BYTES,
) -> Resources:
    """Fit the run into `max_memory`, with fewer workers if need be. `workers` None: one per usable CPU.

    Raises UsageError when not even one worker fits: a row (or a band of 128 rows, for blocks) must.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        message = f"`{device}` is no device"
        raise UsageError(message, hint="--device takes auto, cpu, cuda or cuda:N")
    if workers is not None and workers < 1:
        message = f"--workers {workers} leaves no one to do the work"
        raise UsageError(message, hint="use at least --workers 1")
    memory = parse_size(max_memory, option="--max-memory")
    least = plan.widest_tile_elements * SCRATCH_BYTES_PER_ELEMENT
    if memory < least:
        message = f"--max-memory {max_memory} is too little: the widest tensor needs {least:,} bytes for one tile"
        raise UsageError(message, hint=f"use --max-memory {-(-least // 2**20)}MiB or more")
    fitting = max(1, memory // max(least, 1))
    return Resources(device=device, workers=min(workers or cpus, fitting), memory_bytes=memory, piece_bytes=piece_bytes)
