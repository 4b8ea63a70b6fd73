"""Which files of the output a cluster may work at: all of them at once, or as many as whoever takes them lets begin.

A watch may keep a shard from beginning until others are gone from the disk (see core.quantizing.crew.ShardWatch). It
is asked by a thread of its own, in order, while nodes work at what was admitted before.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from fp8cli.core.quantizing.crew import ShardWatch

_SETTLES: Final = 0.1
"""Seconds without another shard, after which those that were admitted are begun."""


def admit(watch: ShardWatch, shards: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield shards as they are admitted, one or more at a time, until all are. Raises what the watch raises."""
    admitted: queue.SimpleQueue[str | BaseException] = queue.SimpleQueue()
    threading.Thread(target=_ask, args=(watch, shards, admitted), name="fp8-admit", daemon=True).start()
    left = len(shards)
    while left:
        wave = [_shard(admitted.get())]
        while len(wave) < left:
            try:
                wave.append(_shard(admitted.get(timeout=_SETTLES)))
            except queue.Empty:
                break
        left -= len(wave)
        yield tuple(wave)


def _ask(watch: ShardWatch, shards: Sequence[str], admitted: "queue.SimpleQueue[str | BaseException]") -> None:
    try:
        for shard in shards:
            watch.begins(shard)
            admitted.put(shard)
    except BaseException as problem:  # noqa: BLE001 - raised again where it is waited for
        admitted.put(problem)


def _shard(answer: str | BaseException) -> str:
    if isinstance(answer, BaseException):
        raise answer
    return answer
