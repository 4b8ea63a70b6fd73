"""SHA-256 of a source that is streamed: every shard from its first byte to its last, while the window has its blocks.

    header, gap: fetched for the hash alone     block: read from the window, which keeps it until then

Blocks arrive in no order, and a hash has one. What no piece of work needs (the header, tensors that are dropped, what
an earlier run has done) is read from the store for the hash; so is a block that had to leave the window before its
turn. That bounds the window whatever the order of the work, at the price of some bytes that travel twice.
"""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from fp8cli.core.fetching.blocks import Block
from fp8cli.core.fetching.window_line import WindowLine
from fp8cli.errors import BadInput, CannotRun
from fp8cli.formats.patience import Patience, Stopped

_MOST_FOR_A_KNOWN_HASH: Final = 64 * 2**20
"""Bytes that may be fetched for the hash of a shard alone, where the server tells the hash already."""

_READ_BYTES: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class ShardToHash:
    """A file of the source."""

    bytes: int
    told: str | None
    """Its SHA-256, where the server tells it."""


@dataclass
class WindowHashing:
    """The hashes of one run, made by a thread of its own."""

    line: WindowLine
    shards: Mapping[str, ShardToHash]
    _steps: dict[str, tuple[tuple[int, int, Block | None], ...]] = field(init=False)
    _found: dict[str, str] = field(default_factory=dict)
    _failure: Exception | None = None
    _fetched: int = 0
    _patience: Patience = field(init=False)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        """Take note, before the first piece is admitted, of all that is to be kept."""
        self._patience = Patience(self.line.place, self.line.hung_up)
        by_shard: dict[str, list[Block]] = {name: [] for name in self.shards}
        for block in self.line.blocks.users:
            by_shard.setdefault(block[0], []).append(block)
        steps = {name: tuple(self._walk(name, sorted(by_shard[name]))) for name in self.shards}
        # Shards in the order of the work; those that it does not need come last.
        tensors = self.line.plan.tensors
        order = dict.fromkeys((*(tensors[number].source_shard for number, _, _ in self.line.waiting), *self.shards))
        self._steps = {name: steps[name] for name in order if name in steps and self._is_worth_it(name, steps[name])}
        self.line.unhashed.update(block for shard in self._steps for block in by_shard[shard])
        self._thread = threading.Thread(target=self._hash_all, name="fp8-hash-stream", daemon=True)

    @property
    def fetched(self) -> int:
        """Bytes that were fetched for the hashes alone."""
        return self._fetched

    def begin(self) -> None:
        """Start."""
        self._thread.start()

    def wait(self) -> Mapping[str, str]:
        """Return the SHA-256 of the shards that were hashed.

        Raises BadInput for one that is not what the server says, Fp8Error if its bytes cannot be had.
        """
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._found

    def join(self, seconds: float) -> None:
        """Wait for the thread, but not for a silent server."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _walk(self, shard: str, blocks: list[Block]) -> Iterator[tuple[int, int, Block | None]]:
        """Yield the parts of a shard in their order, each with its block if it is one."""
        at = 0
        for block in blocks:
            begin, end = self.line.blocks.span(block)
            if at < begin:
                yield at, begin, None
            yield begin, end, block
            at = end
        if at < self.shards[shard].bytes:
            yield at, self.shards[shard].bytes, None

    def _is_worth_it(self, shard: str, steps: tuple[tuple[int, int, Block | None], ...]) -> bool:
        alone = sum(end - begin for begin, end, block in steps if block is None)
        return self.shards[shard].told is None or alone <= _MOST_FOR_A_KNOWN_HASH

    def _hash_all(self) -> None:
        try:
            for shard, steps in self._steps.items():
                digest = hashlib.sha256()
                for begin, end, block in steps:
                    if block is not None and self.line.lend(block):
                        self._read(block, digest)
                        self.line.give_back(block)
                    else:
                        self._fetch(shard, begin, end, digest)
                self._judge(shard, digest.hexdigest())
        except Stopped:
            pass
        except Exception as problem:  # noqa: BLE001 - raised again by who waits
            self._failure = problem
            self.line.fail(problem)

    def _read(self, block: Block, digest: "hashlib._Hash") -> None:
        with self.line.errors():
            file = self.line.files.file(block)
            with file.path.open("rb", buffering=0) as reading:
                reading.seek(self.line.blocks.span(block)[0] - file.begin)
                while data := reading.read(_READ_BYTES):
                    digest.update(data)

    def _fetch(self, shard: str, begin: int, end: int, digest: "hashlib._Hash") -> None:
        place = self.line.place
        got = self._patience.read(
            lambda at: place.stream(shard, at, end), begin, end, lambda _, data: digest.update(data)
        )
        self._fetched += got
        if got < end - begin:
            message = f"`{shard}` in `{place.label}` ends at byte {begin + got:,}, of {self.shards[shard].bytes:,}"
            raise CannotRun(message, hint="run the same command again; if it stays so, the file is cut short")

    def _judge(self, shard: str, digest: str) -> None:
        told = self.shards[shard].told
        if told is not None and told != digest:
            message = f"`{shard}` came with the SHA-256 {digest}, and `{self.line.place.label}` says {told}"
            hint = "it was corrupted on its way: run the same command again, which begins anew"
            raise BadInput(message, hint=hint)
        self._found[shard] = digest
