"""Which piece a worker takes next: one of a file of its own, as long as there are files enough.

A file system locks a file while it is written, so two workers in one file wait for each other, and the kernel makes
them wait by spinning: measured on ext4, 0.8 of 4.8 seconds of processor time. Large files are begun first, so that
no worker is left with one at the end; then the workers share what remains.
"""

import threading
from collections import Counter, deque
from collections.abc import Sequence

from fp8cli.core.quantizing.pieces import source_bytes
from fp8cli.core.quantizing.plan import Plan
from fp8cli.formats.staging import Piece


class WorkQueue:
    """The pieces that are left, by output file. Any number of threads may take."""

    def __init__(self, plan: Plan, pieces: Sequence[Piece]) -> None:
        """Sort the pieces by file; within a file they keep their order."""
        self._plan = plan
        self._pieces: dict[str, deque[Piece]] = {}
        self._bytes: Counter[str] = Counter()
        self._workers: Counter[str] = Counter()
        self._lock = threading.Lock()
        for piece in pieces:
            tensor = plan.tensors[piece[0]]
            self._pieces.setdefault(tensor.shard, deque()).append(piece)
            self._bytes[tensor.shard] += source_bytes(tensor, piece)

    def take(self, shard: str | None) -> Piece | None:
        """Return the next piece for a worker that was in `shard`, or None when all are taken."""
        with self._lock:
            if shard is None or not self._pieces[shard]:
                self._workers[shard or ""] -= 1
                shard = self._choose()
                if shard is None:
                    return None
                self._workers[shard] += 1
            piece = self._pieces[shard].popleft()
            self._bytes[shard] -= source_bytes(self._plan.tensors[piece[0]], piece)
            return piece

    def stop(self) -> None:
        """Nobody waits here, so there is nothing to do."""

    def _choose(self) -> str | None:
        """Return the file with the fewest workers in it, of those the one with most to do; None if none has any."""
        left = (shard for shard, pieces in self._pieces.items() if pieces)
        return min(left, key=lambda shard: (self._workers[shard], -self._bytes[shard]), default=None)
