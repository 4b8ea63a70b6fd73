"""What the workers of one job cost together: each but the first tells its share in its last event."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fp8cli.worker import facts, protocol

SECONDS_BETWEEN_LOOKS: Final = 0.1


def share_facts(*, tokens: int, known: int) -> dict[str, Any]:
    """Return what one worker used."""
    return {
        "tokens": tokens,
        "known_answers": known,
        "peak_memory_bytes": facts.peak_memory_bytes(facts.peaks_of_group(os.getpgrp(), os.getpid())),
        **facts.gpu_facts(),
    }


def add_shares(first: Mapping[str, Any], folder: Path, world: int) -> dict[str, Any]:
    """Add the shares of the other workers to that of the first, as soon as all have left."""
    total = dict(first)
    for rank in range(1, world):
        share = _wait_for(folder / protocol.events_file(rank))
        for name in ("tokens", "known_answers", "peak_memory_bytes"):
            total[name] += share[name]
        total["gpus"] = [*total["gpus"], *share["gpus"]]
        peaks = (total["peak_gpu_memory_bytes"], share["peak_gpu_memory_bytes"])
        total["peak_gpu_memory_bytes"] = None if None in peaks else sum(peaks)
    return total


def _wait_for(path: Path) -> Mapping[str, Any]:
    # A parent ends all workers when one dies, so that nobody waits for the dead.
    while (share := _last_share(path)) is None:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return share


def _last_share(path: Path) -> Mapping[str, Any] | None:
    """Return the share in the last event; an earlier worker's was followed by another `started`."""
    if not path.exists():
        return None
    lines = path.read_bytes().split(b"\n")[:-1]
    last: Mapping[str, Any] = json.loads(lines[-1]) if lines else {}
    share: Mapping[str, Any] | None = last.get("share")
    return share if last.get("event") == "finished" else None
