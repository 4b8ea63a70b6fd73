"""The pieces of a run that wait for their bytes, the blocks that are under way, and those that take room.

    pieces in order → admitted while the window has room → blocks fetched, several at a time → taken by workers → gone

A piece is admitted when all its blocks fit, and taken when all of them are there, so no worker ever holds one and
waits for another. What only later pieces share with done ones makes room for them where it must, and is then fetched
again: a window as large as the largest piece is enough to get to the end. Blocks that nobody needs but who hashes the
source stay until he has read them, unless he waits for one that has no room.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

from fp8cli.core.fetching.blocks import Block, Blocks
from fp8cli.core.fetching.streaming import StreamFacts, bound_of
from fp8cli.core.fetching.window_clock import Clock
from fp8cli.core.fetching.window_files import WindowFiles
from fp8cli.core.quantizing.pieces import source_ranges
from fp8cli.core.quantizing.plan import Plan
from fp8cli.errors import CannotRun
from fp8cli.formats.patience import Patience, Stopped
from fp8cli.formats.ranges import Range
from fp8cli.formats.sources import Elsewhere
from fp8cli.formats.staging import Piece

_SECONDS_TO_HANG_UP: Final = 1.0
_FORE: Final = 64
"""Of the pieces that are ready, as many are looked at for one of the file that a worker is in."""


@dataclass
class WindowLine:
    """The pieces of one run of a crew, and the threads that fetch for them."""

    place: Elsewhere
    errors: Callable[[], AbstractContextManager[None]]
    """Turns an error of the disk that the window is on into one sentence."""
    connections: int
    window_bytes: int
    files: WindowFiles
    plan: Plan
    waiting: deque[Piece]
    """Not admitted yet, in order."""
    blocks: Blocks
    clock: Clock = field(default_factory=Clock)
    _ready: deque[Piece] = field(default_factory=deque)
    _missing: dict[Piece, int] = field(default_factory=dict)
    """Of pieces that are admitted and not ready: how many blocks are not there."""
    _wanted_by: dict[Block, list[Piece]] = field(default_factory=dict)
    """Of blocks that are under way: who waits for them."""
    _held: dict[Block, int] = field(default_factory=dict)
    """Blocks that take room, each with the number of admitted pieces that need it."""
    _idle: dict[Block, None] = field(default_factory=dict)
    """Of these, those that only pieces need that are not admitted; the one that is idle the longest is the first."""
    unhashed: set[Block] = field(default_factory=set)
    """Blocks that are to be hashed yet."""
    _spent: dict[Block, None] = field(default_factory=dict)
    """Of the blocks that take room, those that are to be hashed and that no piece needs."""
    _lent: Block | None = None
    """What is being hashed."""
    _awaited: Block | None = None
    """What the hash goes on with, where it waits."""
    _active: int = 0
    """Pieces that are admitted and not done."""
    _requests: deque[Block] = field(default_factory=deque)
    _used: int = 0
    _peak: int = 0
    _fetched: int = 0
    _asked: int = 0
    _begun: float = field(default_factory=time.monotonic)
    _ended: float = field(default_factory=time.monotonic)
    _failure: Exception | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)
    hung_up: threading.Event = field(default_factory=threading.Event)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _threads: list[threading.Thread] = field(default_factory=list)
    _patience: Patience = field(init=False)

    def __post_init__(self) -> None:
        """Count what there is to fetch."""
        self._patience = Patience(self.place, self._stopped)

    def begin(self) -> None:
        """Admit the first pieces and start to fetch."""
        with self._changed:
            self._admit()
        for number in range(min(self.connections, len(self.blocks.users))):
            # Daemons: one that waits for a silent server must not keep the process alive.
            thread = threading.Thread(target=self._fetch_all, name=f"fp8-fetch-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def take(self, shard: str | None) -> Piece | None:
        """Return a piece whose bytes are there, one of `shard` if there is any; None when all are taken."""
        begun = time.monotonic()
        with self._changed:
            while not (self._ready or self._failure or self._stopped.is_set()):
                if not self.waiting and not self._missing:
                    return None
                self._changed.wait()
            self.clock.waits(time.monotonic() - begun)
            if self._failure is not None:
                raise self._failure
            if self._stopped.is_set():
                return None
            fore = (self._ready[place] for place in range(min(_FORE, len(self._ready))))
            piece = next((each for each in fore if self.plan.tensors[each[0]].shard == shard), self._ready[0])
            self._ready.remove(piece)
            return piece

    def release(self, ranges: Sequence[Range]) -> None:
        """Give back the blocks of a piece that is done, but for those that others need."""
        with self._changed:
            for block in self.blocks.of(ranges):
                self._held[block] -= 1
                self.blocks.users[block] -= 1
                if not self.blocks.users[block]:
                    if block in self.unhashed:
                        self._spent[block] = None
                    else:
                        self._finish(block)
                elif not self._held[block]:
                    self._idle[block] = None
            self._active -= 1
            self._ended = time.monotonic()
            self._admit()
            self._changed.notify_all()

    def lend(self, block: Block) -> bool:
        """Wait until a block is there, and keep it until it is given back; False: it had to go, and will not come.

        For one thread, which hashes the source. Raises Stopped once the run has failed.
        """
        with self._changed, self.errors():
            self._awaited = block
            while block not in self._held or block in self._wanted_by:
                if self._failure is not None or self.hung_up.is_set():
                    raise Stopped
                if not self.blocks.users[block]:
                    self._awaited = None
                    self.unhashed.discard(block)
                    return False
                if block not in self._held:
                    # Nothing that waits to be hashed may keep the room that this one needs.
                    self._admit()
                    self._changed.notify_all()
                    if block in self._held:
                        continue
                self._changed.wait()
            self._awaited, self._lent = None, block
            return True

    def give_back(self, block: Block) -> None:
        """Take note that a block was hashed."""
        with self._changed, self.errors():
            self._lent = None
            self.unhashed.discard(block)
            if block in self._spent:
                self._finish(block)
            self._admit()
            self._changed.notify_all()

    def fail(self, problem: Exception) -> None:
        """Let the workers raise what went wrong elsewhere."""
        with self._changed:
            self._failure = self._failure or problem
            self._changed.notify_all()

    def hang_up(self) -> None:
        """Let nobody hash any more either."""
        self.hung_up.set()
        self.stop()

    def stop(self) -> None:
        """Fetch no more, and let nobody wait."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the threads that fetch, but not for one that a silent server keeps."""
        until = time.monotonic() + _SECONDS_TO_HANG_UP
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def facts(self) -> StreamFacts:
        """Return what was measured so far."""
        with self._changed:
            seconds = self._ended - self._begun
            return StreamFacts(
                bytes_fetched=self._fetched,
                requests=self._asked,
                asked_again=self._patience.asked_again,
                seconds=seconds,
                bytes_per_second=self._fetched / seconds if seconds > 0 else 0.0,
                waiting_seconds=self.clock.waited,
                working_seconds=self.clock.worked,
                processor_seconds=self.clock.computed,
                window_peak_bytes=self._peak,
                bound=bound_of(self.clock.waited, self.clock.worked, self._fetched),
            )

    def _admit(self) -> None:
        """Admit pieces, in order, while there is room for all that they need."""
        while self.waiting and not self._stopped.is_set():
            piece = self.waiting[0]
            needed = self.blocks.of(source_ranges(self.plan.tensors[piece[0]], piece))
            new = [block for block in needed if block not in self._held]
            size = sum(map(self.blocks.size, new))
            self._make_room(size, needed)
            if self._used + size > self.window_bytes and (self._active or self._will_be_hashed()):
                return
            self.waiting.popleft()
            self._take_in(piece, needed, new)

    def _make_room(self, size: int, needed: Sequence[Block]) -> None:
        for block in [block for block in self._idle if block not in needed and block != self._lent]:
            if self._used + size <= self.window_bytes:
                return
            self._let_go(block)
        for block in () if self._will_be_hashed() else tuple(self._spent):
            if self._used + size <= self.window_bytes:
                return
            self._finish(block)

    def _will_be_hashed(self) -> bool:
        """Whether what is kept for the hash alone will make room of its own accord."""
        if self._lent is not None:
            return True
        return bool(self._spent) and (self._awaited is None or self._awaited in self._held)

    def _take_in(self, piece: Piece, needed: Sequence[Block], new: Sequence[Block]) -> None:
        for block in new:
            self.files.begin(block, self.blocks.pages(block))
            self._held[block] = 0
            self._wanted_by[block] = []
            self._used += self.blocks.size(block)
            self._requests.append(block)
        self._peak = max(self._peak, self._used)
        self._active += 1
        under_way = [block for block in needed if block in self._wanted_by]
        for block in needed:
            self._held[block] += 1
            self._idle.pop(block, None)
        for block in under_way:
            self._wanted_by[block].append(piece)
        if under_way:
            self._missing[piece] = len(under_way)
        else:
            self._ready.append(piece)

    def _finish(self, block: Block) -> None:
        """Let go of a block that no piece needs."""
        self._spent.pop(block, None)
        self._let_go(block)

    def _let_go(self, block: Block) -> None:
        del self._held[block]
        self._idle.pop(block, None)
        self._used -= self.blocks.size(block)
        self.files.give_back(block)

    def _fetch_all(self) -> None:
        """Fetch one block after the other until the run stops."""
        try:
            while (block := self._next_request()) is not None:
                self._fetch(block)
                self._arrived(block)
        except Stopped:
            pass
        except Exception as problem:  # noqa: BLE001 - raised again where a worker waits
            self.fail(problem)

    def _next_request(self) -> Block | None:
        with self._changed:
            while not self._requests and not self._stopped.is_set():
                if self._failure is not None or (not self.waiting and not self._missing):
                    return None
                self._changed.wait()
            return None if self._stopped.is_set() else self._requests.popleft()

    def _fetch(self, block: Block) -> None:
        shard, (begin, end) = block[0], self.blocks.span(block)

        with self.errors(), self.files.writing(block) as write:
            got = self._patience.read(lambda at: self.place.stream(shard, at, end), begin, end, write)
        with self._changed:
            self._asked += 1
            self._fetched += got
        if got < end - begin:
            message = f"`{shard}` in `{self.place.label}` ends at byte {begin + got:,}, inside its weights"
            raise CannotRun(message, hint="run the same command again; if it stays so, the file is cut short")

    def _arrived(self, block: Block) -> None:
        with self._changed:
            for piece in self._wanted_by.pop(block):
                self._missing[piece] -= 1
                if not self._missing[piece]:
                    del self._missing[piece]
                    self._ready.append(piece)
            self._changed.notify_all()
